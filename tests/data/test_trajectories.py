import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from hf_jepa.data import (
    ArrayTrajectories,
    CachedLatents,
    LeRobotTrajectories,
    TooManyBadEpisodesError,
    TrajectoryWindows,
    action_statistics,
    collate_windows,
)

GOLDEN = Path(__file__).parents[1] / "golden"
UNIT = {"mean": [0.0, 0.0], "std": [1.0, 1.0]}


def episodes(*lengths, skip_last=True):
    """Frames that say which episode and row they are, actions that say it too."""
    frames, actions = [], []
    for number, length in enumerate(lengths):
        rows = np.arange(length)
        frame = np.zeros((length, 4, 4, 3), dtype=np.uint8)
        frame[..., 0], frame[..., 1] = number, rows[:, None, None]
        frames.append(frame)
        actions.append(np.stack([np.full(length, number), rows], 1).astype(np.float32)[: length - skip_last])
    return ArrayTrajectories(actions, frames)


def test_recorded_windows_of_lewm():
    tensors = load_file(GOLDEN / "lewm_data.safetensors")
    config = json.loads((GOLDEN / "lewm_data.json").read_text())["config"]
    ends = tensors["input/episode_lengths"].cumsum(0).tolist()
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    source = ArrayTrajectories(
        [tensors["input/action"][part].numpy() for part in parts],
        [tensors["input/pixels_uint8"][part].numpy() for part in parts],
    )
    statistics = action_statistics(source)
    np.testing.assert_allclose(statistics.mean, tensors["expected/mean"][0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, tensors["expected/std"][0].numpy(), rtol=1e-6)
    windows = TrajectoryWindows(
        source, config["num_steps"], config["frameskip"], mean=statistics.mean, std=statistics.std
    )
    assert [list(map(int, start)) for start in tensors["expected/starts"]] == [
        list(windows.locate(index)) for index in range(len(windows))
    ]
    samples = [windows[index] for index in range(len(windows))]
    assert torch.equal(torch.stack([each["pixel_values"] for each in samples]), tensors["expected/pixels_u8"])
    blocks = torch.stack([each["actions"] for each in samples])
    torch.testing.assert_close(blocks, tensors["expected/blocks_model"], atol=2e-6, rtol=0)
    known = tensors["expected/raw_blocks"].isfinite().all(-1)
    assert torch.equal(torch.stack([each["action_mask"] for each in samples]), known)
    assert windows.num_short == 1


def test_windows_never_cross_episodes_and_start_anywhere():
    windows = TrajectoryWindows(episodes(7, 3, 2, 9), 3, 1, **UNIT)
    starts = []
    for index in range(len(windows)):
        frames = windows[index]["pixel_values"][:, :2, 0, 0].tolist()
        assert len({episode for episode, _ in frames}) == 1
        assert [row for _, row in frames] == list(range(frames[0][1], frames[0][1] + 3))
        starts.append(tuple(frames[0]))
    # The last frame of an episode is used, and a clip exactly as long as the window is one.
    assert starts == [(0, row) for row in range(5)] + [(1, 0)] + [(3, row) for row in range(7)]
    assert windows.num_short == 1


def test_blocks_hold_all_actions_between_frames():
    windows = TrajectoryWindows(episodes(8), 2, 3, mean=[0.0, 1.0], std=[1.0, 2.0])
    sample = windows[1]
    assert sample["pixel_values"][:, 1, 0, 0].tolist() == [1, 4]
    rows = torch.arange(1, 7).view(2, 3)
    expected = torch.stack([torch.zeros(2, 3), (rows - 1) / 2], -1).flatten(1)
    torch.testing.assert_close(sample["actions"], expected)


def test_a_missing_action_is_masked_and_zero():
    sample = TrajectoryWindows(episodes(4), 2, 2, mean=[3.0, 3.0], std=[1.0, 1.0])[0]
    assert sample["action_mask"].tolist() == [True, False]
    assert sample["actions"][1].tolist() == [-3.0, -1.0, 0.0, 0.0]


def test_held_out_episodes_stay_out():
    windows = TrajectoryWindows(episodes(4, 4, 4), 2, 1, **UNIT, episodes=[2, 0])
    assert {windows.locate(index)[0] for index in range(len(windows))} == {0, 2}
    statistics = action_statistics(episodes(4, 4, 4), [2, 0])
    assert statistics.mean[0] == 1.0
    assert statistics.high == [2.0, 2.0]


def test_two_workers_read_what_one_process_reads():
    windows = TrajectoryWindows(episodes(6, 7), 3, 1, **UNIT)
    alone, shared = (
        torch.cat([batch["actions"] for batch in DataLoader(windows, 2, num_workers=workers)]) for workers in (0, 2)
    )
    assert torch.equal(alone, shared)


class Damaged(ArrayTrajectories):
    def frames(self, episode, rows):
        if episode in (1, 2):
            raise OSError("truncated file")
        return super().frames(episode, rows)


def test_episodes_that_cannot_be_read_are_counted_and_replaced():
    whole = episodes(4, 4, 4, 4)
    source = Damaged([whole.actions(i) for i in range(4)], [whole.frames(i, np.arange(4)) for i in range(4)])
    windows = TrajectoryWindows(source, 2, 1, **UNIT, max_bad_fraction=0.5)
    seen = {int(windows[index]["pixel_values"][0, 0, 0, 0]) for index in range(len(windows))}
    assert seen == {0, 3}
    assert windows.num_bad == 2
    strict = TrajectoryWindows(source, 2, 1, **UNIT, max_bad_fraction=0.25)
    with pytest.raises(TooManyBadEpisodesError, match=r"2 of 4 episodes cannot be read.*truncated file"):
        [strict[index] for index in range(len(strict))]


def test_frames_of_two_sizes_are_named():
    sizes = {"actions": torch.zeros(2, 1), "action_mask": torch.ones(2, dtype=torch.bool)}
    samples = [{"pixel_values": torch.zeros(2, 3, side, 8, dtype=torch.uint8), **sizes} for side in (8, 4)]
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 8\) and \(2, 3, 8, 8\): give all episodes one size"):
        collate_windows(samples)


def test_states_are_checked():
    states = [np.arange(8, dtype=np.float32).reshape(4, 2), np.full((4, 2), np.nan, dtype=np.float32)]
    actions = [np.zeros((3, 2))] * 2
    source = ArrayTrajectories(actions, states=states, render=lambda s: np.zeros((len(s), 2, 2, 1), np.uint8))
    windows = TrajectoryWindows(source, 2, 1, **UNIT, states=True, max_bad_fraction=0.5)
    assert windows[1]["states"].tolist() == [[2, 3], [4, 5]]
    # The second episode is left out for its NaN.
    assert windows[3]["states"].tolist() == windows[0]["states"].tolist()
    with pytest.raises(ValueError, match="no states.*`state_column`"):
        TrajectoryWindows(episodes(4), 2, 1, **UNIT, states=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArrayTrajectories([], []), "no episode"),
        (lambda: ArrayTrajectories([np.zeros((3, 2))], [np.zeros((5, 4, 4, 3), np.uint8)]), r"\(4 or 5, 2\)"),
        (lambda: ArrayTrajectories([np.zeros((3, 2))]), "Give `frames`"),
        (lambda: ArrayTrajectories([np.zeros(3)], [np.zeros((4, 2, 2, 1), np.uint8)]), r"actions of shape \(3,\)"),
        (lambda: ArrayTrajectories([np.zeros((3, 2))], [np.zeros((4, 8, 8), np.uint8)]), r"must be \(rows, height"),
        (
            lambda: ArrayTrajectories([np.zeros((3, 2))], [np.zeros((4, 8, 8, 3))]),
            r"float64; they must be \(rows, height",
        ),
        (
            lambda: ArrayTrajectories([np.zeros((3, 2))], [np.zeros((4, 2, 2, 1), np.uint8)], [np.zeros(4)]),
            r"they must be \(rows, state_dim\)",
        ),
        (
            lambda: action_statistics(ArrayTrajectories([np.zeros((0, 2))], [np.zeros((1, 2, 2, 1), np.uint8)])),
            "no row",
        ),
        (lambda: TrajectoryWindows(episodes(4, 6), 4, 2, **UNIT), r"needs 8 rows, the longest of 2 episodes has 6"),
        (lambda: TrajectoryWindows(episodes(4), 0, 1, **UNIT), "at least 1"),
        (lambda: TrajectoryWindows(episodes(4), 2, 1, mean=[0.0], std=[1.0]), "need 2 numbers each"),
        (lambda: action_statistics(episodes(1)), "no row with an action"),
        (lambda: action_statistics(episodes(5)), r"dimensions \[0\] never change"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lists_are_episodes(tmp_path):
    """As `datasets` gives them: nested lists, integers, an episode of a single row among others."""
    source = ArrayTrajectories(
        [[[0, 1], [2, 0]], np.zeros((0, 2))], [np.zeros((3, 2, 2, 1), np.uint8), np.zeros((1, 2, 2, 1), np.uint8)]
    )
    assert source.actions(0)[:2].tolist() == [[0.0, 1.0], [2.0, 0.0]]
    assert source.lengths.tolist() == [3, 1]
    windows = TrajectoryWindows(source, 2, 1, **UNIT)
    assert (len(windows), windows.num_short) == (2, 1)


def test_latents_are_cached_once_and_go_on_after_a_stop(tmp_path):
    source = episodes(5, 3, 4)
    calls = []

    def encode(frames, fail_at=None):
        calls.append(len(frames))
        if fail_at is not None and len(calls) > fail_at:
            raise KeyboardInterrupt
        return torch.from_numpy(frames[:, 0, :2, :2].astype(np.float32)) / 2

    with pytest.raises(KeyboardInterrupt):
        CachedLatents(source, lambda frames: encode(frames, 2), tmp_path, "enc", batch_size=8)
    assert calls == [5, 3, 4]
    calls.clear()
    cached = CachedLatents(source, encode, tmp_path, "enc", batch_size=3)
    assert calls == [2, 2]
    windows = TrajectoryWindows(cached, 2, 1, **UNIT)
    sample = windows[len(windows) - 1]
    assert sample["latents"].shape == (2, 2, 2)
    assert sample["latents"][:, 0].tolist() == [[1.0, 1.0], [1.0, 1.5]]
    again = pickle.loads(pickle.dumps(windows))
    assert torch.equal(again[0]["latents"], windows[0]["latents"])
    calls.clear()
    CachedLatents(source, encode, tmp_path, "enc")
    assert not calls
    with pytest.raises(ValueError, match="holds latents of 'enc', 3 episodes"):
        CachedLatents(source, encode, tmp_path, "other")


@pytest.mark.parametrize("broken", [0, 1])
def test_episodes_that_cannot_be_encoded_are_counted_when_they_are_asked_for(tmp_path, broken):
    source = episodes(5, 3, 4)
    frames = source.frames

    def damaged(episode, rows):
        if episode == broken:
            raise OSError("moov atom not found")
        return frames(episode, rows)

    source.frames = damaged

    def encode(pixels):
        return torch.from_numpy(pixels[:, 0, :2, :2].astype(np.float32)) / 2

    for _ in range(2):  # the second from disk
        cached = CachedLatents(source, encode, tmp_path, "enc", dtype="float16")
        windows = TrajectoryWindows(cached, 2, 1, **UNIT, max_bad_fraction=0.4)
        found = [windows[index]["latents"] for index in range(len(windows))]
        assert windows.num_bad == 1
        assert found[0].dtype == torch.float32
        with pytest.raises(ValueError, match="when it was encoded: OSError: moov atom"):
            cached.frames(broken, np.arange(1))
    expected = encode(frames(2, np.arange(2))).float()
    assert torch.equal(windows[len(windows) - 3]["latents"], expected)
    source.frames = lambda episode, rows: 1 / 0
    with pytest.raises(ValueError, match="None of 3 episodes can be read; the first: ZeroDivisionError"):
        CachedLatents(source, encode, tmp_path / "other", "enc")


def write_lerobot(folder, version, lengths, fps=10):
    """A dataset of mp4 files whose red channel says row and whose green one episode."""
    av = pytest.importorskip("av")
    features = {"observation.images.top": {"dtype": "video"}, "action": {"dtype": "float32"}}
    features |= {"observation.state": {"dtype": "float32"}}
    info = {"codebase_version": version, "fps": fps, "chunks_size": 2, "features": features}
    columns = Features(
        {
            "action": List(Value("float32"), length=2),
            "observation.state": List(Value("float32"), length=1),
            "timestamp": Value("float32"),
            "episode_index": Value("int64"),
        }
    )

    def rows(number, length):
        return {
            "action": [[number, row] for row in range(length)],
            "observation.state": [[row / 2] for row in range(length)],
            "timestamp": np.arange(length) / fps,
            "episode_index": [number] * length,
        }

    def video(path, pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "0"})
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv444p"
            for number, row in pictures:
                picture = np.zeros((32, 32, 3), dtype=np.uint8)
                picture[..., 0], picture[..., 1] = 20 * row, 60 * number
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())

    if version.startswith("v2"):
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        for number, length in enumerate(lengths):
            path = folder / f"data/chunk-{number // 2:03d}/episode_{number:06d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(rows(number, length), columns).to_parquet(path)
            name = info["video_path"].format(
                episode_chunk=number // 2, video_key="observation.images.top", episode_index=number
            )
            video(folder / name, [(number, row) for row in range(length)])
    else:
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        table = {name: [] for name in columns}
        for number, length in enumerate(lengths):
            for name, values in rows(number, length).items():
                table[name].extend(values)
        (folder / "data/chunk-000").mkdir(parents=True)
        Dataset.from_dict(table, columns).to_parquet(folder / "data/chunk-000/file-000.parquet")
        prefix = "videos/observation.images.top"
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        meta = {
            "episode_index": list(range(len(lengths))),
            f"{prefix}/chunk_index": [0] * len(lengths),
            f"{prefix}/file_index": [0] * len(lengths),
            f"{prefix}/from_timestamp": (starts / fps).tolist(),
        }
        (folder / "meta/episodes/chunk-000").mkdir(parents=True)
        Dataset.from_dict(meta).to_parquet(folder / "meta/episodes/chunk-000/file-000.parquet")
        pictures = [(number, row) for number, length in enumerate(lengths) for row in range(length)]
        video(folder / f"{prefix}/chunk-000/file-000.mp4", pictures)
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta/info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_layouts(tmp_path, version):
    write_lerobot(tmp_path, version, [5, 3, 6])
    source = pickle.loads(pickle.dumps(LeRobotTrajectories(tmp_path)))
    assert source.lengths.tolist() == [5, 3, 6]
    windows = TrajectoryWindows(source, 2, 1, **UNIT, states=True)
    for index in range(len(windows)):
        episode, start = windows.locate(index)
        sample = windows[index]
        assert sample["actions"].tolist() == [[episode, start], [episode, start + 1]]
        assert sample["states"].flatten().tolist() == [start / 2, (start + 1) / 2]
        color = sample["pixel_values"].float().mean((2, 3))
        expected = torch.tensor([[20.0 * row, 60.0 * episode] for row in (start, start + 1)])
        assert (color[:, :2] - expected).abs().max() < 4


def test_lerobot_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no meta/info\.json"):
        LeRobotTrajectories(tmp_path)
    write_lerobot(tmp_path, "v2.1", [4])
    with pytest.raises(ValueError, match="no column 'actions'; there are observation"):
        LeRobotTrajectories(tmp_path, action="actions")
    info = json.loads((tmp_path / "meta/info.json").read_text())
    (tmp_path / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    with pytest.raises(ValueError, match=r"has version 1\.6"):
        LeRobotTrajectories(tmp_path)
    info["features"]["second"] = {"dtype": "video"}
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="Say which camera"):
        LeRobotTrajectories(tmp_path)
