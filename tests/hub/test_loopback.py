"""Pushing and loading through huggingface_hub itself, over HTTP, from a server on this machine."""

import functools
import itertools
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils import get_session
from transformers import IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, silence
from hf_jepa.data import LeRobotTrajectories
from hf_jepa.hub import PushError, push_release, save_release
from hf_jepa.hub.inspection import release_folder
from hf_jepa.silence import limited_silence

from .loopback_hub import HALF, LOST, RESET, SILENT, TRICKLE, LoopbackHub, loopback_hub


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[IJepaForPreTraining, Path]:
    encoder = IJepaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    model = IJepaForPreTraining(
        IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    )
    results = {"model": {"name": "tiny"}, "licence": "apache-2.0"}
    return model, save_release(model, tmp_path_factory.mktemp("release") / "a release", results=results)


@pytest.fixture
def hub():
    with loopback_hub() as server:
        yield server


@pytest.fixture
def api(hub, monkeypatch) -> HfApi:
    # Tests run offline; the client reads these when it sends. Xet is the Hub's own storage, which falls back to LFS.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    # The waits between tries, of huggingface_hub and of ours: `time.sleep` itself, for the whole process.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return HfApi(endpoint=hub.url, token="write")


def environment(hub: LoopbackHub, **more: str) -> dict[str, str]:
    """Of a process of its own that goes to this server."""
    return {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **more}


def holds(hub: LoopbackHub, folder: Path, revision: str = "main", name: str = "me/tiny") -> bool:
    """The repository has every published file of the folder, to the byte."""
    files = hub.repositories[name].files(revision)
    wanted = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return wanted.items() <= files.items()


def commits(hub: LoopbackHub) -> list[dict[str, bytes]]:
    """That changed something, oldest first, without the empty one that a repository begins with."""
    made = hub.repositories["me/tiny"].branches["main"]
    return [after for before, after in itertools.pairwise(made) if after != before]


@pytest.mark.parametrize("private", [True, False, None])
def test_a_push_arrives_whole_and_as_private_as_asked(hub, api, made, private):
    address = push_release(made[1], "me/tiny", private=private, api=api)
    assert address.startswith(f"{hub.url}/me/tiny/commit/")
    assert holds(hub, made[1])
    assert hub.repositories["me/tiny"].private is bool(private)
    assert push_release(made[1], "me/tiny", private=private, api=api)  # a second time into the same repository


def test_a_revision_that_is_new_is_made(hub, api, made):
    push_release(made[1], "me/tiny", revision="v1.0", api=api)
    assert holds(hub, made[1], "v1.0")
    assert hub.repositories["me/tiny"].files("main") == {}


def test_what_an_earlier_release_left_there_goes_and_the_rest_stays(hub, api, made):
    push_release(made[1], "me/tiny", api=api)
    left = {"adapter_config.json": b"{}", "model-00001-of-00002.safetensors": b"x", "demo.ipynb": b"{}"}
    hub.repositories["me/tiny"].branches["main"].append({**hub.repositories["me/tiny"].files("main"), **left})
    push_release(made[1], "me/tiny", api=api)
    assert holds(hub, made[1])
    assert left.keys() & hub.repositories["me/tiny"].files("main").keys() == {"demo.ipynb"}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, RESET])
@pytest.mark.parametrize("where", ["/api/repos/create", "/preupload/", "objects/batch", "PUT /lfs/", "/commit/"])
def test_passing_faults_lose_nothing(hub, api, made, status, where):
    hub.fail(where, status, status)
    push_release(made[1], "me/tiny", api=api)
    assert holds(hub, made[1])


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412])
@pytest.mark.parametrize("where", ["/api/repos/create", "/commit/"])
def test_refusals_end_at_once(hub, api, made, status, where):
    hub.fail(where, status)
    with pytest.raises(PushError, match="The release is complete in .*: hf upload me/tiny"):
        push_release(made[1], "me/tiny", private=True, api=api)
    assert hub.count(where) == 1


@pytest.fixture
def wait_for(monkeypatch) -> Callable[[float], None]:
    """How many seconds the client waits for the next byte."""

    def limit(seconds: float) -> None:
        monkeypatch.setattr(silence, "MAX_SILENCE", seconds)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", seconds)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", seconds)

    return limit


@pytest.fixture
def loading(hub, api, tmp_path, monkeypatch) -> Path:
    """The cache that `release_folder` fills from this server, at first with nothing."""
    folder = tmp_path / "cache"
    download = functools.partial(snapshot_download, endpoint=hub.url, token="write", cache_dir=folder)
    for module in ("hub.inspection", "data.trajectory_lerobot"):
        monkeypatch.setattr(f"hf_jepa.{module}.snapshot_download", download)
    return folder


def test_a_slow_link_is_waited_for(hub, api, made, wait_for, loading):
    # Each of these answers takes longer than a silence may.
    wait_for(1.0)
    for where in ("/preupload/", "/commit/", "GET /me/tiny/resolve/"):
        hub.fail(where, TRICKLE)
    push_release(made[1], "me/tiny", api=api)
    assert hub.count("/commit/") == hub.count("/preupload/") == 1
    assert holds(hub, made[1])
    read = {path.name: path.read_bytes() for path in release_folder("me/tiny").glob("*.*")}
    assert read.items() <= {path.name: path.read_bytes() for path in made[1].glob("*.*")}.items()
    assert {"README.md", "config.json", "results.json"} <= read.keys()
    asked = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("where", ["/api/repos/create", "/preupload/", "objects/batch", "PUT /lfs/", "/commit/"])
def test_a_silent_server_ends_a_try_and_then_the_push(hub, api, made, wait_for, where):
    wait_for(0.5)
    hub.fail(where, SILENT)
    push_release(made[1], "me/first", api=api)
    assert holds(hub, made[1], name="me/first")
    # One upload of LFS is tried six times by huggingface_hub itself.
    hub.objects.clear()
    hub.fail(where, *[SILENT] * 40)
    with pytest.raises(PushError, match=r"\(1 try\).*The release is complete in .*: hf upload me/tiny"):
        push_release(made[1], "me/tiny", attempts=1, api=api)
    assert hub.let_go == 0
    assert "me/tiny" not in hub.repositories or hub.repositories["me/tiny"].files("main") == {}


@pytest.mark.parametrize("fault", [SILENT, HALF])
@pytest.mark.parametrize("where", ["GET /api/models/me/tiny", "GET /me/tiny/resolve/"])
def test_nothing_half_read_is_taken_for_whole(hub, api, made, wait_for, loading, where, fault):
    wait_for(0.5)
    push_release(made[1], "me/tiny", api=api)
    hub.fail(where, *[fault] * 99)
    with pytest.raises(ValueError, match="the Hub cannot be asked for a repository of that name"):
        release_folder("me/tiny")
    assert hub.let_go == 0
    hub.fail_no_more()
    folder = release_folder("me/tiny")
    for file in ("README.md", "config.json", "results.json"):
        assert (folder / file).read_bytes() == (made[1] / file).read_bytes()


def test_a_silent_server_ends_the_loading_of_a_dataset(hub, api, wait_for, loading):
    wait_for(0.5)
    hub.fail("GET /api/datasets/me/robot", *[SILENT] * 99)
    with pytest.raises(OSError, match="trying to locate the files on the Hub"):
        LeRobotTrajectories("me/robot")
    assert hub.let_go == 0


@pytest.mark.parametrize(("asked", "limit"), [({}, 300.0), ({"timeout": None}, 300.0), ({"timeout": 7}, 7)])
def test_limits_that_a_caller_has_set_stay(hub, api, asked, limit):
    client = get_session()
    hooks = list(client.event_hooks["request"])
    with limited_silence():
        answer = client.get(f"{hub.url}/api/models/me/none", **asked)
        assert set(answer.request.extensions["timeout"].values()) == {limit}
    assert client.event_hooks["request"] == hooks


@pytest.fixture(scope="module")
def large(made, tmp_path_factory) -> Path:
    """A release in many shards, as of a model of tens of gigabytes."""
    folder = tmp_path_factory.mktemp("large") / "release"
    shutil.copytree(made[1], folder)
    (folder / "model.safetensors").unlink()
    made[0].export_encoder().save_pretrained(folder, max_shard_size=300)
    return folder


def test_a_large_release_goes_on_where_it_was_cut_off(hub, api, large):
    shards = len(list(large.rglob("*.safetensors")))
    assert shards > 8
    # huggingface_hub itself tries five times.
    hub.fail("PUT /lfs/", *[RESET] * 30)
    hub.fail("/commit/", 503)
    push_release(large, "me/tiny", attempts=9, api=api)
    assert holds(hub, large)
    # Nothing that had arrived was sent again.
    assert hub.count("PUT /lfs/") == shards + 30
    # What readers see is whole at once.
    assert len(commits(hub)) == 1


@pytest.mark.parametrize("pipeline", [False, True])
def test_a_commit_whose_answer_is_lost_is_not_made_again(hub, api, large, monkeypatch, pipeline):
    # In its pipeline of large folders huggingface_hub itself sends the commit again, which then changes nothing.
    hub.keeps_lfs = not pipeline
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: pipeline)
    hub.fail("/commit/", LOST)
    push_release(large, "me/tiny", api=api)
    assert holds(hub, large)
    assert len(commits(hub)) == 1


def test_the_pipeline_of_large_folders_makes_one_commit(hub, api, large, monkeypatch):
    # What huggingface_hub runs where its storage `hf_xet` is installed, here without files for that storage.
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: True)
    hub.keeps_lfs = False
    old = {"config.json": b"{}", "adapter_config.json": b"{}", "kept.txt": b"x"}
    push_release(large, "me/tiny", api=api)
    hub.repositories["me/tiny"].branches["main"] = [old]
    hub.fail("/preupload/", 503)
    hub.fail("/commit/", 500)
    push_release(large, "me/tiny", api=api)
    assert len(commits(hub)) == 1
    assert holds(hub, large)
    assert "adapter_config.json" not in hub.repositories["me/tiny"].files("main")
    assert hub.repositories["me/tiny"].files("main")["kept.txt"] == b"x"


def test_the_command_that_a_refusal_prints_finishes_the_upload(hub, api, made):
    hub.fail("/api/repos/create", 403)
    with pytest.raises(PushError) as refused:
        push_release(made[1], "me/tiny", private=True, revision="v1", api=api)
    arguments = shlex.split(re.search(r"with: (hf upload .*)", str(refused.value))[1])
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hf")), *arguments[1:]],
        env=environment(hub, HF_TOKEN="write"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert holds(hub, made[1], "v1")
    assert hub.repositories["me/tiny"].private


def test_no_token_in_card_files_or_logs(hub, api, made, caplog):
    secret = "hf_secretsecretsecret"
    hub.tokens[secret] = "me"
    hub.fail("/commit/", 500, 403)
    with caplog.at_level(logging.DEBUG), pytest.raises(PushError) as refused:
        push_release(made[1], "me/tiny", api=HfApi(endpoint=hub.url, token=secret))
    assert secret not in str(refused.value)
    assert secret not in caplog.text
    assert not any(secret.encode() in path.read_bytes() for path in made[1].rglob("*") if path.is_file())


def test_offline_says_so_at_once(hub, api, made, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    waits = []
    monkeypatch.setattr("hf_jepa.hub.push.time.sleep", waits.append)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE"):
        push_release(made[1], "me/tiny", api=api)
    assert waits == []
    assert hub.requests == []


LOADER = """
import sys, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining
pixels, wanted = torch.load(sys.argv[1], weights_only=True)
for revision in ("main", "v1"):
    root = AutoModel.from_pretrained("me/tiny", revision=revision).eval()
    assert torch.equal(root(pixels).last_hidden_state, wanted)
    AutoImageProcessor.from_pretrained("me/tiny", revision=revision)
import hf_jepa
whole = AutoModelForPreTraining.from_pretrained("me/tiny", subfolder="pretraining", revision="v1")
assert torch.equal(whole.get_features(pixels), wanted)
try:
    AutoModel.from_pretrained("me/locked")
except OSError as error:
    assert "gated" in str(error).lower(), error
else:
    raise AssertionError("a gated repository was read without a token")
print("loaded")
"""


def test_a_stranger_loads_root_subfolder_and_revision(hub, api, made, tmp_path):
    model, folder = made
    push_release(folder, "me/tiny", api=api)
    push_release(folder, "me/tiny", revision="v1", api=api)
    push_release(folder, "me/locked", api=api)
    hub.repositories["me/locked"].gated = True
    pixels = torch.randn(2, 3, 8, 8)
    torch.save((pixels, model.eval().get_features(pixels)), tmp_path / "wanted.pt")
    command = [sys.executable, "-W", "ignore", "-c", LOADER, str(tmp_path / "wanted.pt")]
    env = environment(hub, HF_HOME=str(tmp_path))
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "loaded", done.stderr[-2000:]


def test_the_client_is_the_real_one(api):
    assert type(api) is huggingface_hub.HfApi
