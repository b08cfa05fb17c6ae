"""A recipe of ours beside data that has not the splits of its author's."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_jepa.data.dataset import MissingLabelsError
from hf_jepa.data.splits import MissingSplitError
from hf_jepa.programs import finetune_llm, pretrain_image, train_vl_jepa
from hf_jepa.programs.own_data import load_rows
from hf_jepa.programs.program import RunArguments
from hf_jepa.programs.recipes import parse_recipe, resolved


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for name in ("photos/cat", "photos/dog", "captions"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((12, 10, 3), 40 * number + len(name) + name.count("o"), np.uint8)).save(
                root / name / f"{number}.png"
            )
    rows = [{"image": f"{n}.png", "query": "What is this?", "text": f"the number {n}"} for n in range(4)]
    (root / "captions" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "pairs.jsonl").write_text("\n".join(json.dumps({"text": f"say {n}", "code": str(n)}) for n in range(4)))
    return root


CASES = {
    "images": (pretrain_image.PROGRAM, ["ijepa_fashion_mnist"], "photos", "probe_split"),
    "images without labels": (pretrain_image.PROGRAM, ["ijepa_fashion_mnist"], "captions", "probe_split"),
    "pairs": (finetune_llm.PROGRAM, ["llm/nl_rx_synth_tiny"], "pairs.jsonl", "eval_split"),
    "captions": (train_vl_jepa.PROGRAM, ["captions_small"], "captions", "eval_split"),
}


def parse(program, argv):
    *parts, _ = parse_recipe((*program.argument_types, RunArguments), argv, use_cpu=True, bf16=False)
    return parts


@pytest.mark.parametrize("case", CASES)
def test_a_split_that_only_the_recipe_asks_for_gives_way(case, folders, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("hf_jepa.programs.own_data.logger.warning", said.append)
    program, argv, data, key = CASES[case]
    argv = [*argv, "--dataset", str(folders / data)]
    parts = parse(program, argv)
    assert load_rows(program, parts, argv)
    values = resolved(*parts)
    assert values.get(key) is None
    assert values.get("eval_strategy", "no") == "no"
    assert len(said) == 1
    assert f"The recipe's `{key}: " in said[0]
    assert said[0].endswith(f"this run gives no scores; choose rows for them with --{key}.")


@pytest.mark.parametrize("case", CASES)
def test_a_split_that_is_asked_for_is_missed(case, folders):
    program, argv, data, key = CASES[case]
    argv = [*argv, "--dataset", str(folders / data), f"--{key}", "absent"]
    with pytest.raises((MissingSplitError, MissingLabelsError), match="no split 'absent'|'label' is not a column"):
        load_rows(program, parse(program, argv), argv)


def test_classes_in_order_are_not_cut_in_two(folders):
    program, argv, data, _ = CASES["images"]
    argv = [*argv, "--dataset", str(folders / data), "--probe_split", "train[50%:]", "--train_split", "train[:50%]"]
    with pytest.raises(ValueError, match="class"):
        load_rows(program, parse(program, argv), argv)
