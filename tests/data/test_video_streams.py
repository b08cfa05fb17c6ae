"""Streams of videos: the clips of the map-style dataset, without what is broken, and resumed."""

import logging
from itertools import islice

import fsspec
import pytest
import torch
from datasets import Dataset, Features, Image, Value, Video
from PIL import Image as PILImage

from hf_jepa.data import ClipSampler, SeededVideoDataset, SeededVideoStream, TooManyBadVideosError

SAMPLER = ClipSampler(4, frame_step=3)


class WithNoise:
    """The middle of each frame, and one draw of the transform's seed."""

    draws_from_torch_only = True

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, :, :4, :4].float() + torch.rand(())


@pytest.fixture
def paths(tmp_path, write_video) -> list[str]:
    return [str(write_video(tmp_path / f"{i}.mp4", num_frames=40, fps=8)) for i in range(4)]


def stream(cells: list, kind: type = Video, sampler: ClipSampler = SAMPLER, **options) -> SeededVideoStream:
    features = Features({"video": kind() if kind is not str else Value("string"), "label": Value("int64")})
    rows = Dataset.from_dict({"video": cells, "label": list(range(len(cells)))}, features=features)
    return SeededVideoStream(rows.to_iterable_dataset(), sampler, WithNoise(), label_column="label", **options)


def told(samples) -> list[tuple[int, int, bytes]]:
    return [(s["draw"], s["label"], s["pixel_values_videos"].numpy().tobytes()) for s in samples]


@pytest.mark.parametrize("kind", [Video, str])
def test_clips_are_those_of_the_map_style_dataset(paths, kind):
    rows = Dataset.from_dict({"video": paths, "label": [0, 1, 2, 3]})
    same = SeededVideoDataset(rows, SAMPLER, WithNoise(), label_column="label", seed=3)
    found = told(stream(paths, kind, seed=3))
    assert found == told(same[(index, index)] for index in range(4))
    assert len({pixels for _, _, pixels in found}) == 4
    assert found != told(stream(paths, kind, seed=4))


def test_what_is_broken_is_skipped_and_takes_no_draw(paths, caplog):
    cells = [paths[0], {"path": "broken.mp4", "bytes": b"\0" * 300}, *paths[1:]]
    with caplog.at_level(logging.WARNING):
        found = stream(cells)
        assert [(draw, label) for draw, label, _ in told(found)] == [(0, 0), (1, 2), (2, 3), (3, 4)]
    assert found.num_bad == 1
    assert "broken.mp4" in caplog.text
    with pytest.raises(TooManyBadVideosError, match=r"1 of the first 2 videos cannot be used.*broken.mp4"):
        list(stream(cells, max_bad_fraction=0.0))


def test_resumed_they_go_on(paths):
    whole, first = told(stream(paths)), stream(paths)
    seen = told(islice(first, 2))
    second = stream(paths)
    second.load_state_dict(first.state_dict())
    assert seen + told(second) == whole


def test_short_videos_repeat_frames_and_are_counted(paths, caplog):
    found = stream(paths, sampler=ClipSampler(4, frame_step=30))
    with caplog.at_level(logging.WARNING):
        assert len(list(found)) == found.num_padded == 4
    assert "1 videos of the stream are too short for 1 clip(s) of 4 frames, a step of 30" in caplog.text
    assert caplog.text.count("too short") == 1


def test_images_stand_still_and_addresses_are_read():
    buffer = fsspec.filesystem("memory").open("memory://still.png", "wb")
    with buffer:
        PILImage.new("RGB", (8, 8), (9, 9, 9)).save(buffer, "png")
    for kind, cell in ((Image, PILImage.new("RGB", (8, 8), (9, 9, 9))), (str, "memory://still.png")):
        (sample,) = stream([cell], kind, ClipSampler(2, frame_step=1))
        clip = sample["pixel_values_videos"]
        assert clip.shape == (2, 3, 4, 4)
        assert torch.equal(clip[0], clip[1])
