"""DROID's raw layout. h5py is stood in for by a module that reads numpy archives: the layout is what is tested."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from hf_jepa import VJepa2ACModel, VJepaConfig, VJepaModel
from hf_jepa.data import DroidTrajectories, TrajectoryWindows
from hf_jepa.planning import CEMPlanner
from hf_jepa.poses import integrate_pose
from hf_jepa.programs.train_world_model import main

av = pytest.importorskip("av")


class Archive:
    def __init__(self, path, mode):
        self.values = np.load(path)

    def __enter__(self):
        return self.values

    def __exit__(self, *error):
        self.values.close()


@pytest.fixture(autouse=True)
def h5py(monkeypatch):
    module = types.ModuleType("h5py")
    module.File = Archive
    monkeypatch.setitem(sys.modules, "h5py", module)


def write_episode(folder, length, video_fps=15, seed=0):
    draws = np.random.default_rng(seed)
    (folder / "recordings/MP4").mkdir(parents=True)
    position = np.cumsum(draws.normal(0, 0.02, (length, 6)), axis=0)
    gripper = draws.random(length)
    with (folder / "trajectory.h5").open("wb") as file:
        np.savez(
            file,
            **{
                "observation/robot_state/cartesian_position": position,
                "observation/robot_state/gripper_position": gripper,
            },
        )
    (folder / "metadata_1.json").write_text(json.dumps({"left_mp4_path": "a/b/recordings/MP4/23.mp4"}))
    with av.open(str(folder / "recordings/MP4/23.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=video_fps, options={"crf": "0"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        for row in range(length):
            picture = np.full((32, 32, 3), 4 * row, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return np.concatenate([position, gripper[:, None]], axis=1)


def test_states_are_thinned_before_they_are_differenced(tmp_path):
    poses = [
        write_episode(tmp_path / name, length, seed=seed)
        for seed, (name, length) in enumerate(zip("ab", (41, 23), strict=True))
    ]
    (tmp_path / "list.csv").write_text("a\nb,ignored\n\n")
    source = DroidTrajectories(tmp_path / "list.csv", fps=4)
    # 15 frames per second, every fourth.
    assert source.lengths.tolist() == [11, 6]
    for episode, pose in enumerate(poses):
        kept = pose[::4]
        np.testing.assert_allclose(source.states(episode), kept, atol=1e-6)
        actions = source.actions(episode)
        assert np.isnan(actions[-1]).all()
        reached = integrate_pose(torch.from_numpy(kept[:-1]), torch.from_numpy(actions[:-1].astype(np.float64)))
        np.testing.assert_allclose(reached[:, :3], kept[1:, :3], atol=1e-6)
        np.testing.assert_allclose(reached[:, 6], kept[1:, 6], atol=1e-6)
        frames = source.frames(episode, np.array([0, 2, 5]))
        assert np.abs(frames.astype(float).mean((1, 2, 3)) - [0, 32, 80]).max() < 2
    windows = TrajectoryWindows(source, 4, mean=[0.0] * 7, std=[1.0] * 7, states=True)
    sample = windows[len(windows) - 1]
    assert sample["pixel_values"].shape == (4, 3, 32, 32)
    assert sample["states"].shape == (4, 7)
    assert sample["action_mask"].tolist() == [True, True, True, False]


def test_faults_are_named(tmp_path, monkeypatch):
    write_episode(tmp_path / "a", 12)
    listing = tmp_path / "list.txt"
    listing.write_text("\n")
    with pytest.raises(ValueError, match="lists no episode"):
        DroidTrajectories(listing)
    listing.write_text("a\nmissing\n")
    with pytest.raises(ValueError, match="is no DROID episode"):
        DroidTrajectories(listing)
    listing.write_text("a\n")
    with pytest.raises(ValueError, match="names no wrist_mp4_path"):
        DroidTrajectories(listing, camera="wrist")
    (tmp_path / "a/recordings/MP4/23.mp4").unlink()
    with pytest.raises(ValueError, match=r"lacks the video 23\.mp4"):
        DroidTrajectories(listing)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="needs h5py"):
        DroidTrajectories(listing)


@pytest.mark.slow
def test_the_published_recipe_trains_on_them(tmp_path):
    """From listing to release: all that the recipe says but its sizes, through cached latents."""
    for number in range(3):
        write_episode(tmp_path / f"data/episode{number}", length=40, seed=number)
    (tmp_path / "data/all.csv").write_text("".join(f"episode{number}\n" for number in range(3)))
    config = VJepaConfig.from_size(
        "tiny", crop_size=32, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, frames_per_clip=2
    )
    VJepaModel(config).save_pretrained(tmp_path / "encoder")
    flags = {
        "dataset": tmp_path / "data/all.csv",
        "from_encoder": tmp_path / "encoder",
        "method": "{hidden_size: 12, num_hidden_layers: 1, num_attention_heads: 2}",
        "latent_cache": tmp_path / "latents",
        "held_out": 0,
        "max_steps": 2,
        "warmup_steps": 0,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
        "bf16": "false",
        "use_cpu": "true",
        "output_dir": tmp_path / "run",
    }
    main(["vjepa2_ac_droid", *(f"--{name}={value}" for name, value in flags.items())])
    assert np.load(tmp_path / "latents/latents.npy").shape == (3 * 10, 4, 12)
    model = VJepa2ACModel.from_pretrained(tmp_path / "run/release").eval()
    assert model.config.action_std == [1.0] * 7
    latents = model.encode(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8))
    planner = CEMPlanner.vjepa2_ac(num_samples=8, num_iterations=2, num_elites=2)
    plan = planner.plan(model, latents, -latents[:, 0], states=torch.zeros(1, 1, 7))
    assert plan.shape == (1, 1, 7)
    assert plan[..., :3].abs().max() <= 0.075
