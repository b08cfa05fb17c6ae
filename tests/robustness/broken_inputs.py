"""
Broken and hostile files, made from whole ones with a fixed seed: `python -m tests.robustness.broken_inputs FOLDER`
writes them all. Each comes with its kind, which says what reads it.
"""

import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig

Broken = tuple[str, Path]
HUGE = 2**31 - 1


class TouchesAFile:
    """What a hostile pickle holds; `TRACE` must never appear."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {TRACE}",)


TRACE = Path("/tmp") / f"hf-jepa-pickle-ran-{os.getpid()}"


def damaged(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Cut short at various places, with bytes flipped, and with a part left out."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        place = int(rng.integers(1, len(data)))
        if number % 3 == 0:
            yield f"cut-{place}", data[:place]
        elif number % 3 == 1:
            changed = bytearray(data)
            for where in rng.integers(0, len(data), 1 + len(data) // 50):
                changed[where] = rng.integers(256)
            yield f"flipped-{number}", bytes(changed)
        else:
            yield f"hole-{place}", data[:place] + data[place + 1 + len(data) // 10 :]


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def _npy(shape: tuple, dtype: str = "|u1", data: bytes = b"\0" * 48) -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def images(folder: Path) -> Iterator[Broken]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        for name, data in damaged(buffer.getvalue(), 6, seed=len(kind)):
            yield _written("image", folder / f"{kind.lower()}-{name}.{kind.lower()}", data)
    bomb = zlib.compress(bytes(2**24), 9)
    pages = [Image.fromarray(noise[..., 0]) for _ in range(3)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=[page.resize((20, 20)) for page in pages[1:]])
    hostile = {
        "empty.png": b"",
        "text.png": b"<html>404 Not Found</html>",
        "one-pixel.png": _png(1, 1, (b"IDAT", zlib.compress(b"\0\0"))),
        "no-pixels.png": _png(0, 0),
        "huge-header.png": _png(HUGE, HUGE, (b"IDAT", b"")),
        "bomb.png": _png(30_000, 30_000, (b"IDAT", bomb)),
        "wide-bomb.png": _png(10**9, 2, (b"IDAT", bomb)),
        "text-bomb.png": _png(24, 24, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 9)), (b"IDAT", b"")),
        "objects.npy": _npy((2, 2), "|O", pickle.dumps([TouchesAFile()])),
        "huge.npy": _npy((100_000, 100_000, 3)),
        "negative.npy": _npy((-1, 4, 4)),
        "overflow.npy": _npy((2**62, 2**62)),
        "float.npy": _npy((4, 4), "<f4", bytes(64)),
        "short.npy": _npy((64, 64, 3)),
        "flat.npy": _npy((48,)),
        "header.npy": b"\x93NUMPY\x01\x00\xff\xff{'descr': __import__('os').system('true')}",
        "float.tiff": _tiff_float(),
        "gzip.jpg": b"\x1f\x8b\x08\0\0\0\0\0",
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "postscript.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    }
    for name, data in hostile.items():
        yield _written("image", folder / name, data)


def _tiff_float() -> bytes:
    buffer = io.BytesIO()
    Image.new("F", (8, 8), 0.5).save(buffer, "TIFF")
    return buffer.getvalue()


def videos(folder: Path, whole: bytes) -> Iterator[Broken]:
    for name, data in damaged(whole, 24, seed=3):
        yield _written("video", folder / f"{name}.mp4", data)
    sizes = whole.index(b"stsz") + 12
    promises = bytearray(whole)
    # The table of sizes says how many frames there are.
    promises[sizes : sizes + 4] = struct.pack(">I", HUGE)
    hostile = {
        "empty.mp4": b"",
        "text.mp4": b"<html>404 Not Found</html>",
        "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "manifest.mp4": b"<?xml version='1.0'?><MPD></MPD>",
        "promises-frames.mp4": bytes(promises),
        "header.mp4": whole[:40],
        "noise.mp4": np.random.default_rng(0).bytes(3000),
        "noise.mkv": b"\x1aE\xdf\xa3" + np.random.default_rng(1).bytes(3000),
        "avi.avi": b"RIFF\xff\xff\xff\x7fAVI LIST" + bytes(200),
    }
    for name, data in hostile.items():
        yield _written("video", folder / name, data)


def _tiny() -> IJepaForPreTraining:
    torch.manual_seed(0)
    encoder = IJepaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    return IJepaForPreTraining(
        IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    )


def original_checkpoints(folder: Path) -> Iterator[Broken]:
    """As `torch.save` writes them, of no family in particular."""
    weights = {f"module.blocks.{index}.{kind}": torch.ones(4) for index in range(2) for kind in ("weight", "bias")}
    torch.save({"encoder": weights, "epoch": 3}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    (folder / "whole.pth").unlink()
    for name, data in damaged(whole, 12, seed=4):
        yield _written("checkpoint", folder / f"{name}.pth", data)
    wide = torch.ones(1).expand(2**20, 2**20)
    contents = {
        "pickle": {"encoder": weights, "epoch": TouchesAFile()},
        "tensor": torch.ones(3),
        "list": [weights],
        "empty": {},
        "numbers": {"encoder": {"module.blocks.0.weight": 3}},
        "no-names": {"encoder": {0: torch.ones(3)}},
        "nested": {"state_dict": {"state_dict": {"state_dict": {}}}},
        "not-a-number": {"encoder": {"module.patch_embed.proj.weight": torch.full((4, 3, 2, 2), torch.nan)}},
        "scalars": {"encoder": {"module.patch_embed.proj.weight": torch.tensor(1.0)}},
        "far-block": {"encoder": {**weights, "module.blocks.999999999.weight": torch.ones(4)}},
        "negative-block": {"encoder": {**weights, "module.blocks.-1.weight": torch.ones(4)}},
        "wide": {"encoder": {"module.patch_embed.proj.weight": wide, "module.pos_embed": wide[None]}},
        "integers": {"encoder": {name: value.long() for name, value in weights.items()}},
        "sparse": {"encoder": {"module.pos_embed": torch.eye(3).to_sparse()}},
        "empty-tensors": {"encoder": {name: torch.ones(0) for name in weights}},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
        yield "checkpoint", folder / f"{name}.pth"
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(folder / "squeezed.pth", "w") as squeezed:
        for entry in source.namelist():
            padding = bytes(2**26) if entry.endswith("data.pkl") else b""
            squeezed.writestr(entry, source.read(entry) + padding, compress_type=zipfile.ZIP_DEFLATED)
    yield "checkpoint", folder / "squeezed.pth"
    for name, data in {
        "text.pth": b"hello\n",
        "zip.pth": _zip(),
        "pickle.pkl": pickle.dumps(TouchesAFile(), protocol=2),
        "git-lfs.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    }.items():
        yield _written("checkpoint", folder / name, data)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../outside.txt", "hello")
    return buffer.getvalue()


def models(folder: Path) -> Iterator[Broken]:
    """Folders of a composite."""
    source = folder / "whole"
    _tiny().save_pretrained(source)
    config, weights = (source / "config.json").read_text(), (source / "model.safetensors").read_bytes()
    values = json.loads(config)
    tensors = load_file(source / "model.safetensors")
    key = "predictor.proj.bias"
    configs = {
        "no-json": "{",
        "list": "[]",
        "empty": "",
        "no-type": json.dumps({name: value for name, value in values.items() if name != "model_type"}),
        "unknown-type": json.dumps({**values, "model_type": "evil"}),
        "remote-code": json.dumps({**values, "model_type": "evil", "auto_map": {"AutoModelForPreTraining": "e.Evil"}}),
        "negative": json.dumps({**values, "predictor_hidden_size": -8}),
        "text": json.dumps({**values, "predictor_hidden_size": "wide"}),
        "predictor-heads": json.dumps({**values, "predictor_num_attention_heads": 3}),
        "no-encoder": json.dumps({**values, "encoder_config": 3}),
        "other-encoder": json.dumps({**values, "encoder_config": {"model_type": "evil"}}),
        "odd-heads": json.dumps({**values, "encoder_config": {**values["encoder_config"], "num_attention_heads": 3}}),
        "patches": json.dumps({**values, "encoder_config": {**values["encoder_config"], "patch_size": 0}}),
        "deep": "[" * 100_000,
    }
    for name, text in configs.items():
        place = _copy(source, folder / f"config-{name}")
        (place / "config.json").write_text(text)
        yield "model", place
    header = struct.pack("<Q", 2**62) + weights[8:]
    files = {
        "empty": b"",
        "header-length": header,
        "no-header": struct.pack("<Q", 8) + b"{{{{{{{{",
        "pickle": pickle.dumps(TouchesAFile()),
        **dict(damaged(weights[: len(weights) // 4], 6, seed=5)),
    }
    for name, data in files.items():
        place = _copy(source, folder / f"weights-{name}")
        (place / "model.safetensors").write_bytes(data)
        yield "model", place
    changes = {
        "missing": {name: value for name, value in tensors.items() if name != key},
        "extra": {**tensors, "predictor.stray": torch.ones(1)},
        "shape": {**tensors, key: torch.ones(3)},
        "none": {},
    }
    for name, content in changes.items():
        place = _copy(source, folder / f"tensors-{name}")
        save_file(content, place / "model.safetensors", metadata={"format": "pt"})
        yield "model", place
    for name in ("config.json", "model.safetensors"):
        place = _copy(source, folder / f"without-{name}")
        (place / name).unlink()
        yield "model", place
    place = _copy(source, folder / "only-pickle")
    (place / "model.safetensors").unlink()
    (place / "pytorch_model.bin").write_bytes(pickle.dumps(TouchesAFile()))
    yield "model", place
    shutil.rmtree(source)


def recipes(folder: Path) -> Iterator[Broken]:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    texts = {
        "empty": "",
        "list": "- 1\n- 2\n",
        "number": "3",
        "open": "model: {family: ijepa",
        "tabs": "model:\n\tfamily: ijepa\n",
        "twice": "family: ijepa\nmodel: {family: cjepa}\n",
        "object": "family: !!python/object/apply:os.system ['touch TRACE']\n",
        "module": "family: !!python/module:os\n",
        "name": "family: !!python/name:os.system\n",
        "laughs": laughs,
        "laughs-in-value": laughs + "family: ijepa\nencoder_args: {x: *a39}\n",
        "loop": "family: ijepa\nmethod: &m {inside: *m}\n",
        "list-loop": "family: ijepa\ncrop_scale: &m [*m]\n",
        "deep": "family: " + "[" * 20_000 + "]" * 20_000,
        "deep-mapping": "{a: " * 20_000,
        "null-byte": "family: ij\0epa\n",
        "no-anchor": "family: *absent\n",
        "long-number": "family: ijepa\nmax_steps: " + "9" * 5000 + "\n",
        "infinite-steps": "family: ijepa\nmax_steps: .inf\n",
        "no-number-steps": "family: ijepa\nmax_steps: .nan\n",
        "huge-float": "family: ijepa\nlearning_rate: 1e999999\nmax_steps: 1e400\n",
        "bad-date": "family: ijepa\nmax_steps: 2026-99-99\n",
        "bad-int": "family: ijepa\nmax_steps: !!int what\n",
        "bad-float": "family: ijepa\nlearning_rate: !!float what\n",
        "date-key": "2026-01-01: 3\nfamily: ijepa\n",
        "number-key": "1: 2\nfamily: ijepa\n",
        "null-key": "~: 2\nfamily: ijepa\n",
        "list-key": "? [a, b]\n: 3\n",
        "family-list": "family: [ijepa]\n",
        "family-mapping": "model: {family: {a: 1}}\n",
        "family-number": "family: 7\n",
        "family-null": "family:\n",
        "unknown-family": "family: evil\n",
        "unknown-key": "family: ijepa\nlerning_rate: 3\n",
        "text-for-number": "family: ijepa\nmax_steps: many\n",
        "mapping-for-list": "family: ijepa\ncrop_scale: {a: 1}\n",
        "number-for-flag": "family: ijepa\nstreaming: 3\n",
        "yes-for-text": "family: ijepa\nimage_column: yes\n",
        "negative": "family: ijepa\nmax_steps: 4\nper_device_train_batch_size: -1\n",
        "set": "family: ijepa\ncrop_scale: !!set {a, b}\n",
        "binary": "family: !!binary '***'\n",
        "surrogate": 'family: "\\uD800"\n',
        "merge": "<<: 3\nfamily: ijepa\n",
        "directive": "%YAML 9.9\n---\nfamily: ijepa\n",
        "two-documents": "family: ijepa\n---\nfamily: cjepa\n",
    }
    for name, text in texts.items():
        yield _written("recipe", folder / f"{name}.yaml", text.replace("TRACE", str(TRACE)).encode())
    yield _written("recipe", folder / "not-utf8.yaml", b"family: \xff\xfe\xfa\n")
    yield _written("recipe", folder / "gzip.yaml", b"\x1f\x8b\x08\0\0\0\0\0")


WHOLE_RESULTS = {
    "model": {"name": "tiny", "family": "ijepa", "encoder_config": {"image_size": 8, "patch_size": 4}},
    "licence": "mit",
    "data": {"name": "some/data", "num_examples": 3},
    "training": {"steps": 3, "seconds": 1.5},
    "compute": {"cpu_seconds": 3.0},
    "evaluations": [{"task": "knn", "dataset": "some/data", "split": "test", "metric": "accuracy", "value": 0.5}],
    "baselines": [{"task": "knn", "dataset": "some/data", "metric": "accuracy", "value": 0.1, "name": "pixels"}],
    "pictures": [{"file": "a.png", "caption": "A"}],
    "limits": ["none"],
}
# What no field of a results file is.
WRONG_VALUES = ([], {}, 3, "text", [[3]], {"a": None}, [None], 1e400)


def results(folder: Path) -> Iterator[Broken]:
    """Some wrong values are harmless to a card; those come out as a card or as an error."""
    texts = {
        "empty": "",
        "open": '{"model": {"name": ',
        "list": "[]",
        "null": "null",
        "number": "3",
        "deep": "[" * 100_000,
        "long-number": '{"model": ' + "9" * 5000 + "}",
        "no-model": json.dumps({"licence": "mit"}),
        "no-licence": json.dumps({"model": WHOLE_RESULTS["model"]}),
    }
    for name, text in texts.items():
        yield _written("results", folder / f"{name}.json", text.encode())
    yield _written("results", folder / "not-utf8.json", b"\xff\xfe{}")
    for section in WHOLE_RESULTS:
        for number, value in enumerate(WRONG_VALUES):
            text = json.dumps({**WHOLE_RESULTS, section: value})
            yield _written("results", folder / f"{section}-{number}.json", text.encode())
    for field in ("task", "dataset", "split", "metric", "value"):
        entry = {**WHOLE_RESULTS["evaluations"][0], field: {"a": [1]}}
        text = json.dumps({**WHOLE_RESULTS, "evaluations": [entry]})
        yield _written("results", folder / f"evaluation-{field}.json", text.encode())


def trajectories(folder: Path) -> Iterator[Broken]:
    """Folders in LeRobot's layout."""
    rows = 6
    source = folder / "whole"
    (source / "meta").mkdir(parents=True)
    (source / "data" / "chunk-000").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(buffer, "PNG")
    columns = {
        "action": [[float(row), float(row**2)] for row in range(rows)],
        "episode_index": [0] * 3 + [1] * 3,
        "timestamp": [0.1 * (row % 3) for row in range(rows)],
        "image": [{"bytes": buffer.getvalue(), "path": None}] * rows,
    }
    info = {
        "codebase_version": "v2.1",
        "features": {
            "action": {"dtype": "float32", "shape": [2]},
            "image": {"dtype": "image", "shape": [8, 8, 3]},
        },
    }
    table = source / "data" / "chunk-000" / "episode.parquet"
    (source / "meta" / "info.json").write_text(json.dumps(info))
    Dataset.from_dict(columns).to_parquet(str(table))
    infos = {
        "empty": "",
        "list": "[]",
        "no-json": "{",
        "no-version": json.dumps({"features": info["features"]}),
        "old": json.dumps({**info, "codebase_version": "v1.6"}),
        "number": json.dumps({**info, "codebase_version": 3}),
        "no-features": json.dumps({"codebase_version": "v2.1"}),
        "features-list": json.dumps({**info, "features": [1]}),
        "no-dtype": json.dumps({**info, "features": {"action": {}, "image": {}}}),
        "no-action": json.dumps({**info, "features": {"image": info["features"]["image"]}}),
        "no-camera": json.dumps({**info, "features": {"action": info["features"]["action"]}}),
        "deep": "[" * 100_000,
    }
    for name, text in infos.items():
        place = _copy(source, folder / f"info-{name}")
        (place / "meta" / "info.json").write_text(text)
        yield "trajectories", place
    name = "data/chunk-000/episode.parquet"
    for kind, data in damaged(table.read_bytes(), 6, seed=6):
        place = _copy(source, folder / f"rows-{kind}")
        (place / name).write_bytes(data)
        yield "trajectories", place
    changed = {
        "no-column": {key: value for key, value in columns.items() if key != "timestamp"},
        "text": {**columns, "action": ["up"] * rows},
        "ragged": {**columns, "action": [[1.0] * (1 + row % 2) for row in range(rows)]},
        "none": {**columns, "action": [None] * rows},
        "still": {**columns, "action": [[1.0, 1.0]] * rows},
        "unordered": {**columns, "episode_index": [1, 0, 1, 0, 1, 0]},
        "null-index": {**columns, "episode_index": [None] * rows},
        "not-a-number": {**columns, "action": [[float("nan")] * 2] * rows},
        "no-images": {**columns, "image": [{"bytes": b"junk", "path": None}] * rows},
        "no-rows": {key: value[:0] for key, value in columns.items()},
        "elsewhere": {**columns, "image": [{"bytes": None, "path": "/nowhere/frame.png"}] * rows},
    }
    for kind, content in changed.items():
        place = _copy(source, folder / f"columns-{kind}")
        Dataset.from_dict(content).to_parquet(str(place / name))
        yield "trajectories", place
    place = _copy(source, folder / "no-data")
    shutil.rmtree(place / "data")
    yield "trajectories", place
    shutil.rmtree(source)


def training_checkpoints(folder: Path, whole: Path) -> Iterator[Broken]:
    """Checkpoints of a run, every one of whose files is broken in turn, under a marker that calls them complete."""
    for file in sorted(path.name for path in whole.iterdir()):
        data = (whole / file).read_bytes()
        breaks = {"cut": data[: len(data) // 2], "list": b"[]", "empty": b"", "object": b"{}"}
        for name, content in breaks.items():
            # An own name for it, or the error could not name it.
            place = _copy(whole, folder / f"{file}-{name}" / "checkpoint-2")
            (place / file).write_bytes(content)
            marker = place / "checkpoint_complete.json"
            if file != marker.name:
                known = json.loads(marker.read_text())
                known["files"][file] = len(content)
                marker.write_text(json.dumps(known))
            yield "training checkpoint", place


def _written(kind: str, path: Path, data: bytes) -> Broken:
    path.write_bytes(data)
    return kind, path


def _copy(source: Path, place: Path) -> Path:
    shutil.copytree(source, place)
    return place


MAKERS: dict[str, Callable[..., Iterator[Broken]]] = {
    "image": images,
    "video": videos,
    "checkpoint": original_checkpoints,
    "model": models,
    "recipe": recipes,
    "results": results,
    "trajectories": trajectories,
    "training checkpoint": training_checkpoints,
}


def make(kind: str, folder: Path, *sources: object) -> list[Path]:
    """All broken inputs of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    return [path for _, path in MAKERS[kind](folder, *sources)]


if __name__ == "__main__":
    for kind in ("image", "checkpoint", "model", "recipe", "results", "trajectories"):
        made = make(kind, Path(sys.argv[1]) / kind)
        sys.stdout.write(f"{len(made)} of {kind}\n")
