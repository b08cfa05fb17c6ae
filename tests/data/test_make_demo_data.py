import gzip
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hf_jepa.data import load_image_dataset
from tests.processes import run_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_demo_data.py"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "idx"
    folder.mkdir()
    for stem, count in (("train", 30), ("t10k", 7)):
        images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 28, 28))
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", np.ascontiguousarray(images))
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    return folder


def run(out: Path, source: Path, *flags: str) -> subprocess.CompletedProcess:
    return run_script(SCRIPT.read_text(), "--out", out, "--debian-folder", source, "--num-validation", "8", *flags)


def test_splits_part_the_data_and_a_second_run_changes_nothing(source, tmp_path):
    out = tmp_path / "out"
    result = run(out, source)
    assert result.returncode == 0, result.stderr
    seen = {}
    for split, count in (("train", 22), ("validation", 8), ("test", 7)):
        rows = load_image_dataset(out, split, label_column="label")
        values = [int(np.asarray(row["image"])[0, 0]) for row in rows]
        assert len(values) == count
        assert [row["label"] for row in rows] == [value % 10 for value in values]
        assert rows.features["label"].names[9] == "Ankle boot"
        seen[split] = set(values)
    assert seen["train"] | seen["validation"] == set(range(30))
    assert not seen["train"] & seen["validation"]
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["licence"] == "MIT"
    assert provenance["num_examples"] == {"validation": 8, "train": 22, "test": 7}
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(out, source).returncode == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "test.parquet").unlink()
    assert run(out, source).returncode == 0
    assert (out / "test.parquet").exists()


def test_truncated_source_is_refused(source, tmp_path):
    path = source / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5]))
    result = run(tmp_path / "out", source)
    assert result.returncode == 1
    assert "truncated" in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_any_source_both_ways_are_named(tmp_path):
    result = run(tmp_path / "out", tmp_path / "absent")
    assert result.returncode == 1
    assert "apt-get install dataset-fashion-mnist" in result.stderr
    assert "--source hub" in result.stderr
    assert "Traceback" not in result.stderr
