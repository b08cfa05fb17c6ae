"""Every test runs offline, seeded, on one thread, with caches of its own."""

import atexit
import os
import shutil
import tempfile

# Set before torch, transformers or huggingface_hub is imported: they read these once.
_CACHE = tempfile.mkdtemp(prefix="hf-jepa-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HOME=_CACHE,
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("HF_TOKEN", None)

import random  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def golden_dir() -> Path:
    """Folder of the recorded reference numbers."""
    return Path(__file__).parent / "golden"
