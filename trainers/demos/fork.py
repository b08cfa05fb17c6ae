"""
A fork that no action decides, on two CPU cores in minutes: what a latent variable is for.

    python -m trainers.demos.fork [--seeds 0 1 2]

A dot on a small screen moves up and, at random, to the left or to the right; the action says how far, not where. First
an encoder is learned on a dot whose moves are known (end to end, SIGReg and inverse dynamics). Then predictors are
trained on its frozen latents of the fork: one without a latent variable, one that takes the better of two learned
codes, and two with a continuous variable, sparse or noisy, that an inverse model tells. Printed and written: the
errors of their predictions, where these lie beside the two frames that may follow, and what the variable carries.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hf_jepa import ConvEncoderConfig, LatentWorldModel, LatentWorldModelConfig
from hf_jepa.evaluation.latent_variable import latent_variable_report, linear_r2
from hf_jepa.visualization import plot_fork

SIDE, DOT, FRAMES = 24, 1.5, 4
WALK_STEPS, FORK_STEPS, BATCH, TEST = 500, 400, 64, 512
# Shares of the way between the two predictions at which the energy is read.
LINE = torch.linspace(-0.5, 1.5, 81)
NEAREST, FARTHEST = 0.1, 0.16
ARMS: dict[str, dict[str, Any]] = {
    "no variable": {},
    "two codes": {"latent_variable": "discrete", "num_codes": 2, "code_annealing_steps": FORK_STEPS // 4},
    "sparse": {"latent_variable": "sparse", "latent_variable_size": 2},
    "noisy": {"latent_variable": "noisy", "latent_variable_size": 2},
}


def render(places: Tensor) -> Tensor:
    """Dots at `(n, 2)` (x to the right, y upwards, in the unit square) as uint8 frames `(n, 1, SIDE, SIDE)`."""
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    squared = (places[:, 0, None, None] - axis).square() + (places[:, 1, None, None] - axis.flip(0)[:, None]).square()
    return (255 * torch.exp(-squared * SIDE**2 / (2 * DOT**2))).round().to(torch.uint8)[:, None]


def walks(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Frames `(n, t, 1, SIDE, SIDE)`, known moves `(n, t - 1, 2)` in units of 0.1, and places `(n, t, 2)`."""
    places = [0.1 + 0.8 * torch.rand(count, 2, generator=generator)]
    for _ in range(FRAMES - 1):
        places.append((places[-1] + 0.1 * torch.randn(count, 2, generator=generator)).clamp(0.08, 0.92))
    path = torch.stack(places, dim=1)
    return render(path.flatten(0, 1)).unflatten(0, (count, FRAMES)), path.diff(dim=1) / 0.1, path


def forks(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames, how far each step goes `(n, t - 1, 1)` (in [-1, 1]), places, the hidden side `(n, t - 1)`, 0 left."""
    far = NEAREST + (FARTHEST - NEAREST) * torch.rand(count, FRAMES - 1, 1, generator=generator)
    side = torch.randint(0, 2, (count, FRAMES - 1), generator=generator)
    # However it turns, the dot stays where the encoder has seen it.
    start = torch.tensor([0.42, 0.1]) + torch.tensor([0.16, 0.4]) * torch.rand(count, 1, 2, generator=generator)
    path = torch.cat([start, start + (far * _directions()[side]).cumsum(dim=1)], dim=1)
    frames = render(path.flatten(0, 1)).unflatten(0, (count, FRAMES))
    return frames, (far - NEAREST) / (FARTHEST - NEAREST) * 2 - 1, path, side


def _directions() -> Tensor:
    """Left and right, upwards by half a right angle: `(2, 2)`."""
    return torch.tensor([[-1.0, 1.0], [1.0, 1.0]]) / 2**0.5


def _config(**changes: Any) -> LatentWorldModelConfig:
    encoder = ConvEncoderConfig(image_size=SIDE, num_channels=1, hidden_sizes=[16, 32, 32], hidden_size=16)
    fields = {"encoder_config": encoder, "image_mean": [0.05], "image_std": [0.2], "predictor_hidden_size": 128}
    return LatentWorldModelConfig(**{**fields, "num_slices": 64, "inverse_hidden_size": 64, **changes})


def _train(model: LatentWorldModel, sample: Any, steps: int, seed: int, name: str) -> LatentWorldModel:
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in tqdm(range(steps), desc=name, leave=False):
        frames, actions = sample(BATCH, generator)[:2]
        loss = model(frames, actions).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def train_encoder(seed: int, steps: int = WALK_STEPS) -> LatentWorldModel:
    """A world model of the dot whose moves are known."""
    torch.manual_seed(seed)
    weights = {"sigreg_weight": 0.09, "inverse_dynamics_weight": 1.0}
    model = LatentWorldModel(_config(action_dim=2, rollout_steps=FRAMES - 1, **weights))
    return _train(model, walks, steps, seed, "encoder")


def train_arm(arm: str, encoder: LatentWorldModel, seed: int, steps: int = FORK_STEPS) -> LatentWorldModel:
    """A predictor of the fork on the frozen encoder."""
    torch.manual_seed(seed)
    model = LatentWorldModel(_config(action_dim=1, freeze_encoder=True, **ARMS[arm]))
    model.encoder.load_state_dict(encoder.encoder.state_dict())
    return _train(model, forks, steps, seed, arm)


@torch.no_grad()
def both_ways(model: LatentWorldModel, frames: Tensor, actions: Tensor, places: Tensor) -> dict[str, Tensor]:
    """Latents of first frames, `now` `(n, d)`, and of both frames that may follow, `ways` `(2, n, d)`, left first."""
    far = NEAREST + (actions[:, 0] + 1) / 2 * (FARTHEST - NEAREST)
    after = torch.stack([places[:, 0] + far * direction for direction in _directions()])
    ways = model.encode(render(after.flatten(0, 1))[:, None])[:, 0, 0].unflatten(0, (2, -1))
    return {"now": model.encode(frames[:, :1])[:, 0, 0], "ways": ways}


@torch.no_grad()
def predictions(model: LatentWorldModel, now: Tensor, actions: Tensor) -> Tensor:
    """What follows `now` `(n, d)`: `(1, n, d)` without codes, `(codes, n, d)` with them."""
    latents, first = now[:, None, None], actions[:, :1]
    if model.config.latent_variable != "discrete":
        return model.rollout(latents, first)[:, 0, 0][None]
    codes = torch.arange(model.config.num_codes)[:, None].expand(-1, len(now))
    return torch.stack([model.rollout(latents, first, z=code[:, None])[:, 0, 0] for code in codes])


@torch.no_grad()
def energies_on_line(model: LatentWorldModel, now: Tensor, ends: Tensor, actions: Tensor) -> Tensor:
    """Energy of the points of [`LINE`] from `ends[0]` to `ends[1]`, `(n, d)`, as next frames: `(n, points)`."""
    points = ends[0][:, None] + LINE[:, None] * (ends[1] - ends[0])[:, None]
    pairs = torch.stack([now[:, None].expand_as(points), points], dim=2).flatten(0, 1)[:, :, None]
    given = actions[:, :1].repeat_interleave(len(LINE), dim=0)
    return model.transition_energy(pairs, given)[:, 0].unflatten(0, (len(now), -1))


@torch.no_grad()
def energies_of(model: LatentWorldModel, now: Tensor, after: Tensor, actions: Tensor) -> Tensor:
    """Energies `(n,)` of next frames `after` `(n, d)`."""
    return model.transition_energy(torch.stack([now, after], dim=1)[:, :, None], actions[:, :1])[:, 0]


def _position(predicted: Tensor, ways: Tensor) -> dict[str, float]:
    """
    Where predictions `(k, n, d)` lie beside the two ways: mean distances in units of half the distance of the ways.
    `to_mean` is 0 at their mean and at least 1 at either; `to_nearest` is 1 at the mean and 0 at either.
    """
    half = (ways[0] - ways[1]).norm(dim=1) / 2
    to_mean = (predicted - ways.mean(dim=0)).norm(dim=2) / half
    distances = (predicted[:, None] - ways).norm(dim=3) / half
    result = {"to_mean": float(to_mean.mean()), "to_nearest": float(distances.amin(dim=1).mean())}
    if len(predicted) == 2:
        matched = torch.stack([distances[0, 0] + distances[1, 1], distances[0, 1] + distances[1, 0]]) / 2
        result["to_own_way"] = float(matched.amin(dim=0).mean())
    return result


def run_seed(seed: int, walk_steps: int = WALK_STEPS, fork_steps: int = FORK_STEPS) -> tuple[dict, dict]:
    """Everything about one seed: numbers, and what the picture shows."""
    started = time.process_time()
    encoder = train_encoder(seed, walk_steps)
    frames, actions, places, side = forks(TEST, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        latents = encoder.encode(frames)
    numbers: dict[str, Any] = {
        "seed": seed,
        "encoder": {
            "place_r2": linear_r2(latents[:, :, 0].flatten(0, 1), places.flatten(0, 1)),
            "std": float(latents.flatten(0, 2).std(dim=0).mean()),
        },
        "arms": {},
    }
    models = {arm: train_arm(arm, encoder, seed, fork_steps) for arm in ARMS}
    without = models["no variable"]
    scene = both_ways(without, frames, actions, places)
    for arm, model in models.items():
        with torch.no_grad():
            error = float(model.transition_energy(latents, actions).mean())
        entry: dict[str, Any] = {
            "energy": error,
            **_position(predictions(model, scene["now"], actions), scene["ways"]),
        }
        if model.latent_variable is not None:
            entry |= latent_variable_report(model, latents, actions, side, without)
        numbers["arms"][arm] = entry
    ends = predictions(models["two codes"], scene["now"], actions)
    # Codes have no order: the first end is the one nearer to the left way.
    swapped = (ends[0] - scene["ways"][0]).norm(dim=1) > (ends[1] - scene["ways"][0]).norm(dim=1)
    ends = torch.where(swapped[:, None], ends.flip(0), ends)
    along = ends[1] - ends[0]
    half = (scene["ways"][0] - scene["ways"][1]).square().mean(dim=1)[:, None] / 4
    wells = {
        arm: energies_on_line(models[arm], scene["now"], ends, actions) / half for arm in ("no variable", "two codes")
    }
    frames_after = {"left": scene["ways"][0], "right": scene["ways"][1], "between": scene["ways"].mean(dim=0)}
    for arm, model in models.items():
        for name, after in frames_after.items():
            energy = energies_of(model, scene["now"], after, actions) / half[:, 0]
            numbers["arms"][arm][f"energy_{name}"] = float(energy.mean())
    numbers["wells"] = {arm: _shape_of(energy.median(dim=0).values) for arm, energy in wells.items()}
    numbers["cpu_seconds"] = round(time.process_time() - started, 1)
    decoder = torch.linalg.lstsq(_with_one(latents[:, :, 0].flatten(0, 1)), places.flatten(0, 1)).solution
    picture = {
        "frames": frames[0, :1, 0],
        "ways": render(torch.stack([places[0, 0] + (places[0, 1] - places[0, 0]).norm() * d for d in _directions()])),
        "places": {
            "true": torch.stack([_with_one(way) @ decoder for way in scene["ways"]]),
            "no variable": _with_one(predictions(without, scene["now"], actions)) @ decoder,
            "two codes": _with_one(ends) @ decoder,
            "now": places[:, 0],
        },
        "line": LINE,
        "true": torch.stack(
            [((way - ends[0]) * along).sum(dim=1) / along.square().sum(dim=1) for way in scene["ways"]]
        ),
        "wells": wells,
    }
    return numbers, picture


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


def _shape_of(energy: Tensor) -> dict[str, Any]:
    """Where a median curve over [`LINE`] has its minima, and its energy at both ends and in the middle."""
    inner = energy[1:-1]
    minima = ((inner < energy[:-2]) & (inner < energy[2:])).nonzero().flatten() + 1
    shares = {"left": 0.0, "middle": 0.5, "right": 1.0}
    at = {name: float(energy[(LINE - share).abs().argmin()]) for name, share in shares.items()}
    return {"minima": [round(float(LINE[i]), 3) for i in minima], **at}


def table(runs: list[dict[str, Any]]) -> str:
    """Means over seeds as text."""
    names = ("energy", "energy_left", "energy_right", "energy_between", "to_mean", "to_nearest", "to_own_way")
    names += ("error", "error_shuffled", "error_without")
    names += ("transfer_to_source", "next_frame_r2", "purity", "nmi", "nmi_untrained", "factor_r2", "perplexity")
    lines = [f"{'':20}" + "".join(f"{arm:>14}" for arm in ARMS)]
    for name in names:
        values = [[run["arms"][arm][name] for run in runs if name in run["arms"][arm]] for arm in ARMS]
        cells = [f"{statistics.fmean(value):14.3f}" if value else f"{'':14}" for value in values]
        lines.append(f"{name:20}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--walk_steps", type=int, default=WALK_STEPS)
    parser.add_argument("--fork_steps", type=int, default=FORK_STEPS)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/fork"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [run_seed(seed, options.walk_steps, options.fork_steps) for seed in options.seeds]
    runs = [numbers for numbers, _ in results]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    seeds = " ".join(map(str, options.seeds))
    record = {"command": f"python -m trainers.demos.fork --seeds {seeds}", "runs": runs}
    (options.output_dir / "fork.json").write_text(json.dumps(record, indent=1) + "\n")
    plot_fork(**results[0][1], path=options.output_dir / "fork.png")
    print(table(runs))
    for run in runs:
        print(f"seed {run['seed']}: place R2 {run['encoder']['place_r2']:.3f}, {run['cpu_seconds']:.0f} CPU seconds")
        print(f"  wells on the line between the two codes' predictions: {json.dumps(run['wells'])}")
    print(f"wrote {options.output_dir / 'fork.json'} and {options.output_dir / 'fork.png'}")


if __name__ == "__main__":
    main()
