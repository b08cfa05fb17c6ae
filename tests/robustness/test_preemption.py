"""
Runs that are killed, or told to leave, at any moment: in a step, a save, an evaluation, a release, a push. They go on
from the newest complete checkpoint and end as the undisturbed run does, to the bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import load_file

from hf_jepa.training.checkpoints import incompleteness
from tests.hub.loopback_hub import LoopbackHub, loopback_hub

PHASES = ("step", "save", "evaluation", "release", "push")
STEPS = 6


@dataclass
class Machine:
    """Runs of one recipe, each in a process of its own, which push to one Hub."""

    hub: LoopbackHub
    process: subprocess.Popen
    folder: Path

    def run(
        self, name: str, *flags: str, moment: int | None = None, number: int = signal.SIGKILL, delay: float = 0.0
    ) -> tuple[int, list[tuple[str, str]]]:
        """Exit status of a run, and its moments."""
        record = self.folder / f"{name}.record"
        record.unlink(missing_ok=True)
        argv = [str(self.folder / "recipe.yaml"), "--output_dir", str(self.folder / name)]
        argv += ["--hub_model_id", f"me/{name}", *flags]
        order = {"argv": argv, "record": str(record), "moment": moment, "signal": int(number), "delay": delay}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        lines = record.read_text().splitlines()
        return status, [tuple(line.split("\t", 1)) for line in lines]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.record.log").read_text()[-3000:]

    def outcome(self, name: str) -> dict[str, object]:
        """All that a run leaves behind and that does not tell of its time: weights, optimizer, scores, the Hub's."""
        output = self.folder / name
        tensors = {
            str(path.relative_to(output)): {key: value.numpy().tobytes() for key, value in load_file(path).items()}
            for path in sorted(output.rglob("*.safetensors"))
        }
        results = json.loads((output / "release" / "results.json").read_text())
        state = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        # Evaluations are left out by whoever is told to leave; those of the end stand in the results.
        timeless = ("step", "loss", "grad_norm", "learning_rate", "target_std")
        history = [{key: entry[key] for key in timeless} for entry in state["log_history"] if "loss" in entry]
        pushed = self.hub.repositories[f"me/{name}"].files("main")
        release = output / "release"
        files = {path.relative_to(release).as_posix(): path for path in release.rglob("*") if path.is_file()}
        assert {file: path.read_bytes() for file, path in files.items()}.items() <= pushed.items()
        return {
            "folders": sorted(path.name for path in output.iterdir()),
            "released": sorted(files),
            "pushed": sorted(pushed),
            "tensors": tensors,
            "evaluations": [(entry["task"], entry["value"]) for entry in results["evaluations"]],
            "history": history,
        }


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("preempted")
    features = Features({"image": Image(), "label": Value("int64")})
    for seed, split in enumerate(("train", "validation")):
        noise = np.random.default_rng(seed).integers(0, 256, (24, 16, 16), dtype=np.uint8)
        rows = {"image": [PILImage.fromarray(pixels) for pixels in noise], "label": [index % 3 for index in range(24)]}
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    model = {"family": "ijepa", "image_size": 16, "patch_size": 4, "num_channels": 1, "hidden_size": 16}
    model |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    model |= {"predictor_hidden_size": 8, "predictor_num_hidden_layers": 1}
    training = {"max_steps": STEPS, "per_device_train_batch_size": 4, "logging_steps": 1, "warmup_steps": 0}
    training |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "probe_every_steps": 3}
    training |= {"use_cpu": True, "disable_tqdm": True, "probe_num_neighbors": 3, "dataloader_pin_memory": False}
    training |= {"push_to_hub": True, "hub_strategy": "end", "log_level": "info"}
    data = {"dataset": str(folder), "probe_split": "validation", "image_mean": [0.5], "image_std": [0.5]}
    recipe = {
        "model": model,
        "data": data,
        "masks": {"min_keep": 1, "target_scale": [0.2, 0.25]},
        "training": training,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with loopback_hub() as hub:
        root = Path(__file__).parents[2]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")]),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "write",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.preempted_program"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        yield Machine(hub, process, folder)
        process.kill()
        process.wait()


def told_of(moments: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without what is no moment."""
    return [each for each in moments if each[0] not in ("resumed", "saved")]


@pytest.fixture(scope="module")
def undisturbed(machine: Machine) -> tuple[list[tuple[str, str]], dict[str, object]]:
    status, moments = machine.run("undisturbed")
    assert status == 0, machine.log("undisturbed")
    return told_of(moments), machine.outcome("undisturbed")


@pytest.fixture
def disturb(machine: Machine, undisturbed: tuple) -> Callable[..., None]:
    """Ends a run at a moment, goes on as a user does, and compares."""
    expected_moments, expected = undisturbed

    def check(name: str, phase: str, chosen: random.Random, number: int, delay: float = 0.0) -> None:
        places = [place for place, (each, _) in enumerate(expected_moments) if each == phase]
        moment = chosen.choice(places)
        machine.hub.objects.clear()  # or there would be nothing left to upload
        status, moments = machine.run(name, moment=moment, number=number, delay=delay)
        what = f"{signal.Signals(number).name} at {expected_moments[moment]}, moment {moment}\n{machine.log(name)}"
        if not delay:
            assert told_of(moments)[moment][0] == phase, what
            # While it trains, a run that is told to leave answers; anywhere else it is ended.
            assert status in ((-number, 128 + number) if number == signal.SIGTERM else (-number,)), what
        output = machine.folder / name
        complete = [
            int(path.name.partition("-")[2]) for path in output.glob("checkpoint-*") if incompleteness(path) is None
        ]
        saved = [int(step) for kind, step in moments if kind == "saved"]
        # What was once saved is never lost, and a run that answers has saved.
        assert max(complete, default=0) >= max(saved, default=0), what
        assert complete or status != 128 + number, what
        flags = ("--resume_from_checkpoint", "true") if complete else ("--overwrite_output_dir", "true")
        status, moments = machine.run(name, *flags)
        assert status == 0, what + machine.log(name)
        begun = [int(step) for kind, step in moments if kind == "resumed"]
        assert begun == ([] if complete and max(complete) == STEPS else [max(complete, default=0)]), what
        found = machine.outcome(name)
        for part, value in expected.items():
            assert found[part] == value, f"{part} differs after {what}"

    return check


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(disturb: Callable[..., None], phase: str) -> None:
    number = signal.SIGTERM if phase in ("step", "evaluation") else signal.SIGKILL
    disturb(phase, phase, random.Random(phase), number)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(50))
def test_at_any_of_many_moments(disturb: Callable[..., None], trial: int) -> None:
    phase = PHASES[trial % len(PHASES)]
    number = (signal.SIGKILL, signal.SIGTERM)[trial // len(PHASES) % 2]
    chosen = random.Random(trial)
    # Half of them strike some time after the moment: inside a write, a forward pass, a request.
    delay = chosen.uniform(0.0, 0.02) if trial >= 25 else 0.0
    disturb(f"trial{trial}", phase, chosen, number, delay)
