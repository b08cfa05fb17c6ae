"""The fine-tuning program run as a user runs it, and its recipes."""

import importlib
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_jepa import LLMJepaTrainingArguments
from hf_jepa.programs.recipes import parse_recipe
from trainers.worlds import nl_regex

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("hf_jepa.programs.finetune_llm")


@pytest.fixture
def recipe(tmp_path) -> Path:
    train, test = nl_regex.make_splits((40, 6))
    for name, rows in (("train", train), ("test", [*test, train[0]])):
        chats = [
            {
                "messages": [
                    {"role": "user", "content": row["text"]},
                    {"role": "assistant", "content": row["code"]},
                ]
            }
            for row in rows
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    content = yaml.safe_load((ROOT / "src" / "hf_jepa" / "recipes" / "llm" / "nl_rx_synth_tiny.yaml").read_text())
    content["data"]["dataset"] = str(tmp_path)
    content["training"] |= {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "disable_tqdm": True}
    content["training"] |= {"output_dir": str(tmp_path / "run"), "generate_max_new_tokens": 3}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    "flags", [["--data_licence=cc0-1.0"], ["--objective=stp", "--num_predictor_tokens=0"], ["--lora_rank=2"]]
)
def test_a_recipe_becomes_a_release(program, recipe, tmp_path, flags, capsys):
    program.main([str(recipe), *flags])
    release = tmp_path / "run" / "release"
    results = json.loads((release / "results.json").read_text())
    assert results["data"].get("licence") == ("cc0-1.0" if flags == ["--data_licence=cc0-1.0"] else None)
    scores = {entry["metric"]: entry for entry in results["evaluations"]}
    # The row that training holds too is left out.
    assert scores["exact-match"]["num_examples"] == scores["startswith"]["num_examples"] == 6
    assert scores["exact-match"]["split"] == "test, unseen answers"
    assert scores["exact-match"]["command"].startswith("hf-jepa train ")
    assert "loss per answer token" in scores
    assert "right:" in capsys.readouterr().out
    AutoTokenizer.from_pretrained(release)
    if flags == ["--lora_rank=2"]:
        assert (release / "adapter_model.safetensors").is_file()
    else:
        AutoModelForCausalLM.from_pretrained(release)


@pytest.fixture
def paraphrases(tmp_path) -> Path:
    """The committed recipe of pretraining on paraphrases, on groups of five and at sizes that a test can pay for."""
    for split, first in (("train", 0), ("test", 6)):
        groups = [
            [f"{start} line {number}" for start in ("a", "the", "one", "some", "every")]
            for number in range(first, first + 6)
        ]
        lines = (json.dumps({"paraphrases": group}) + "\n" for group in groups)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    content = yaml.safe_load(
        (ROOT / "src" / "hf_jepa" / "recipes" / "llm" / "llama32_1b_pretrain_paraphrases.yaml").read_text()
    )
    content["model"] |= {"tokenizer": "words"}
    content["model"]["decoder"] |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    content["model"]["decoder"] |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    content["model"]["decoder"].pop("vocab_size")
    content["data"] |= {"dataset": str(tmp_path)}
    # The made-up tokenizer has no end of turn but its own template's.
    content["data"].pop("chat_template")
    content["training"] |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "bf16": False}
    content["training"] |= {"output_dir": str(tmp_path / "run"), "use_cpu": True, "logging_steps": 1}
    content["training"] |= {"disable_tqdm": True, "save_strategy": "no"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_paraphrases_are_pretrained_on(program, paraphrases, tmp_path, capsys):
    program.main([str(paraphrases), "--dry_run"])
    shown = yaml.safe_load(capsys.readouterr().out)
    # Six groups of five: the first four of each predict the next.
    assert shown["training_rows"] == 24
    assert shown["optimizer_steps"] == 24
    # <bos> <user> a line 0 <end>: the conversation is the Text alone.
    assert shown["tokens_per_conversation"] == 6
    assert shown["tokens_per_code_view"] == 5

    program.main([str(paraphrases), "--max_steps=2", "--eval_split=test"])
    results = json.loads((tmp_path / "run" / "release" / "results.json").read_text())
    # Nothing was taught to answer, so nothing is answered.
    assert [entry["metric"] for entry in results["evaluations"]] == ["loss per token"]
    assert results["evaluations"][0]["num_examples"] == 24


def test_a_dry_run_counts(program, recipe, capsys):
    program.main([str(recipe), "--dry_run"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optimizer_steps"] == 2
    assert shown["training_rows"] == 40
    assert shown["tokens_per_code_view"] > 3


@pytest.mark.parametrize(("name", "learnt"), [("nl_rx_synth_tiny", True), ("nl_rx_synth_tiny_official", False)])
def test_only_the_clean_regime_teaches_to_stop(program, recipe, tmp_path, name, learnt):
    types = (program.LLMModelArguments, program.PairArguments, LLMJepaTrainingArguments)
    path = ROOT / "src" / "hf_jepa" / "recipes" / "llm" / f"{name}.yaml"
    flags = [f"--dataset={recipe.parent}", f"--output_dir={tmp_path / 'run'}"]
    trainer = program.build_trainer(*parse_recipe(types, [str(path), *flags]))
    batch = next(iter(trainer.get_train_dataloader()))
    end = trainer.processing_class.eos_token_id
    assert (end in batch["labels"]) is learnt
    assert (trainer.processing_class.pad_token_id == end) is not learnt


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=nowhere.jsonl"], "no file or folder 'nowhere.jsonl'"),
        (["--model=x", "--licence=mit"], "Give either `model`"),
        (["--model=x"], "There is no folder 'x', and the repository x does not say .*give --licence"),
        (["--model=./x"], "There is no folder './x', and it is not the name"),
        (["--layout=official"], "predictor_mode='vocab'"),
        (["--layout=packed"], "choose 'auto' or 'official'"),
        (["--format=old"], "choose 'clean' or 'official'"),
        (["--use_dora"], "need `lora_rank`"),
        (["--jepa_lamda=1"], "did you mean '--jepa_lambda'"),
        (["--num_predictor_tokens=0", "--predictor_head=linear"], "predictor_head"),
        (["--paraphrases_column=messages"], "train_on: text"),
        (["--paraphrases_column=groups", "--train_on=text", "--unseen_only=false"], "the columns are messages"),
    ],
)
def test_bad_recipes_are_named(program, recipe, flags, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        program.main([str(recipe), *flags])
