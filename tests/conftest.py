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

import gc  # noqa: E402
import random  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from fractions import Fraction  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # Every `Trainer.train` collects garbage, which costs a third of a second where all packages are looked through.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def golden_dir() -> Path:
    """Folder of the recorded reference numbers."""
    return Path(__file__).parent / "golden"


@pytest.fixture
def write_video() -> Callable[..., Path]:
    """Writes a small video in which every frame shows its number; see `frame_numbers`."""
    return _write_video


@pytest.fixture
def frame_numbers() -> Callable[[torch.Tensor], list[int]]:
    """Reads the numbers off decoded frames `(F, 3, H, W)` of a video that `write_video` wrote."""

    def read(frames: torch.Tensor) -> list[int]:
        brightness = frames.float().mean(dim=(1, 2))
        half = brightness.shape[-1] // 2
        high, low = brightness[:, :half].mean(dim=1), brightness[:, half:].mean(dim=1)
        return [16 * round(h / 15) + round(w / 15) for h, w in zip(high.tolist(), low.tolist(), strict=True)]

    return read


def _write_video(
    path: Path,
    num_frames: int = 20,
    fps: int = 10,
    size: tuple[int, int] = (32, 48),
    codec: str = "mpeg4",
    seconds: Sequence[float] | None = None,
    rotation: int = 0,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        stream.codec_context.gop_size = 7
        stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        if seconds is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            pixels = np.empty((*size, 3), np.uint8)
            # High digit left, low digit right, sixteen steps of brightness each.
            pixels[:, : size[1] // 2], pixels[:, size[1] // 2 :] = 15 * (number // 16), 15 * (number % 16)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if seconds is not None:
                frame.pts, frame.time_base = round(1000 * seconds[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
