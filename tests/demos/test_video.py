"""The video demo from clips to the last line it prints, on squares and for a few steps."""

import json
import sys
from functools import partial

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from trainers.demos import video


@pytest.mark.slow
def test_demo_runs_to_its_end(tmp_path, monkeypatch, capsys):
    pictures = [PILImage.fromarray(np.pad(np.full((20, 20), 20 * index, np.uint8), 4)) for index in range(1, 13)]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=12)})
    rows = Dataset.from_dict({"image": pictures, "label": list(range(12))}, features=features)
    for split in ("train", "test"):
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "MovingFashion", partial(video.MovingFashion, folder=tmp_path))
    for name, value in {"TRAIN": 64, "LABELLED": 60, "SCORED": 40, "TWINS": 8}.items():
        monkeypatch.setattr(video, name, value)
    flags = ["--max_steps=4", "--warmup_steps=1", "--logging_steps=2", "--per_device_train_batch_size=4"]
    monkeypatch.setattr(sys, "argv", ["video", "--output_dir", "run", *flags, "--disable_tqdm=true"])
    video.main()
    assert "features agree" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "release" / "results.json").read_text())
    assert {entry["name"] for entry in results["baselines"]} == {"untrained encoder", "first frame only"}
    files = {picture["file"] for picture in results["pictures"]}
    assert {"curves.png", "masks.png", "feature_pca.png", "surprise.png"} <= files
    assert all((tmp_path / "run" / "release" / name).stat().st_size for name in files)
