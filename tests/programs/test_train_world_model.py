import json
from importlib.resources import files

import numpy as np
import pytest
import torch

from hf_jepa import LatentWorldModel
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
    return record_episodes(Dot(), tmp_path_factory.mktemp("data") / "dots", 6, max_steps=11)


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


def test_robots_take_states_and_actions_as_they_are(recording, tmp_path):
    encoder = "{model_type: vjepa, crop_size: 16, patch_size: 8, frames_per_clip: 2, hidden_size: 12, "
    encoder += "num_hidden_layers: 1, num_attention_heads: 2}"
    method = "{action_dim: 2, state_dim: 2, hidden_size: 12, num_hidden_layers: 1, num_attention_heads: 2}"
    arguments = ["--family=vjepa2_ac", f"--encoder_args={encoder}", f"--method={method}", "--num_steps=4"]
    release = run(f"--dataset={recording}", "--normalize_actions=false", *arguments, folder=tmp_path / "run")
    config = json.loads((release / "config.json").read_text())
    assert config["action_mean"] == [0.0, 0.0]
    assert config["action_std"] == [1.0, 1.0]


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
