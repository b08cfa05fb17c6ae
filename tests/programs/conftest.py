"""A folder of images, and a recipe that trains a tiny I-JEPA on it in a second."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    features = Features({"image": Image(), "label": Value("int64")})
    for seed, split in enumerate(("train", "validation")):
        noise = np.random.default_rng(seed).integers(0, 256, (48, 16, 16), dtype=np.uint8)
        rows = {"image": [PILImage.fromarray(pixels) for pixels in noise], "label": [index % 3 for index in range(48)]}
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


@pytest.fixture
def recipe(tmp_path, dataset) -> list[str]:
    content = {
        "model": {
            "family": "ijepa",
            "image_size": 16,
            "patch_size": 4,
            "num_channels": 1,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "predictor_hidden_size": 8,
            "predictor_num_hidden_layers": 1,
        },
        "data": {
            "dataset": str(dataset),
            "probe_split": "validation",
            "image_mean": [0.5],
            "image_std": [0.5],
        },
        "masks": {"min_keep": 1, "target_scale": [0.2, 0.25]},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "logging_steps": 2,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return [str(path)]
