"""Videos that are kept as folders of frames."""

import numpy as np
import pytest
from PIL import Image

from hf_jepa.data import ClipSampler, SeededVideoDataset, load_video_dataset, open_video, video_train_transform
from hf_jepa.data.video_dataset import TooManyBadVideosError


def write_frames(folder, count: int, size: tuple[int, int] = (40, 30)) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        # Names that sort wrongly as text: frame10 before frame2.
        Image.fromarray(np.full((*size, 3), 10 * number, np.uint8)).save(folder / f"frame{number}.png")


@pytest.fixture
def tree(tmp_path):
    for split, clips in (("train", 3), ("test", 2)):
        for name in ("jump", "run"):
            for clip in range(clips):
                write_frames(tmp_path / split / name / f"clip{clip}", 12)
    return tmp_path


def test_a_tree_of_frames_is_a_dataset_of_moving_videos(tree):
    rows = load_video_dataset(tree, "train", label_column="label")
    assert len(rows) == 6
    assert rows.features["label"].names == ["jump", "run"]
    assert len(load_video_dataset(tree, "test[:50%]")) == 2
    sampler = ClipSampler(4, frame_step=2, random_start=False)
    sample = SeededVideoDataset(rows, sampler, video_train_transform(16), label_column="label")[5]
    assert sample["label"] == 1
    assert sample["pixel_values_videos"].shape == (4, 3, 16, 16)
    assert (sample["pixel_values_videos"].diff(dim=0) > 0).all()


def test_folders_in_a_list(tree):
    (tree / "list.csv").write_text("train/jump/clip0 3\ntest/run/clip1 4\n")
    rows = load_video_dataset(tree / "list.csv", label_column="label")
    assert rows["label"][:] == [3, 4]
    with open_video(rows[0]["video"]) as video:
        assert video.num_frames == 12
        assert video.frames([11, 2, 11])[:, 0, 0, 0].tolist() == [110, 20, 110]


def test_frames_have_no_clock(tree):
    clips = SeededVideoDataset(load_video_dataset(tree, "train"), ClipSampler(4, fps=4), video_train_transform(16))
    with pytest.raises(TooManyBadVideosError, match="frames in a folder have no clock: choose clips by frame_step"):
        clips[0]


def test_trees_that_are_not_alike_and_frames_of_several_sizes(tmp_path):
    write_frames(tmp_path / "a" / "train" / "clip", 3)
    write_frames(tmp_path / "a" / "train" / "run" / "clip", 3)
    with pytest.raises(ValueError, match=r"folders of images at depths \[1, 2\]"):
        load_video_dataset(tmp_path / "a")
    write_frames(tmp_path / "b" / "clip", 3)
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "clip" / "frame9.png")
    with open_video(tmp_path / "b" / "clip") as video, pytest.raises(ValueError, match="different sizes"):
        video.frames([0, 3])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder has no images"):
        open_video(tmp_path / "empty")


def test_clips_padded_by_repetition_are_counted_and_said(tmp_path, caplog):
    for clip, count in enumerate((12, 3, 3, 2, 12)):
        write_frames(tmp_path / f"clip{clip}", count)
    rows = load_video_dataset(tmp_path)
    clips = SeededVideoDataset(rows, ClipSampler(4, frame_step=1, random_start=False), video_train_transform(16))
    with caplog.at_level("WARNING", logger="hf_jepa"):
        for draw in range(2):
            clips.__getitems__([(index, 5 * draw + index) for index in range(5)])
    assert clips.num_padded == 3
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "1 of 5 videos are too short for 1 clip(s) of 4 frames" in said[0]
    assert "row 1, of 3 frames" in said[0]
