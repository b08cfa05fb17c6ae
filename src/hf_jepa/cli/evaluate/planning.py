"""Planning with a world model in an environment."""

import argparse

from .._command import given, write_results

TASKS = ("planning",)
PLANNER_OPTIONS = ("horizon", "num_samples", "num_iterations", "num_elites", "correlation", "norm", "over")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", help="planning: a gymnasium environment that knows goals, NAME or MODULE:NAME")
    parser.add_argument("--protocol", choices=("clean", "usual"), default="clean", help="planning: see the docs")
    parser.add_argument("--num-tasks", type=int, default=100, help="planning: goals per seed")
    parser.add_argument("--num-seeds", type=int, default=1, help="planning: seeds, from --seed on")
    parser.add_argument("--max-steps", type=int, default=50, help="planning: steps of an episode, clean protocol")
    parser.add_argument("--offset", type=int, default=25, help="planning: rows from start to goal, usual protocol")
    parser.add_argument("--held-out", type=float, default=0.1, help="planning: share of episodes not trained on")
    parser.add_argument("--execute", type=int, default=1, help="planning: steps of the model between plans")
    parser.add_argument("--horizon", type=int, default=5, help="planning: steps of the model ahead")
    parser.add_argument("--num-samples", type=int, default=300, help="planning: candidates per iteration")
    parser.add_argument("--num-iterations", type=int, default=10, help="planning: iterations of CEM")
    parser.add_argument("--num-elites", type=int, default=30, help="planning: the best candidates, kept")
    parser.add_argument("--correlation", type=float, default=0.0, help="planning: of proposals over time, 0 to 1")
    parser.add_argument("--norm", choices=("l1", "l2"), default="l2", help="planning: distance of latents")
    parser.add_argument("--over", choices=("last", "path"), default="last", help="planning: where it is taken")
    parser.add_argument("--no-baselines", action="store_true", help="planning: leave the baselines out")


def run(args: argparse.Namespace) -> None:
    if args.env is None or args.dataset is None:
        raise ValueError("--task planning needs an environment and recorded trajectories: give --env and --dataset.")
    from ...evaluation.planning_run import evaluate_planning
    from ...planning import CEMPlanner

    results = evaluate_planning(
        args.repo,
        args.dataset,
        planner=CEMPlanner(**given(args, PLANNER_OPTIONS)),
        baselines=not args.no_baselines,
        command=args.command_line,
        **given(args, ("env", "execute", "protocol", "num_tasks", "num_seeds", "max_steps", "offset", "held_out")),
        **given(args, ("seed", "device", "revision")),
    )
    for entry in [*results["evaluations"], *results["baselines"]]:
        name = entry.get("name", "this model")
        value = "never" if entry["value"] is None else f"{entry['value']:.4f}"
        interval = entry.get("interval")
        bounds = f"  (95 %: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        print(f"{name:<16}  {entry['task']}, {entry['metric']}: {value}{bounds}")
    write_results(results, args.output)
