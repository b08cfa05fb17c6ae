import json
import os
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch

from hf_jepa import LatentWorldModel, VJepa2ACModel, VJepaConfig, VJepaModel
from hf_jepa.data import record_episodes
from hf_jepa.planning import CEMPlanner
from hf_jepa.programs.recipes import parse_recipe
from hf_jepa.programs.train_world_model import build_trainer, load_trajectories, main
from hf_jepa.programs.world_model_arguments import TrajectoryArguments, WorldModelArguments
from hf_jepa.training import JepaTrainingArguments

RECIPES = files("hf_jepa") / "recipes" / "world_model"
NAMES = ("lewm_pusht", "lewm_tiny", "smwm", "vjepa2_ac_droid")


class Space:
    low, high, shape = np.full(2, -0.2, np.float32), np.full(2, 0.2, np.float32), (2,)

    def seed(self, seed):
        self.draws = np.random.default_rng(seed)

    def sample(self):
        return self.draws.uniform(self.low, self.high).astype(np.float32)


class Dot:
    def __init__(self):
        self.action_space = Space()

    def reset(self, seed=None):
        self.place = np.random.default_rng(seed).uniform(-1, 1, 2).astype(np.float32)
        return self.place, {}

    def step(self, action):
        self.place = np.clip(self.place + action, -1, 1)
        return self.place, 0.0, False, False, {}

    def render(self):
        frame = np.zeros((16, 16, 3), dtype=np.uint8)
        column, row = ((self.place + 1) / 2 * 13).astype(int)
        frame[row : row + 3, column : column + 3] = 255
        return frame


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return record_episodes(Dot(), tmp_path_factory.mktemp("data") / "dots", 6, max_steps=21)


def run(*arguments, folder):
    flags = [
        "--use_cpu",
        "--max_steps=2",
        "--warmup_steps=0",
        "--per_device_train_batch_size=4",
        f"--output_dir={folder}",
    ]
    main([*map(str, arguments), *flags])
    return folder / "release"


def test_a_recipe_trains_a_model_that_plans(recording, tmp_path):
    encoder = "{model_type: conv_encoder, image_size: 16, hidden_sizes: [4, 8], hidden_size: 8}"
    release = run(
        RECIPES / "lewm_tiny.yaml", f"--dataset={recording}", f"--encoder_args={encoder}", folder=tmp_path / "run"
    )
    model = LatentWorldModel.from_pretrained(release, subfolder="pretraining").eval()
    assert model.config.action_low[0] == pytest.approx(-0.2, abs=0.05)
    assert 0 < model.config.action_std[0] < 0.2
    frames = torch.zeros(1, 1, 3, 16, 16, dtype=torch.uint8)
    with torch.no_grad():
        latents = model.encode(frames)
    plan = CEMPlanner(horizon=3, num_samples=8, num_iterations=2, num_elites=2).plan(model, latents, frames[:, 0] + 90)
    assert plan.abs().max() <= 0.2
    results = json.loads((release / "results.json").read_text())
    assert results["model"]["action_dim"] == 2
    assert (release / "recipe.yaml").is_file()


TINY_ENCODER = {
    "crop_size": 16,
    "patch_size": 8,
    "frames_per_clip": 2,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
ROBOT = [
    "--family=vjepa2_ac",
    "--encoder_args={model_type: vjepa, crop_size: 16, patch_size: 8, frames_per_clip: 2, hidden_size: 12, "
    "num_hidden_layers: 1, num_attention_heads: 2}",
    "--method={action_dim: 2, state_dim: 2, hidden_size: 12, num_hidden_layers: 1, num_attention_heads: 2}",
    "--num_steps=4",
    "--normalize_actions=false",
]


def test_robots_train_on_cached_latents_as_on_pixels(recording, tmp_path, monkeypatch):
    arguments = [f"--dataset={recording}", *ROBOT]
    cached = [*arguments, f"--latent_cache={tmp_path / 'latents'}"]
    releases = [run(*arguments, folder=tmp_path / "pixels")]
    encoded = []
    encode = VJepa2ACModel.encode
    monkeypatch.setattr(
        VJepa2ACModel, "encode", lambda self, pixels: encoded.append(len(pixels)) or encode(self, pixels)
    )
    releases.append(run(*cached, folder=tmp_path / "latents_run"))
    assert sum(encoded) == 6 * 22
    config = json.loads((releases[0] / "config.json").read_text())
    assert config["action_mean"] == [0.0, 0.0]
    assert config["action_std"] == [1.0, 1.0]
    pixels, latents = (VJepa2ACModel.from_pretrained(folder).state_dict() for folder in releases)
    for name, weight in latents.items():
        torch.testing.assert_close(weight, pixels[name], rtol=1e-4, atol=1e-5, msg=name)

    encoded.clear()
    types = (WorldModelArguments, TrajectoryArguments, JepaTrainingArguments)
    again = [*cached, "--use_cpu", f"--output_dir={tmp_path / 'again'}"]
    build_trainer(*parse_recipe(types, again))
    assert not encoded
    with pytest.raises(ValueError, match='latents of "dots.*Choose another folder or delete it'):
        build_trainer(*parse_recipe(types, [*again, "--seed=7"]))
    assert main([*again, "--dry_run", f"--latent_cache={tmp_path / 'dry'}"]) is None
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("name", NAMES)
def test_published_recipes_are_read(name):
    types = (WorldModelArguments, TrajectoryArguments, JepaTrainingArguments)
    model_args, data_args, args = parse_recipe(types, [str(RECIPES / f"{name}.yaml"), "--use_cpu", "--bf16=false"])
    published = {"lewm_pusht": (4, 5, 5e-5), "smwm": (2, 5, 1e-4), "vjepa2_ac_droid": (8, 1, 4.25e-4)}
    if name in published:
        assert (data_args.num_steps, data_args.frameskip, args.learning_rate) == published[name]
    assert model_args.family in ("latent_world_model", "vjepa2_ac")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=nowhere/at_all/here"], "Repo id must|nowhere"),
        (["--layout=zarr"], "lerobot or droid"),
        (["--family=dreamer"], "dreamer"),
        (["--method={horizon: 3}"], "LatentWorldModelConfig has not"),
        (["--num_steps=30", "--method={sigreg_weight: 0.1}"], "needs 30 rows, the longest"),
        (["--held_out=1.0"], "leaves none of 6 episodes"),
        (["--encoder_args={model_type: vit}", "--from_encoder=x"], "brings its own config"),
        (["--family=vjepa2_ac", "--preset=lewm"], "of latent world models"),
        (["--latent_cache=somewhere", "--num_steps=2"], "latent_world_model reads pixels: leave it out"),
    ],
)
def test_recipes_that_cannot_be_run_are_named(recording, tmp_path, flags, message):
    types = (WorldModelArguments, TrajectoryArguments, JepaTrainingArguments)
    argv = [f"--dataset={recording}", f"--output_dir={tmp_path}", "--use_cpu", *flags]
    with pytest.raises(ValueError, match=message):
        build_trainer(*parse_recipe(types, argv))


def test_a_recipe_without_data_says_so():
    with pytest.raises(ValueError, match="names no `dataset`; give --dataset PATH"):
        load_trajectories(TrajectoryArguments())


@pytest.mark.slow
def test_two_processes_train_as_one_and_fill_one_cache(recording, tmp_path):
    weights, environment = [], os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        flags = {
            "dataset": recording,
            "latent_cache": tmp_path / f"latents{processes}",
            "output_dir": folder,
            "per_device_train_batch_size": 4 // processes,
            "max_steps": 3,
            "warmup_steps": 0,
            "use_cpu": "true",
        }
        # Settings of the published recipe that a tiny run on images has otherwise.
        flags |= {"bf16": "false", "gradient_checkpointing": "false", "dataloader_num_workers": 0, "layout": "lerobot"}
        flags |= {"camera": "observation.image", "from_encoder": tmp_path / "encoder"}
        if processes == 1:
            VJepaModel(VJepaConfig.from_size("tiny", **TINY_ENCODER)).save_pretrained(flags["from_encoder"])
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "hf_jepa.cli", "train", "vjepa2_ac_droid", ROBOT[2]]
        command += [f"--{name}={value}" for name, value in flags.items()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        weights.append(VJepa2ACModel.from_pretrained(folder / "release").state_dict())
    latents = [np.load(tmp_path / f"latents{processes}/latents.npy") for processes in (1, 2)]
    assert np.array_equal(*latents)
    assert len(latents[0]) == 6 * 22
    for name, one in weights[0].items():
        torch.testing.assert_close(weights[1][name], one, rtol=0, atol=1e-6, msg=name)


SMALL = {
    "lewm_pusht": "{projector_hidden_size: 16, predictor_num_hidden_layers: 1, predictor_num_attention_heads: 2, "
    "predictor_head_dim: 4, predictor_intermediate_size: 16, num_slices: 8}",
    "smwm": "{inverse_dynamics_weight: 30.0, inverse_hidden_size: 16, projector_hidden_size: 16, "
    "predictor_num_hidden_layers: 1, predictor_num_attention_heads: 2, predictor_head_dim: 4, "
    "predictor_intermediate_size: 16}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_published_recipes_train_small(recording, tmp_path, name):
    """All that the recipe says but its sizes; `lewm_tiny` and `vjepa2_ac_droid` have tests of their own."""
    encoder = "{model_type: vit, image_size: 16, patch_size: 8, hidden_size: 12, num_hidden_layers: 1, "
    encoder += "num_attention_heads: 2, intermediate_size: 24}"
    flags = [f"--dataset={recording}", f"--encoder_args={encoder}", f"--method={SMALL[name]}", "--bf16=false"]
    release = run(RECIPES / f"{name}.yaml", *flags, "--dataloader_num_workers=0", folder=tmp_path / "run")
    model = LatentWorldModel.from_pretrained(release, subfolder="pretraining").eval()
    assert model.config.frameskip == 5
    assert model.config.action_dim == 10
    results = json.loads((release / "results.json").read_text())
    assert results["training"]["steps"] == 2
    frames = torch.randint(0, 256, (2, 1, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        latents = model.encode(frames)
    plan = CEMPlanner.lewm(num_samples=8, num_iterations=2, num_elites=2).plan(model, latents, frames[:, 0] + 90)
    assert plan.shape == (2, 5, 10)
    assert plan.abs().max() <= 0.2
