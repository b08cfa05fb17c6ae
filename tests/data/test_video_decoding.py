"""Frames by number and by time, of every container, by both decoders."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_jepa.data import VideoDecodeError, decode_frames, open_video, probe_video, video_backend
from hf_jepa.data import video_decoding as decoding

needs_torchcodec = pytest.mark.skipif(not decoding.torchcodec_works(), reason="torchcodec finds no FFmpeg libraries")
BACKENDS = ["pyav", pytest.param("torchcodec", marks=needs_torchcodec)]
CONTAINERS = [
    ("a.mp4", {"codec": "mpeg4"}),
    ("b.mp4", {"codec": "libx264", "b_frames": 2}),
    ("c.mkv", {"codec": "libx264", "b_frames": 2}),
    ("d.avi", {"codec": "mpeg4", "b_frames": 2}),
    ("e.ts", {"codec": "libx264", "b_frames": 2}),
    ("f.webm", {"codec": "libvpx-vp9"}),
    ("g.mpg", {"codec": "mpeg2video", "b_frames": 2, "fps": 25}),
    ("h.h264", {"codec": "libx264", "b_frames": 2, "fps": 25}),
]


@pytest.mark.parametrize(("name", "options"), CONTAINERS, ids=[name for name, _ in CONTAINERS])
def test_frames_by_number_are_those_of_playing_the_file(tmp_path, write_video, frame_numbers, name, options):
    path = write_video(tmp_path / name, num_frames=40, **options)
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width, info.rotation) == (40, 32, 48, 0)
    assert info.fps == options.get("fps", 10)
    assert info.duration == pytest.approx(40 / info.fps)
    with open_video(path) as video:
        for indices in ([0], [39], [3, 4, 5], [30, 2, 17, 2, 39], list(range(40)), [12, 13, 33]):
            frames = video.frames(indices)
            assert frames.shape == (len(indices), 3, 32, 48)
            assert frames.dtype == torch.uint8
            assert frame_numbers(frames) == indices
        assert frame_numbers(video.frames_at((np.arange(40) + 0.5) / 40)) == list(range(40))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_way_to_give_a_video(tmp_path, write_video, frame_numbers, backend):
    path = write_video(tmp_path / "clip.mp4")
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), {"path": str(path), "bytes": None}, {"bytes": data}):
        assert frame_numbers(decode_frames(source, [5, 11], backend)) == [5, 11]


def test_a_title_in_another_encoding_is_no_fault(tmp_path, write_video, frame_numbers):
    import av

    path = write_video(tmp_path / "clip.mkv")
    with av.open(str(path)) as source, av.open(str(tmp_path / "titled.mkv"), "w") as titled:
        titled.metadata["title"] = "A TITLE TO SPOIL"
        stream = titled.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                titled.mux(packet)
    data = (tmp_path / "titled.mkv").read_bytes()
    assert data.count(b"A TITLE TO SPOIL") == 1
    assert frame_numbers(decode_frames(data.replace(b"A TITLE", b"\xdcBERSI"), [5, 11], "pyav")) == [5, 11]


def test_a_decoder_of_datasets_is_read_through_its_file(tmp_path, write_video, frame_numbers):
    class Decoder:
        _hf_encoded = {"path": str(write_video(tmp_path / "clip.mp4")), "bytes": None}

    assert frame_numbers(decode_frames(Decoder(), [7])) == [7]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotated_videos_are_shown_upright(tmp_path, write_video, backend, rotation):
    upright = decode_frames(write_video(tmp_path / "plain.mp4"), [9], backend)
    path = write_video(tmp_path / "turned.mp4", rotation=rotation)
    info = probe_video(path, backend)
    assert info.rotation == rotation % 360
    assert (info.height, info.width) == ((32, 48) if rotation == 180 else (48, 32))
    # Counter-clockwise, as a display matrix says
    assert torch.equal(decode_frames(path, [9], backend), torch.rot90(upright, rotation // 90, (2, 3)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_variable_frame_rate_is_read_by_the_clock(tmp_path, write_video, frame_numbers, backend):
    seconds = [0, 0.1, 0.2, 0.3, 0.4, 1.4, 1.5, 2.5, 2.6, 2.7]
    path = write_video(tmp_path / "clip.mkv", num_frames=10, seconds=seconds)
    with open_video(path, backend) as video:
        assert video.num_frames == 10
        assert video.duration == pytest.approx(2.8)
        shown = frame_numbers(video.frames_at((np.arange(28) + 0.5) / 28))
        assert shown == [0, 1, 2, 3] + 10 * [4] + [5] + 10 * [6] + [7, 8, 9]
        assert frame_numbers(video.frames([4, 5, 6])) == [4, 5, 6]


@needs_torchcodec
def test_both_decoders_give_the_same_pixels(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mp4", codec="libx264", b_frames=2, num_frames=40, size=(50, 70))
    first, second = (decode_frames(path, range(0, 40, 3), backend) for backend in ("pyav", "torchcodec"))
    # One FFmpeg may round colours unlike another.
    assert (first.int() - second.int()).abs().max() <= 2


def test_images_are_videos_of_one_frame(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "still.png")
    frames = decode_frames(tmp_path / "still.png", [0, 0, 0])
    assert torch.equal(frames, torch.from_numpy(pixels).permute(2, 0, 1).expand(3, -1, -1, -1))
    info = probe_video(tmp_path / "still.png")
    assert (info.num_frames, info.fps, info.height, info.width) == (1, 0.0, 6, 8)


def test_only_frames_that_are_there_can_be_asked_for(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mp4")
    for indices in ([20], [-1], []):
        with pytest.raises(VideoDecodeError, match="0 to 19"):
            decode_frames(path, indices)
    with pytest.raises(ValueError, match="backend must be one of"):
        decode_frames(path, [0], "opencv")


def test_pyav_stands_in_for_a_torchcodec_without_ffmpeg(monkeypatch):
    class Broken:
        def __init__(self, source):
            raise RuntimeError("Could not load libtorchcodec. Likely causes: ...")

    class Working:
        def __init__(self, source):
            raise ValueError("no video stream")

    for decoder, expected in ((Broken, "pyav"), (Working, "torchcodec")):
        module = type(sys)("torchcodec.decoders")
        module.VideoDecoder = decoder
        monkeypatch.setitem(sys.modules, "torchcodec", type(sys)("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
        decoding.torchcodec_works.cache_clear()
        assert video_backend() == expected
        assert video_backend(b"\0\0\0\x20ftypisom") == expected
        # torchcodec's random access is not exact in these.
        assert video_backend(b"RIFF\0\0\0\0AVI ") == "pyav"
    decoding.torchcodec_works.cache_clear()


def test_without_any_decoder_the_extra_is_named(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "clip.mp4")
    for module in ("av", "torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)
    decoding.torchcodec_works.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'hf-jepa\[video\]'"):
        decode_frames(path, [0])
    decoding.torchcodec_works.cache_clear()
