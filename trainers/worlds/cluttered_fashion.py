"""
A world of pictures in which raw pixels do not win by alignment: one real garment of Fashion-MNIST at a random place,
in a random size and colour, over fragments of other garments, at 64 pixels. The class is the garment's.

    python -m trainers.worlds.cluttered_fashion [--output outputs/cluttered_fashion]

writes `train.parquet`, `validation.parquet` and `test.parquet`, of garments of the splits of the same names.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from trainers.worlds.moving_fashion import DATA, load_garments

CANVAS, FRAGMENTS = 64, 4
SMALLEST, LARGEST = 32, 52
SIZES = {"train": 20_000, "validation": 4_000, "test": 4_000}


def tint(rng: np.random.Generator) -> np.ndarray:
    """A colour in [0, 1], no darker than 0.6 in any channel and 1 in one."""
    colour = rng.uniform(0.6, 1.0, 3)
    colour[rng.integers(3)] = 1.0
    return colour


def paste(canvas: np.ndarray, photo: np.ndarray, side: int, rng: np.random.Generator, brightness: float) -> None:
    """Puts a photo uint8 `(h, w)`, as large as `side`, tinted, on `canvas` float `(64, 64, 3)`, black left out."""
    grey = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    row, column = rng.integers(0, CANVAS - side + 1, 2)
    place = canvas[row : row + side, column : column + side]
    covers = (grey > 0.1)[..., None]
    place[:] = np.where(covers, brightness * grey[..., None] * tint(rng), place)


def render(photos: np.ndarray, row: int, seed: int) -> np.ndarray:
    """
    The picture of a garment, from `(seed, row)` alone.

    Args:
        photos (`np.ndarray` of shape `(n, 28, 28)`): uint8; fragments are 14 x 14 pixels of any of them.
        row (`int`): of the garment in front.
        seed (`int`).

    Returns:
        `np.ndarray` of shape `(64, 64, 3)`, uint8.
    """
    rng = np.random.default_rng([seed, row])
    canvas = np.broadcast_to(rng.uniform(0, 0.25, 3), (CANVAS, CANVAS, 3)).astype(np.float32)
    for _ in range(FRAGMENTS):
        other = photos[rng.integers(len(photos))]
        top, left = rng.integers(0, 15, 2)
        paste(canvas, other[top : top + 14, left : left + 14], int(rng.integers(12, 25)), rng, rng.uniform(0.4, 0.8))
    paste(canvas, photos[row], int(rng.integers(SMALLEST, LARGEST + 1)), rng, rng.uniform(0.7, 1.0))
    canvas += rng.normal(0, 0.04, canvas.shape)
    return (255 * canvas.clip(0, 1)).astype(np.uint8)


def write(folder: Path, data: Path = DATA, sizes: dict[str, int] = SIZES, seed: int = 0) -> None:
    """Writes the splits to `folder`; a split's first garments, each once."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, size) in enumerate(sizes.items()):
        photos, labels = load_garments(data, split)
        count = min(size, len(photos))
        cells = []
        for row in range(count):
            buffer = io.BytesIO()
            Image.fromarray(render(photos, row, 10 * seed + number)).save(buffer, "PNG", compress_level=1)
            cells.append({"bytes": buffer.getvalue(), "path": None})
        features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=10)})
        Dataset.from_dict({"image": cells, "label": labels[:count]}, features).to_parquet(folder / f"{split}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/cluttered_fashion"))
    parser.add_argument("--data", type=Path, default=DATA, help="what make_demo_data.py wrote")
    options = parser.parse_args()
    write(options.output, options.data)
    print(f"{sum(SIZES.values())} pictures in {options.output}")


if __name__ == "__main__":
    main()
