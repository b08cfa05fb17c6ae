"""Hostile and broken videos: named, counted, replaced; never a dead worker, never another file opened."""

import socket
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value, Video
from torch.utils.data import DataLoader

from hf_jepa.data import (
    ClipSampler,
    SeededVideoDataset,
    TooManyBadVideosError,
    VideoDecodeError,
    decode_frames,
    open_video,
    probe_video,
)
from hf_jepa.data import video_decoding as decoding
from hf_jepa.data import video_readers as readers

needs_torchcodec = pytest.mark.skipif(not decoding.torchcodec_works(), reason="torchcodec finds no FFmpeg libraries")
BACKENDS = ["pyav", pytest.param("torchcodec", marks=needs_torchcodec)]


@pytest.fixture
def good(tmp_path, write_video) -> bytes:
    return write_video(tmp_path / "good.mp4", num_frames=30).read_bytes()


@pytest.fixture
def bad(tmp_path, write_video, good) -> dict[str, bytes]:
    """One of each kind."""
    import av

    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    small, large = (
        write_video(tmp_path / f"{name}.h264", size=size, codec="libx264").read_bytes()
        for name, size in (("small", (32, 48)), ("large", (48, 64)))
    )
    return {
        "zero_bytes": b"",
        "text": b"<html>404 Not Found</html>",
        "random": np.random.default_rng(0).bytes(4000),
        "truncated": good[:-200],
        "header_only": good[:36],
        "audio_only": (tmp_path / "audio.mp4").read_bytes(),
        "one_frame": write_video(tmp_path / "one.mp4", num_frames=1).read_bytes(),
        "playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://localhost:1/segment.ts\n",
        "changing_size": small + large,
    }


KINDS = [
    "zero_bytes", "text", "random", "truncated", "header_only", "audio_only", "one_frame", "playlist", "changing_size",
]  # fmt: skip


def whole(frames: torch.Tensor) -> torch.Tensor:
    return frames.float()


def build(cells: list, sampler: ClipSampler | None = None, **kwargs) -> SeededVideoDataset:
    feature = Value("binary") if isinstance(cells[0], bytes) else Video()
    rows = {"video": cells, "label": list(range(len(cells)))}
    dataset = Dataset.from_dict(rows, features=Features({"video": feature, "label": Value("int64")}))
    sampler = sampler or ClipSampler(4, frame_step=8, random_start=False)
    return SeededVideoDataset(dataset, sampler, whole, label_column="label", **kwargs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_video_is_counted_named_once_and_replaced_by_the_next(good, bad, kind, backend, caplog):
    dataset = build([good, bad[kind], good], max_bad_fraction=0.5, backend=backend)
    for draw in range(3):
        sample = dataset[(1, draw)]
        assert (sample["label"], sample["draw"]) == (2, draw)
        assert torch.equal(sample["pixel_values_videos"], dataset[(2, draw)]["pixel_values_videos"])
    assert dataset.num_bad == 1
    named = [record.getMessage() for record in caplog.records if "Unusable video" in record.getMessage()]
    assert len(named) == 1
    assert "row 1" in named[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zero_bytes", "zero bytes"),
        ("truncated", "cannot be decoded"),
        ("audio_only", "no video stream, only audio"),
        ("playlist", "playlist"),
        ("changing_size", "frames change from 48x32 to 64x48 pixels"),
    ],
)
def test_errors_say_what_is_wrong(bad, kind, message):
    with pytest.raises(VideoDecodeError, match=message), open_video(bad[kind], "pyav") as video:
        video.frames(range(video.num_frames))


def test_run_stops_above_the_threshold_and_keeps_stopping(good):
    dataset = build([good, b"junk", good, b"", good], max_bad_fraction=0.2)
    assert dataset[1]["label"] == 2
    for _ in range(2):
        with pytest.raises(TooManyBadVideosError, match=r"2 of 5 videos.*row 3.*zero bytes"):
            dataset[3]
    with pytest.raises(TooManyBadVideosError):
        build([b"junk"] * 3, max_bad_fraction=0.9)[0]


def test_workers_survive_and_share_one_count(good):
    dataset = build([good, b"", good, b"junk", good, good], max_bad_fraction=0.5)
    samples = [s for batch in DataLoader(dataset, 1, num_workers=2, collate_fn=list) for s in batch]
    assert [sample["label"] for sample in samples] == [0, 2, 2, 4, 4, 5]
    assert dataset.num_bad == 2


def test_missing_files_and_folders_are_replaced(tmp_path, good):
    (tmp_path / "there.mp4").write_bytes(good)
    paths = [str(tmp_path / "gone.mp4"), str(tmp_path), str(tmp_path / "there.mp4")]
    assert build([{"path": path, "bytes": None} for path in paths], max_bad_fraction=0.9)[0]["label"] == 2


def test_a_sample_does_not_depend_on_what_failed_before(bad, good):
    """A broken place spoils the clips that hold it, and no others."""
    used, fresh = (
        build([bad["changing_size"], good], ClipSampler(4, frame_step=2), max_bad_fraction=0.9) for _ in range(2)
    )
    labels = {used[(0, draw)]["label"] for draw in range(12)}
    assert labels == {0, 1}
    for draw in range(11, -1, -1):
        ours, expected = used[(0, draw)], fresh[(0, draw)]
        assert ours["label"] == expected["label"]
        assert torch.equal(ours["pixel_values_videos"], expected["pixel_values_videos"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cut_video_gives_true_frames_or_an_error(tmp_path, write_video, frame_numbers, backend):
    # The header comes first and promises 60 frames; the rest is cut at various places.
    path = write_video(tmp_path / "long.mp4", num_frames=60, options={"movflags": "faststart"})
    data = path.read_bytes()
    given = 0
    for share in (0.55, 0.7, 0.85, 0.95):
        try:
            with open_video(data[: int(len(data) * share)], backend) as video:
                count = video.num_frames
                numbers = frame_numbers(video.frames(range(count)))
        except VideoDecodeError:
            continue
        given += 1
        # The last packet may be half there.
        assert numbers[: count - 1] == list(range(count - 1))
        assert count < 60 or backend == "torchcodec"
    assert given or backend == "torchcodec"


def test_one_frame_and_short_videos(tmp_path, write_video, frame_numbers):
    one = write_video(tmp_path / "one.mp4", num_frames=1).read_bytes()
    assert frame_numbers(decode_frames(one, [0])) == [0]
    assert probe_video(one).num_frames == 1
    for sampler in (ClipSampler(4, frame_step=2), ClipSampler(4, fps=4)):
        sample = build([one], sampler, min_frames=1)[0]
        assert frame_numbers(sample["pixel_values_videos"]) == [0, 0, 0, 0]
    short = write_video(tmp_path / "short.mp4", num_frames=5).read_bytes()
    sample = build([short], ClipSampler(4, frame_step=2))[0]
    assert frame_numbers(sample["pixel_values_videos"]) == [0, 4, 4, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_clips_that_would_not_fit_into_memory_are_refused(good, backend, monkeypatch):
    monkeypatch.setattr(readers, "MAX_CLIP_BYTES", 3 * 32 * 48 * 3)
    assert len(decode_frames(good, [0, 1, 2], backend)) == 3
    with pytest.raises(VideoDecodeError, match="4 frames of 48x32 pixels"):
        decode_frames(good, [0, 1, 2, 3], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_bytes_never_escape_the_guard(good, backend):
    """Flipped and missing bytes end in frames or in a VideoDecodeError, whatever FFmpeg makes of them."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), rng.integers(1, 30)):
            damaged[place] = rng.integers(256)
        damaged = bytes(damaged[: rng.integers(len(good) // 2, len(good) + 1)])
        try:
            with open_video(damaged, backend) as video:
                frames = video.frames([0, video.num_frames - 1])
        except VideoDecodeError:
            continue
        assert frames.shape[:2] == (2, 3)


def test_addresses_inside_and_outside_of_files_are_not_opened(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    playlists = (
        b"#EXTM3U\nhttp://localhost:1/a.ts\n",
        b"ffconcat version 1.0\nfile a.mp4\n",
        b" <?xml ?><MPD/>",
    )
    for text in playlists:
        (tmp_path / "list.mp4").write_bytes(text)
        for source in (text, tmp_path / "list.mp4"):
            with pytest.raises(VideoDecodeError, match="playlist"):
                decode_frames(source, [0])
    for source in ("concat:a.mp4|b.mp4", "file:/etc/passwd", "pipe:0"):
        with pytest.raises(VideoDecodeError, match="no file"):
            decode_frames(source, [0])


def test_a_missing_decoder_is_said_before_the_run(good, monkeypatch):
    dataset = Dataset.from_dict({"video": [good]})
    for module in ("av", "torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)
    decoding.torchcodec_works.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'hf-jepa\[video\]'"):
        SeededVideoDataset(dataset, ClipSampler(4, fps=4), whole)
    decoding.torchcodec_works.cache_clear()
