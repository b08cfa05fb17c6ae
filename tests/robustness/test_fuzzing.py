"""
Ten minutes of generated files for converters, the recipe loader and the card renderer: whatever they are fed, it comes
out whole or ends in a `ValueError` that names the file. `HF_JEPA_FUZZ_SECONDS` sets the time of all of them together.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hf_jepa.conversion.ijepa import convert_ijepa_checkpoint
from hf_jepa.conversion.vjepa import convert_vjepa_checkpoint
from hf_jepa.conversion.vjepa2 import convert_vjepa2_checkpoint
from hf_jepa.hub.card import render_card_file
from hf_jepa.programs.launch import program_of
from hf_jepa.programs.pretrain_image import PROGRAM
from hf_jepa.programs.recipes import parse_recipe, recipe_names, resolved
from tests.conversion.original_files import training_file
from tests.robustness.broken_inputs import WHOLE_RESULTS

SECONDS = float(os.environ.get("HF_JEPA_FUZZ_SECONDS", "600"))
TARGETS = 3

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def fuzz(check: Callable[..., None], examples: int, seconds: float, **strategies: st.SearchStrategy) -> None:
    """Rounds of examples, each from a seed of its own, until the time is over; one round where it is 0."""
    until, number = time.monotonic() + seconds, 0
    while number == 0 or time.monotonic() < until:
        settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
            seed(number)(given(**strategies)(check))
        )()
        number += 1


@pytest.fixture(params=[0.0, pytest.param(SECONDS / TARGETS, marks=pytest.mark.slow)])
def seconds(request: pytest.FixtureRequest) -> float:
    return request.param


def named(read: Callable[[], Any], path: Path) -> None:
    try:
        read()
    except (ValueError, OSError) as error:
        if path.name not in str(error):
            raise AssertionError(f"{type(error).__name__} names no file: {error}") from error


def changed(content: Any, edits: list[tuple[int, int, Any]]) -> Any:
    """A structure with values replaced, taken away, or renamed at places that numbers choose."""
    content = json.loads(json.dumps(content))
    for depth, where, value in edits:
        place = content
        for _ in range(depth):
            inner = [
                part
                for part in (place.values() if isinstance(place, dict) else place)
                if isinstance(part, dict | list) and part
            ]
            if not inner:
                break
            place = inner[where % len(inner)]
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if keys:
            place[keys[where % len(keys)]] = value
    return content


edits = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), anything), min_size=1, max_size=4)


def test_results_files(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "results.json"

    def check(edits: list[Any]) -> None:
        path.write_text(json.dumps(changed(WHOLE_RESULTS, edits)))
        named(lambda: render_card_file(path), path)

    fuzz(check, 20, seconds, edits=edits)


def test_recipes(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "fuzzed.yaml"
    whole = [
        yaml.safe_load(recipe_names()[name].read_text()) for name in ("ijepa_fashion_mnist", "lejepa_fashion_mnist")
    ]
    pieces = [
        "family: ijepa\n",
        "max_steps: ",
        "crop_scale: [",
        "- ",
        "&a ",
        "*a",
        "!!int ",
        "{",
        "}",
        "]",
        "? ",
        "|\n",
        "'",
        '"',
    ]
    text = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=12).map("".join)

    def check(number: int, edits: list[Any], text: str | None) -> None:
        if text is None:
            text = yaml.safe_dump(changed(whole[number], edits), allow_unicode=True)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))

        def read() -> None:
            program_of([str(path)])
            resolved(*parse_recipe(PROGRAM.argument_types, [str(path), "--output_dir", str(tmp_path)]))

        named(read, path)

    fuzz(check, 20, seconds, number=st.integers(0, 1), edits=edits, text=st.none() | text)


def test_converters(tmp_path: Path, seconds: float, golden_dir: Path) -> None:
    path, output = tmp_path / "fuzzed.pth", tmp_path / "out"
    cases = {convert_vjepa_checkpoint: "vjepa_forward", convert_vjepa2_checkpoint: "vjepa2_forward"}
    cases |= {convert_ijepa_checkpoint: "ijepa_forward"}
    files = {convert: training_file(case) for convert, case in cases.items()}
    shapes = st.lists(st.integers(0, 9), max_size=5).map(lambda shape: torch.zeros(shape))
    dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
    edit = st.tuples(
        st.sampled_from(["drop", "shape", "dtype", "rename", "plain", "nest", "prefix"]),
        st.integers(0, 10**6),
        st.one_of(
            shapes, dtypes, st.text(max_size=6), plain, st.integers(0, 10**9).map("blocks.{}.norm1.weight".format)
        ),
    )

    heads = {"num_attention_heads": 4, "predictor_num_attention_heads": 4}
    for convert, content in files.items():
        torch.save(content, path)
        convert(path, output, licence="mit", overwrite=True, **heads)

    def mutate(content: dict[str, Any], edits: list[Any]) -> Any:
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
        for kind, where, value in edits:
            groups = [group for group in content.values() if isinstance(group, dict) and group]
            if not groups:
                break
            group = groups[where % len(groups)]
            key = list(group)[where % len(group)]
            if kind == "drop":
                del group[key]
            elif kind in ("shape", "plain"):
                group[key] = value
            elif kind == "dtype" and isinstance(value, torch.dtype) and isinstance(group[key], torch.Tensor):
                group[key] = group[key].to(value)
            elif kind == "rename":
                group[value if isinstance(value, str) else str(value)] = group.pop(key)
            elif kind == "nest":
                content = {"state_dict": content} if where % 2 else {"model": group}
            elif kind == "prefix":
                group |= {f"module.{name}": group.pop(name) for name in list(group)}
        return content

    def check(convert: Callable[..., Path], edits: list[Any]) -> None:
        torch.save(mutate(files[convert], edits), path)
        named(lambda: convert(path, output, licence="mit", overwrite=True, **heads), path)
        shutil.rmtree(output, ignore_errors=True)

    fuzz(check, 8, seconds, convert=st.sampled_from(list(files)), edits=st.lists(edit, min_size=1, max_size=3))
