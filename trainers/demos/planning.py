"""
Plan from pixels on two CPU cores: a world model learns from random walks what a step does to a picture, and a planner
finds the way to a picture of a goal in the other room, through a door that is off the line of sight.

    python -m trainers.demos.planning [--seed 0] [--split test]

Beside it, on the same data and goals: random actions, a straight line with the true position, imitation of the walks
(GCBC), an inverse model on the planner's own latents (GC-IDM), and the same planner with a model that was only trained
to predict, and with one whose encoder was never trained.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_jepa import LatentWorldModel, LatentWorldModelConfig
from hf_jepa.data import ArrayTrajectories, TrajectoryWindows, action_statistics, collate_windows
from hf_jepa.evaluation.latent_space import rank_correlation, state_probe
from hf_jepa.evaluation.planning import Episodes, PlanningTasks, clean_tasks, planning_report, run_episodes
from hf_jepa.evaluation.planning_baselines import (
    GoalConditionedPolicy,
    RandomPolicy,
    train_goal_conditioned_cloning,
    train_goal_head,
)
from hf_jepa.hub.processors import default_image_processor
from hf_jepa.models.latent_world_model import ConvEncoderConfig, ConvEncoderModel
from hf_jepa.planning import CEMPlanner, MPCPolicy
from hf_jepa.planning.policy import channels_first
from hf_jepa.training import JepaTrainer, JepaTrainingArguments
from hf_jepa.visualization import plot_training_curves
from trainers.demos.common import compute_facts, print_end, run_as_stranger
from trainers.demos.planning_pictures import CAPTIONS, draw_pictures
from trainers.worlds import two_rooms

EPISODES, LENGTH, STEPS, BATCH, ROLLOUT = 4_000, 16, 800, 64, 8
TASKS, MAX_STEPS, FAR = 100, 72, 0.5
OURS, COLLAPSED, UNTRAINED = "world model + CEM", "prediction loss only + CEM", "untrained encoder + CEM"
GCBC, GC_IDM, STRAIGHT, RANDOM = "GCBC", "GC-IDM", "straight line, true position", "random actions"
# Held-out walks: goals and starts of the splits, and what probes are scored on.
HELD_OUT = {"validation": 900_001, "test": 900_002}
PLANNER = {
    "horizon": 20,
    "num_samples": 64,
    "num_iterations": 4,
    "num_elites": 8,
    "correlation": 0.9,
    "keep_elites": 4,
    "std_floor": 0.05,
    "result": "best",
    "over": "path",
    # All goals in one call of the model: faster on a CPU, and plans then depend on the batch by rounding.
    "max_rollouts": 64 * TASKS,
}
EXECUTE = 3

# Loads the release in a process of its own and plans: the actions must be those of this one.
STRANGER = """
import sys
import torch
from hf_jepa import LatentWorldModel
from hf_jepa.planning import CEMPlanner
saved = torch.load(sys.argv[2], weights_only=True)
model = LatentWorldModel.from_pretrained(sys.argv[1], subfolder="pretraining").eval()
with torch.no_grad():
    latents = model.encode(saved["frames"][:, None])
plan = CEMPlanner(**saved["planner"]).plan(model, latents, saved["goals"], torch.Generator().manual_seed(0))
apart = (plan - saved["plan"]).abs().max().item()
if apart > 1e-6:
    sys.exit(f"the released model's plans differ by {apart:.1e}")
print(f"{type(model).__name__} plans the same {plan.shape[1]} steps to {len(plan)} goals")
"""


class StraightLine:
    """Walks straight to the goal by the true positions: what is lost to the wall, nothing else."""

    def __init__(self, world: two_rooms.TwoRooms) -> None:
        self.world = world

    def reset(self, goals: np.ndarray, numbers: Any = None) -> None:
        """Nothing to prepare."""

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        way = self.world.goals - self.world.states
        return way / np.maximum(np.abs(way).max(axis=1, keepdims=True) / two_rooms.MAX_STEP, 1)


def walks(seed: int, count: int) -> ArrayTrajectories:
    """Random walks, drawn when they are read."""
    states, actions = two_rooms.random_walks(seed, count, LENGTH)
    return ArrayTrajectories(actions, states=states, render=two_rooms.render)


def build_config(data: ArrayTrajectories, **changes: Any) -> LatentWorldModelConfig:
    """The world model's config, with the statistics of its data."""
    actions = action_statistics(data)
    pixels = np.concatenate([data.frames(episode, np.arange(3)) for episode in range(100)]).reshape(-1, 3) / 255
    encoder = ConvEncoderConfig(
        image_size=two_rooms.IMAGE_SIZE,
        hidden_sizes=[16, 32, 64],
        kernel_sizes=[5, 3, 3],
        strides=[4, 2, 2],
        intermediate_size=256,
        hidden_size=64,
    )
    settings: dict[str, Any] = {
        "encoder_config": encoder.to_dict(),
        "action_dim": 2,
        "action_mean": actions.mean,
        "action_std": actions.std,
        "action_low": two_rooms.TwoRooms.action_low.tolist(),
        "action_high": two_rooms.TwoRooms.action_high.tolist(),
        "image_mean": pixels.mean(0).tolist(),
        "image_std": pixels.std(0).tolist(),
        "rollout_steps": ROLLOUT,
        "sigreg_weight": 0.09,
        "inverse_dynamics_weight": 1.0,
        "num_slices": 128,
    }
    return LatentWorldModelConfig(**{**settings, **changes})


def train(
    config: LatentWorldModelConfig, data: ArrayTrajectories, steps: int, seed: int, output_dir: str
) -> tuple[LatentWorldModel, JepaTrainer]:
    """Trains a world model on windows of the walks."""
    torch.manual_seed(seed)
    model = LatentWorldModel(config)
    args = JepaTrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        learning_rate_start=1e-4,
        weight_decay=0.01,
        weight_decay_end=0.01,
        warmup_steps=0.05,
        max_grad_norm=1.0,
        seed=seed,
        logging_steps=max(1, steps // 40),
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    processor = default_image_processor(model.encoder.config, config.image_mean, config.image_std)
    windows = TrajectoryWindows(data, ROLLOUT + 1, mean=config.action_mean, std=config.action_std)
    trainer = JepaTrainer(
        model=model,
        args=args,
        data_collator=collate_windows,
        train_dataset=windows,
        processing_class=processor,
    )
    trainer.train()
    return model.eval(), trainer


@torch.no_grad()
def latents_of(model: LatentWorldModel, frames: np.ndarray) -> torch.Tensor:
    """`(n, height, width, 3)` frames to `(n, width)` latents."""
    parts = channels_first(frames).split(500)
    return torch.cat([model.encode(part[:, None].to(model.device))[:, 0, 0] for part in parts])


def goal_conditioned(
    model: LatentWorldModel, data: ArrayTrajectories, seed: int, share: float
) -> dict[str, GoalConditionedPolicy]:
    """GC-IDM on the frozen latents, and GCBC with an encoder of its own, on all walks."""
    config = model.config
    actions = (config.action_mean, config.action_std)
    bounds = (config.action_low, config.action_high)
    episodes = range(len(data))
    rows = np.arange(LENGTH + 1)
    features = [
        part
        for start in range(0, len(data), 50)
        for part in latents_of(
            model, np.concatenate([data.frames(episode, rows) for episode in episodes[start : start + 50]])
        ).split(LENGTH + 1)
    ]
    head = train_goal_head(features, data, episodes, *actions, num_steps=int(2000 * share), seed=seed)
    policies = {GC_IDM: GoalConditionedPolicy(lambda frames: latents_of(model, frames), head, *actions, *bounds)}

    torch.manual_seed(seed)
    encoder = Features(ConvEncoderModel(config.encoder_config)).to(model.device)
    mean, std = (
        torch.tensor(each, device=model.device).view(-1, 1, 1) for each in (config.image_mean, config.image_std)
    )

    def pixels(frames: np.ndarray) -> torch.Tensor:
        return (channels_first(frames).to(model.device) / 255 - mean) / std

    head = train_goal_conditioned_cloning(
        encoder, pixels, data, episodes, *actions, num_steps=int(800 * share), batch_size=96, seed=seed
    )
    policies[GCBC] = GoalConditionedPolicy(lambda frames: encoder(pixels(frames)), head, *actions, *bounds)
    return policies


class Features(nn.Module):
    """An encoder that gives its pooled output alone."""

    def __init__(self, encoder: ConvEncoderModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder(pixels).pooler_output


def describe_latents(
    model: LatentWorldModel, data: ArrayTrajectories, held_out: ArrayTrajectories
) -> dict[str, float]:
    """What the latents know: R2 of a linear probe of the position, and how cost orders states."""

    def seen(source: ArrayTrajectories) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [(source.frames(e, np.arange(0, 17, 4)), source.states(e)[::4]) for e in range(200)]
        frames, states = (np.concatenate(each) for each in zip(*pairs, strict=True))
        return latents_of(model, frames).cpu(), torch.from_numpy(states)

    (features, states), (test_features, test_states) = seen(data), seen(held_out)
    found = {"probe_r2": state_probe(features, states, test_features, test_states).mean().item()}
    goals = torch.arange(0, len(test_states), 50)
    cost = (test_features[:, None] - test_features[goals]).square().sum(-1)
    straight = torch.cdist(test_states, test_states[goals])
    walking = torch.from_numpy(two_rooms.walking_distance(test_states.numpy(), test_states[goals].numpy()))
    for name, distance in (("straight", straight), ("walking", walking)):
        ranks = [rank_correlation(cost[:, column], distance[:, column]) for column in range(len(goals))]
        found[f"rank_correlation_{name}"] = float(np.mean(ranks))
    return found


def evaluate(
    models: dict[str, LatentWorldModel], policies: dict[str, Any], tasks: PlanningTasks, seed: int
) -> tuple[dict[str, Episodes], dict[str, float]]:
    """Runs every policy on the same tasks; seconds per policy beside what happened."""
    world = two_rooms.TwoRooms(len(tasks))
    low, high = two_rooms.TwoRooms.action_low, two_rooms.TwoRooms.action_high
    actors: dict[str, Any] = {
        name: MPCPolicy(model, CEMPlanner(**PLANNER), execute=EXECUTE, seed=seed) for name, model in models.items()
    }
    actors |= {**policies, STRAIGHT: StraightLine(world), RANDOM: RandomPolicy(low, high, seed)}
    episodes, seconds = {}, {}
    for name, actor in actors.items():
        started = time.monotonic()
        episodes[name] = run_episodes(actor, world, tasks, record=len(tasks) if name == OURS else 0)
        seconds[name] = time.monotonic() - started
        report = planning_report(episodes[name], world.success_distance)
        print(f"  {name:<30}{100 * report['success_at_end']:>6.1f} %  ({seconds[name]:.0f} s)", flush=True)
    return episodes, seconds


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Success of every policy, as text."""
    lines = [f"  {'':<30}{'at the end':>12}{'95 %':>14}{'ever':>9}{'steps':>8}{'distance':>10}"]
    for name, report in reports.items():
        low, high = (100 * each for each in report["success_at_end_interval"])
        steps = "-" if report["steps_to_success"] is None else f"{report['steps_to_success']:.1f}"
        lines.append(
            f"  {name:<30}{100 * report['success_at_end']:>10.1f} %{f'{low:.0f}-{high:.0f}':>14}"
            f"{100 * report['success_ever']:>7.1f} %{steps:>8}{report['final_distance']:>10.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", choices=tuple(HELD_OUT), help="Validation is for tuning.")
    parser.add_argument("--share", type=float, default=1.0, help="Of the training steps and goals, for a quick look.")
    parser.add_argument("--output_dir", default="outputs/demo_planning")
    options = parser.parse_args()
    started, seed, share = time.monotonic(), options.seed, options.share
    data = walks(seed, EPISODES)
    held_out = walks(HELD_OUT[options.split], 300)
    tasks = clean_tasks(
        held_out,
        range(len(held_out)),
        max(4, int(TASKS * share)),
        MAX_STEPS,
        lambda start, goal: np.linalg.norm(start - goal, axis=1),
        FAR,
        accept=two_rooms.in_different_rooms,
        seed=seed,
    )

    config = build_config(data)
    cpu = time.process_time()
    print(f"Training the world model, {int(STEPS * share)} steps.", flush=True)
    model, trainer = train(config, data, int(STEPS * share), seed, options.output_dir)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    print("Training what it is compared with.", flush=True)
    alone = {"sigreg_weight": 0.0, "inverse_dynamics_weight": 0.0}
    models = {OURS: model}
    for name, changes in (
        (COLLAPSED, alone),
        (UNTRAINED, {**alone, "freeze_encoder": True, "latent_space": "layer_norm"}),
    ):
        folder = f"{options.output_dir}/baselines"
        models[name], _ = train(build_config(data, **changes), data, int(STEPS * share / 3), seed, folder)
    policies = goal_conditioned(model, data, seed, share)
    print(
        f"Planning to {len(tasks)} goals of the {options.split} split; share of goals reached at the end:", flush=True
    )
    episodes, planning_seconds = evaluate(models, policies, tasks, seed)
    reports = {name: planning_report(each, two_rooms.SUCCESS_DISTANCE) for name, each in episodes.items()}
    latent = {name: describe_latents(each, data, held_out) for name, each in models.items()}

    folder = Path(options.output_dir) / "pictures"
    pictures = [plot_training_curves(trainer.state.log_history, folder / "curves.png")]
    pictures += draw_pictures(model, CEMPlanner(**PLANNER), held_out, tasks, episodes, OURS, folder)

    results = trainer.measured_results()
    results["model"]["name"] = "lewm-two-rooms-tiny"
    results["data"] |= {"name": "two rooms, random walks", "split": "train", "licence": "apache-2.0"}
    results["data"]["num_examples"] = EPISODES
    results["licence"] = "apache-2.0"
    results["training"] |= {"seconds": seconds}
    results["pictures"] = CAPTIONS
    results["compute"] = compute_facts(cpu)
    common = {
        "dataset": "two rooms, goals in the other room",
        "split": options.split,
        "seed": seed,
        "command": f"python -m trainers.demos.planning --seed {seed}",
        "features": None,
    }
    results["evaluations"], results["baselines"] = [], []
    for name, report in reports.items():
        row = {"task": f"planning to images, {tasks.protocol} protocol", "num_examples": len(tasks), **common}
        rows = [
            {**row, "metric": metric, "value": report[key], "interval": report.get(f"{key}_interval")}
            for metric, key in (
                ("goals reached at the end", "success_at_end"),
                ("goals reached ever", "success_ever"),
                ("steps to the goal", "steps_to_success"),
                ("final distance", "final_distance"),
            )
        ]
        if name in latent:
            told = {
                "probe_r2": "R2 of the position, linear probe",
                "rank_correlation_straight": "rank correlation of cost and distance",
                "rank_correlation_walking": "rank correlation of cost and walking distance",
            }
            rows += [
                {**common, "task": "latent space", "num_examples": 1000, "metric": metric, "value": latent[name][key]}
                for key, metric in told.items()
            ]
        results["evaluations" if name == OURS else "baselines"] += (
            rows if name == OURS else [{**each, "name": name} for each in rows]
        )
    recipe = {"model": config.to_diff_dict(), "planner": PLANNER | {"execute": EXECUTE}, "steps": int(STEPS * share)}
    release = trainer.write_release(results, recipe=json.loads(json.dumps(recipe, default=str)), pictures=pictures)

    print(f"\nGoals in the other room, {len(tasks)} of them, {MAX_STEPS} steps each, {tasks.protocol} protocol")
    print(table(reports))
    print("\n  latents                       probe R2   cost against distance   against walking distance")
    for name, found in latent.items():
        print(
            f"  {name:<30}{found['probe_r2']:>8.4f}{found['rank_correlation_straight']:>16.3f}"
            f"{found['rank_correlation_walking']:>24.3f}"
        )
    numbers = {"reports": reports, "latents": latent, "planning_seconds": planning_seconds}
    (Path(options.output_dir) / "table.json").write_text(json.dumps(numbers, indent=2))
    check_release(model, release, tasks, Path(options.output_dir))
    print_end(started, [*pictures, release / "README.md", release])


def check_release(model: LatentWorldModel, release: Path, tasks: PlanningTasks, folder: Path) -> None:
    """Has another process load the release and plan, and compares."""
    model = copy.deepcopy(model).cpu()
    frames, goals = channels_first(two_rooms.render(tasks.starts[:4])), channels_first(tasks.goal_frames[:4])
    with torch.no_grad():
        latents = model.encode(frames[:, None])
    plan = CEMPlanner(**PLANNER).plan(model, latents, goals, torch.Generator().manual_seed(0))
    check = folder / "plan.pt"
    torch.save({"frames": frames, "goals": goals, "plan": plan, "planner": PLANNER}, check)
    found = run_as_stranger(STRANGER, release, check, fault="the release does not plan as the model did")
    check.unlink()
    print(f"\nLoaded by another process: {found.splitlines()[-1]}")


if __name__ == "__main__":
    main()
