"""
Collapse and what prevents it, on two CPU cores in minutes: one small network is trained with eight objectives on
cluttered digits, each for three seeds, without and with BatchNorm, and only the loss differs.

    python -m trainers.demos.collapse [--seeds 0 1 2] [--lambda_rule]

Each image is a digit of scikit-learn's `digits` at a random place among fragments of other digits, with noise. Two
renderings of a digit are a pair of views. An encoder that maps all images to one point makes every pair agree: that
is collapse, and what each objective adds to agreement is there to prevent it.
"""

import argparse
import functools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from hf_jepa.evaluation import knn_accuracy, rankme, ridge_probe
from hf_jepa.evaluation.closed_form import standardization
from hf_jepa.objectives import (
    RDMReg,
    SIGReg,
    VISReg,
    WeakSIGReg,
    collapse_ratio,
    nt_xent,
    variance_hinge,
    vicreg,
)
from hf_jepa.visualization import plot_collapse

CANVAS, DIGIT, FRAGMENT, NUM_FRAGMENTS = 24, 12, 6, 4
NUM_TRAIN, BATCH, STEPS, WARMUP = 1347, 128, 150, 20
NONE, UNTRAINED, PIXELS = "no regularizer", "random init", "raw pixels"
GROUPS = ("without BatchNorm", "with BatchNorm")
LAMBDAS = (0.05, 0.02, 0.005, 0.001, 0.0004)
METRICS = {  # key in results.json: (column, factor, decimals)
    "ridge": ("ridge, %", 100, 1),
    "knn": ("20-NN, %", 100, 1),
    "projector_std": ("projector std", 1, 4),
    "rankme": ("RankMe, features", 1, 1),
    "projector_rankme": ("RankMe, projector", 1, 1),
    "active_fraction": ("active fraction", 1, 2),
    "ratio": ("r of lambda", 1, 2),
    "within_share": ("within-image share, untrained", 1, 2),
}
READING = """\
Judge collapse by the projector's std, with k-NN beside it for what it costs: `collapsed` counts the seeds whose std is
below 5 % of the untrained network's. The ridge probe standardises features, which hides that they have shrunk, and
RankMe does not see scale: neither tells a collapsed network from a healthy one.
"""


@functools.cache
def load_digits() -> dict[str, tuple[Tensor, Tensor]]:
    """The train and test splits: digits `(n, 12, 12)` in [0, 1] and labels `(n,)`."""
    import numpy as np
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    images = torch.from_numpy(digits.images[order] / 16).float()
    images = F.interpolate(images[:, None], size=(DIGIT, DIGIT), mode="bilinear")[:, 0]
    labels = torch.from_numpy(digits.target[order]).long()
    return {"train": (images[:NUM_TRAIN], labels[:NUM_TRAIN]), "test": (images[NUM_TRAIN:], labels[NUM_TRAIN:])}


def render(digits: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """
    One cluttered image `(n, 1, 24, 24)` of each digit `(n, 12, 12)`: four fragments of random `others` at 0.7 of their
    brightness, the digit over them, all at random places; then contrast from U(0.6, 1.4) and noise N(0, 0.15).
    """
    n = len(digits)

    def window(size: int, inside: int) -> Tensor:
        """Flat indices `(n, size * size)` of a window at a random place of a square."""
        corner = torch.randint(inside - size + 1, (2, n, 1), generator=generator)
        rows, columns = corner + torch.arange(size)
        return (rows[:, :, None] * inside + columns[:, None, :]).flatten(1)

    canvas = torch.zeros(n, CANVAS * CANVAS)
    for _ in range(NUM_FRAGMENTS):
        source = others[torch.randint(len(others), (n,), generator=generator)].flatten(1)
        canvas.scatter_(1, window(FRAGMENT, CANVAS), 0.7 * source.gather(1, window(FRAGMENT, DIGIT)))
    canvas.scatter_(1, window(DIGIT, CANVAS), digits.flatten(1))
    canvas *= torch.empty(n, 1).uniform_(0.6, 1.4, generator=generator)
    canvas += 0.15 * torch.randn(canvas.shape, generator=generator)
    return canvas.view(n, 1, CANVAS, CANVAS)


@functools.lru_cache(maxsize=1)
def training_views(seed: int, steps: int) -> Tensor:
    """All batches of a seed, `(steps, 2 views, 128, 1, 24, 24)`: the same for every objective."""
    generator = torch.Generator().manual_seed(seed)
    digits, _ = load_digits()["train"]
    epochs = -(-steps * BATCH // NUM_TRAIN)
    rows = torch.cat([torch.randperm(NUM_TRAIN, generator=generator) for _ in range(epochs)])[: steps * BATCH]
    pairs = digits[rows].view(steps, 1, BATCH, DIGIT, DIGIT).expand(-1, 2, -1, -1, -1)
    return render(pairs.flatten(0, 2), digits, generator).view(steps, 2, BATCH, 1, CANVAS, CANVAS)


class Network(nn.Module):
    """Four convolutions and average + max pooling to 128 features; a projector to 64 embeddings."""

    def __init__(self, batchnorm: bool, rectify: bool) -> None:
        super().__init__()

        norm2d, norm1d = (nn.BatchNorm2d, nn.BatchNorm1d) if batchnorm else (nn.Identity, nn.Identity)
        layers: list[nn.Module] = []
        for width, out, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
            layers += [nn.Conv2d(width, out, 3, stride, padding=1), norm2d(out), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        last = nn.ReLU() if rectify else nn.Identity()
        self.projector = nn.Sequential(nn.Linear(128, 256), norm1d(256), nn.ReLU(), nn.Linear(256, 64), last)
        if not batchnorm:  # without it, torch's default would shrink the signal layer by layer
            for module in self.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)  # a third faster on CPUs

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(n, 128)` and embeddings `(n, 64)` of images `(n, 1, 24, 24)`."""
        maps = self.encoder(images)
        features = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        return features, self.projector(features)


def lejepa(weight: float, regularizer: Callable[[Tensor], Tensor] | None = None) -> Callable[[Tensor], Tensor]:
    regularizer = regularizer or SIGReg(num_slices=256)
    return lambda z: (1 - weight) * (z - z.mean(0)).square().mean() + weight * regularizer(z)


def objectives() -> dict[str, Callable[[Tensor], Tensor]]:
    """
    Each maps the embeddings of two views `(2, n, 64)` to a loss; weights are the methods' defaults, not tuned.
    Weak-SIGReg, which has none beside an invariance, gets 1: near collapse it then pushes about as SIGReg does.
    """
    rdmreg, weak_sigreg = RDMReg(num_projections=512), WeakSIGReg()

    def invariance(z: Tensor) -> Tensor:
        return F.mse_loss(z[0], z[1])

    def hinge(z: Tensor) -> Tensor:
        return 25 * invariance(z) + 25 * (variance_hinge(z[0]) + variance_hinge(z[1])) / 2

    return {
        NONE: invariance,
        "variance hinge": hinge,
        "VICReg": lambda z: vicreg(z[0], z[1]).loss,
        "SIGReg": lejepa(0.05),
        "Weak-SIGReg": lambda z: (z - z.mean(0)).square().mean() + weak_sigreg(z),
        "VISReg": lejepa(0.02, VISReg(num_slices=256)),
        "RDMReg": lambda z: 25 * invariance(z) + 125 * rdmreg(z),
        "InfoNCE": lambda z: nt_xent(z[0], z[1], temperature=0.2),
    }


def train(network: Network, objective: Callable[[Tensor], Tensor], views: Tensor) -> list[float]:
    """Trains on `views` `(steps, 2, n, 1, 24, 24)` and returns the std of the embeddings at each step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, len(views))
    stds = []
    for pair in views:
        embeddings = network(pair.flatten(0, 1))[1].unflatten(0, pair.shape[:2])
        loss = objective(embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        stds.append(embeddings.detach().std(dim=1).mean())
    return torch.stack(stds).tolist()


@torch.no_grad()
def calibrate(network: Network, views: Tensor) -> None:
    """Gives BatchNorm the average statistics of `views`: a running one would still hold where it started."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None
    for pair in views:
        network(pair.flatten(0, 1))


@torch.no_grad()
def within_share(network: Network, views: Tensor) -> float:
    """Share of the embeddings' variance that lies between the views of one image."""
    embeddings = network(views.flatten(0, 1))[1].unflatten(0, views.shape[:2])
    within, total = embeddings - embeddings.mean(dim=0), embeddings - embeddings.mean(dim=(0, 1))
    return (within.square().mean() / total.square().mean()).item()


@torch.no_grad()
def measure(network: Network | None, seed: int) -> dict[str, Any]:
    """The probes of `network`, or of raw pixels, on one rendering of each digit that training has not seen."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    (train_digits, train_labels), (test_digits, test_labels) = load_digits().values()
    train_images, test_images = (render(digits, train_digits, generator) for digits in (train_digits, test_digits))
    found: dict[str, Any] = {}
    if network is None:
        train_features, test_features = train_images.flatten(1), test_images.flatten(1)
    else:
        train_features, _ = network.eval()(train_images)
        test_features, embeddings = network(test_images)
        centred = embeddings - embeddings.mean(dim=0)
        found = {
            "projector_std": embeddings.std(dim=0).mean().item(),
            "rankme": rankme(test_features),
            "projector_rankme": rankme(embeddings),
            "active_fraction": (embeddings != 0).float().mean().item(),
            "points": (centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T).tolist(),  # for the picture
        }
    mean, std = standardization(train_features)
    splits = ((train_features - mean) / std, train_labels, (test_features - mean) / std, test_labels)
    ridge = ridge_probe(*splits, penalties=[50 / NUM_TRAIN]).accuracy  # this one's penalty is per training row
    return {"ridge": ridge, "knn": knn_accuracy(*splits), **found}


def run_arm(task: tuple[str, bool, int, int]) -> dict[str, Any]:
    """Trains and measures one `(arm, batchnorm, seed, steps)`; an arm `lambda 0.02` is SIGReg with that weight."""
    arm, batchnorm, seed, steps = task
    views, network, found = training_views(seed, steps), None, {}
    started = time.process_time()
    if arm != PIXELS:
        torch.manual_seed(seed)
        network = Network(batchnorm, rectify=arm == "RDMReg")
        if arm == UNTRAINED:
            calibrate(network, views[:20])
        elif arm.startswith("lambda "):
            weight = float(arm.split()[1])
            found = {"ratio": collapse_ratio(weight, BATCH), "within_share": within_share(network, views[0])}
            found["curve"] = train(network, lejepa(weight), views)
        else:
            found["curve"] = train(network, objectives()[arm], views)
    found = {"arm": arm, "group": GROUPS[batchnorm], "seed": seed, **found, **measure(network, seed)}
    return found | {"cpu_seconds": time.process_time() - started}


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in Markdown, one table per group."""
    lines, columns = [], {key: column for key, column in METRICS.items() if any(key in run for run in runs)}
    for group in dict.fromkeys(run["group"] for run in runs):
        lines.append(f"| {group} | " + " | ".join(name for name, *_ in columns.values()) + " | collapsed |")
        lines.append("|---" * (len(columns) + 2) + "|")
        for arm in dict.fromkeys(run["arm"] for run in runs if run["group"] == group):
            seeds = [run for run in runs if (run["group"], run["arm"]) == (group, arm)]
            cells = [arm]
            for key, (_, factor, digits) in columns.items():
                values = [factor * run[key] for run in seeds if key in run]
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
            verdicts = [run["collapsed"] for run in seeds if "collapsed" in run]
            cells.append(f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def report(runs: list[dict[str, Any]], folder: Path) -> str:
    """Judges the runs, writes `results.json`, `table.md` and `collapse.png`, and returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    untrained = {(run["group"], run["seed"]): run["projector_std"] for run in runs if run["arm"] == UNTRAINED}
    for run in runs:
        if "curve" in run:
            run["collapsed"] = run["projector_std"] < 0.05 * untrained[run["group"], run["seed"]]
    text = f"{table(runs)}\n{READING}"
    command = " ".join(["python -m trainers.demos.collapse", *sys.argv[1:]])
    (folder / "results.json").write_text(json.dumps({"command": command, "runs": runs}))
    (folder / "table.md").write_text(text)
    plot_collapse(runs, folder / "collapse.png")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--objectives", nargs="+", choices=[*objectives()], help="these alone, beside the baselines")
    parser.add_argument("--output_dir", type=Path, default=None)
    parser.add_argument("--lambda_rule", action="store_true", help="sweep SIGReg's weight instead, without BatchNorm")
    options = parser.parse_args()
    folder = options.output_dir or Path("outputs/collapse_lambda" if options.lambda_rule else "outputs/collapse")
    trained = [f"lambda {weight}" for weight in LAMBDAS] if options.lambda_rule else options.objectives or objectives()
    arms, variants = [PIXELS, UNTRAINED, *trained], [False] if options.lambda_rule else [False, True]
    # Seed by seed, so that a process renders a seed's views once.
    tasks = [(arm, bn, seed, options.steps) for seed in options.seeds for bn in variants for arm in arms]
    started = time.monotonic()
    # One thread per process: the numbers then do not depend on the machine's cores.
    with multiprocessing.get_context("spawn").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = list(tqdm(pool.imap(run_arm, tasks), total=len(tasks), unit="run", smoothing=0))
    for run in runs:
        if run["seed"] != options.seeds[0]:  # the picture shows one seed's points
            run.pop("points", None)
    print(f"\n{report(runs, folder)}")
    cpu = sum(run["cpu_seconds"] for run in runs)
    print(f"{time.monotonic() - started:.0f} s in all, {cpu:.0f} s of CPU time in the runs. Written:")
    for name in ("collapse.png", "table.md", "results.json"):
        print(f"  {folder / name}")


if __name__ == "__main__":
    main()
