"""
Writes the demo's Fashion-MNIST as parquet files (train, validation, test) with an image and a label column.

The pictures come from the Debian package dataset-fashion-mnist where it is installed, otherwise (or with --source hub)
from the Hub dataset zalando-datasets/fashion_mnist. The validation split is cut out of the training images.

    python scripts/make_demo_data.py --out demo_data
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np

CLASS_NAMES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HUB_NAME = "zalando-datasets/fashion_mnist"
PROVENANCE = "provenance.json"
FORMAT = 1


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped idx file of unsigned bytes (the MNIST format)."""
    data = gzip.decompress(path.read_bytes())
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not a gzipped idx file of unsigned bytes.")
    num_dims = data[3]
    shape = np.frombuffer(data, ">u4", count=num_dims, offset=4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims)
    if values.size != shape.prod():
        raise ValueError(f"{path} announces {tuple(shape)} values but holds {values.size}: it is truncated.")
    return values.reshape(shape)


def from_debian(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    splits = {"train": "train", "test": "t10k"}
    return {
        split: (read_idx(folder / f"{stem}-images-idx3-ubyte.gz"), read_idx(folder / f"{stem}-labels-idx1-ubyte.gz"))
        for split, stem in splits.items()
    }


def from_hub() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    import datasets

    arrays = {}
    for split in ("train", "test"):
        dataset = datasets.load_dataset(HUB_NAME, split=split)
        images = np.stack([np.asarray(image.convert("L")) for image in dataset["image"]])
        arrays[split] = images, np.asarray(dataset["label"], np.uint8)
    return arrays


def write_parquet(images: np.ndarray, labels: np.ndarray, path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage

    rows = []
    for image in images:
        buffer = io.BytesIO()
        PILImage.fromarray(image).save(buffer, "PNG", compress_level=1)
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=CLASS_NAMES)})
    # Written under another name first: an interrupted run must not leave half a file that looks whole.
    unfinished = path.with_suffix(".unfinished")
    Dataset.from_dict({"image": rows, "label": labels.tolist()}, features=features).to_parquet(str(unfinished))
    unfinished.replace(path)


def digest(arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    sha256 = hashlib.sha256()
    for split in sorted(arrays):
        for array in arrays[split]:
            sha256.update(np.ascontiguousarray(array, np.uint8).tobytes())
    return sha256.hexdigest()


def make_demo_data(out: Path, source: str, debian_folder: Path, num_validation: int, seed: int) -> dict:
    settings = {"format": FORMAT, "num_validation": num_validation, "seed": seed}
    provenance_path = out / PROVENANCE
    if provenance_path.exists():
        provenance = json.loads(provenance_path.read_text())
        complete = all((out / f"{split}.parquet").exists() for split in ("train", "validation", "test"))
        if complete and provenance["settings"] == settings and source in ("auto", provenance["source"]):
            return provenance
    if source == "auto":
        source = "debian" if debian_folder.exists() else "hub"
    arrays = from_debian(debian_folder) if source == "debian" else from_hub()
    images, labels = arrays["train"]
    if not 0 < num_validation < len(images):
        raise ValueError(f"--num-validation must be between 1 and {len(images) - 1}, got {num_validation}.")
    order = np.random.default_rng(seed).permutation(len(images))
    rows = {"validation": np.sort(order[:num_validation]), "train": np.sort(order[num_validation:])}
    splits = {name: (images[row], labels[row]) for name, row in rows.items()} | {"test": arrays["test"]}
    out.mkdir(parents=True, exist_ok=True)
    provenance_path.unlink(missing_ok=True)
    for name, (split_images, split_labels) in splits.items():
        write_parquet(split_images, split_labels, out / f"{name}.parquet")
    provenance = {
        "name": "Fashion-MNIST",
        "source": source,
        "origin": "Debian package dataset-fashion-mnist" if source == "debian" else f"Hub dataset {HUB_NAME}",
        "licence": "MIT",
        "sha256_of_pixels_and_labels": digest(arrays),
        "num_examples": {name: len(split_labels) for name, (_, split_labels) in splits.items()},
        "settings": settings,
    }
    provenance_path.write_text(json.dumps(provenance, indent=2) + "\n")
    return provenance


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_data"), help="folder to write (default: demo_data)")
    parser.add_argument("--source", choices=["auto", "debian", "hub"], default="auto")
    parser.add_argument(
        "--debian-folder",
        type=Path,
        default=Path(os.environ.get("FASHION_MNIST_DIR", DEBIAN_FOLDER)),
        help=f"folder of the idx files (default: $FASHION_MNIST_DIR, or {DEBIAN_FOLDER})",
    )
    parser.add_argument("--num-validation", type=int, default=5000, help="images cut out of train (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the validation split (default: 0)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        provenance = make_demo_data(args.out, args.source, args.debian_folder, args.num_validation, args.seed)
    except Exception as error:  # whatever the cause, the reader needs the two ways to get the data
        print(
            f"Cannot make the demo data: {error}\n"
            "Either install the Debian package:  apt-get install dataset-fashion-mnist\n"
            f"or, with a connection to the Hub:   python {sys.argv[0]} --source hub",
            file=sys.stderr,
        )
        return 1
    print(f"{args.out}: {provenance['num_examples']} from the {provenance['origin']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
