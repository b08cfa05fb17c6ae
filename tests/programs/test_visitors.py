"""What visitors of the demo page may send, and that they see no file of the server and nobody else's answer."""

import json
import shutil
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_jepa.cli import main
from hf_jepa.programs import demo_page
from hf_jepa.programs.demo_page import build_page, visitors
from tests import stand_ins


class Shown(Exception):
    """Stands in for gradio's error, which it takes arguments of."""

    def __init__(self, message: str, **_: object) -> None:
        super().__init__(message)


def test_uploads_and_texts_have_limits(write_video, tmp_path, monkeypatch):
    video = str(write_video(tmp_path / "clip.mp4", num_frames=20, fps=10))
    assert visitors.check_inputs((video, None, 3, "a\nb", [video])) == [Path(video)] * 2
    with pytest.raises(ValueError, match="longer than 20000 characters"):
        visitors.check_inputs(("a" * 20_001,))
    with pytest.raises(ValueError, match="65 files; at most 64"):
        visitors.check_inputs(([video] * 65,))
    (tmp_path / "bad.mp4").write_bytes(b"bad")
    with pytest.raises(ValueError, match="The video cannot be read"):
        visitors.check_inputs((str(tmp_path / "bad.mp4"),))
    monkeypatch.setattr(visitors, "MAX_VIDEO_SECONDS", 1.0)
    with pytest.raises(ValueError, match="lasts 2 s; at most 1 s"):
        visitors.check_inputs((video,))
    monkeypatch.setattr(visitors, "MAX_UPLOAD_BYTES", 1000)
    with pytest.raises(ValueError, match="MiB; at most"):
        visitors.check_inputs((video,))


def test_each_answer_has_a_folder_and_errors_tell_of_none(tmp_path):
    upload = tmp_path / "uploads" / "cat.png"
    upload.parent.mkdir()
    upload.touch()
    places = []

    def answer(file: str, place: Path) -> str:
        places.append(place)
        raise ValueError(f"{file} is no image")

    run = visitors.answering(SimpleNamespace(Error=Shown), tmp_path, answer)
    for _ in range(2):
        with pytest.raises(Shown, match="^cat.png is no image$"):
            run(str(upload))
    assert len(set(places)) == 2
    assert all(place.is_dir() for place in places)


def test_the_command_stays_on_this_machine_and_shows_no_file(monkeypatch):
    served = {}
    page = SimpleNamespace(launch=lambda **options: served.update(options), queue=lambda **_: None)
    monkeypatch.setattr(demo_page, "build_page", lambda *_: page)
    assert main(["demo-vl", "anything"]) == 0
    assert (served["server_name"], served["share"], served["show_error"]) == ("127.0.0.1", False, False)
    assert served["max_file_size"] == visitors.MAX_UPLOAD_BYTES
    assert served["allowed_paths"] == []
    assert str(Path.home()) in served["blocked_paths"]


def fetch(address: str, body: dict | None = None) -> tuple[int, str]:
    """Status and text of an answer, as any program would ask."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace") or "{}"


@pytest.mark.slow
def test_the_page_serves_many_and_gives_no_file_of_the_server(tmp_path, monkeypatch):
    """Over HTTP, as a hostile visitor would: paths of the server as uploads, and asked for directly."""
    pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    facts = {"modality": "vision-language", "title": "VL-JEPA", "name": "tiny"}
    monkeypatch.setattr(demo_page, "inspect_release", lambda _: facts)
    monkeypatch.setattr("hf_jepa.programs.demo_page.texts.load", lambda *_: stand_ins.vl_pipeline())
    picture = str(stand_ins.save_photos(tmp_path / "photos", 1) / "0.png")
    secret = tmp_path / "secret.png"
    shutil.copy(picture, secret)
    page = build_page(["anything"])
    _, address, _ = visitors.serve(page, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
    address = address.rstrip("/")
    try:

        def ask(number: int) -> set[str]:
            texts = ["cat\ndog", "bird\na"][number % 2]
            found = Client(address, verbose=False).predict(handle_file(picture), None, "", texts, api_name="/rank")[0]
            return {entry["label"] for entry in found["confidences"]}

        with ThreadPoolExecutor(6) as people:
            assert list(people.map(ask, range(12))) == [{"cat", "dog"}, {"bird", "a"}] * 6
        for path in (str(secret), "/etc/passwd"):
            # A path of the server is no upload.
            given = {"path": path, "meta": {"_type": "gradio.FileData"}}
            call = f"{address}/gradio_api/call/rank"
            event = json.loads(fetch(call, {"data": [given, None, "", "cat"]})[1]).get("event_id")
            assert "confidences" not in fetch(f"{call}/{event}")[1], path
            for route in ("/gradio_api/file=", "/file="):
                assert fetch(f"{address}{route}{path}")[0] in (403, 404), route
    finally:
        page.close()
