"""The demo from images to the last line it prints, on noise and for a few steps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_demo_runs_to_its_end(tmp_path):
    generator = np.random.default_rng(0)
    features = Features({"image": Image(), "label": Value("int64")})
    for split, count in (("train", 1200), ("validation", 1000)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        rows = {"image": [PILImage.fromarray(image) for image in pixels], "label": list(np.arange(count) % 10)}
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data" / f"{split}.parquet"))
    flags = {"dataset": tmp_path / "data", "output_dir": tmp_path / "run", "max_steps": 6, "logging_steps": 2}
    command = [sys.executable, "-m", "trainers.demos.ijepa", "--split", "validation"]
    for name, value in {**flags, "warmup_steps": 2, "disable_tqdm": "true"}.items():
        command += [f"--{name}", str(value)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "features are identical" in run.stdout
    results = json.loads((tmp_path / "run" / "release" / "results.json").read_text())
    names = {entry["name"] for entry in results["baselines"]}
    assert names == {"raw pixels", "untrained encoder", "nearest training image"}
    assert len(results["pictures"]) == 5
    # Noise has no hidden part to be found.
    assert results["evaluations"][0]["value"] < 0.05
