"""The VL-JEPA program run as a user runs it: two stages and a Y-decoder from manifests, and its recipes."""

import importlib
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoModel, AutoProcessor, LlamaConfig, LlamaForCausalLM, VJEPA2Model

from tests import vl_jepa_world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("hf_jepa.programs.train_vl_jepa")


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny parts, as a hub would give them."""
    folder = tmp_path_factory.mktemp("parts")
    model, processor = vl_jepa_world.build_model(), vl_jepa_world.build_processor()
    VJEPA2Model(model.config.vision_config).save_pretrained(folder / "vision")
    processor.video_processor.save_pretrained(folder / "vision")
    model.y_encoder.model.save_pretrained(folder / "text")
    prompts = {"prompts": {"document": "w25 "}}
    (folder / "text" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, eos_token_id=1
    )
    LlamaForCausalLM(config).save_pretrained(folder / "decoder")
    for name in ("text", "decoder"):
        processor.query_tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("vision", "text", "decoder")}


@pytest.fixture
def recipe(tmp_path, parts) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for number, row in enumerate(vl_jepa_world.build_rows(12)):
        image = row["image"] if row["video"] is None else row["video"][0]
        Image.fromarray(image).save(data / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": row["text"], "ask": row["ask"]})
    for split in ("train", "validation"):
        lines = [json.dumps(row) for row in (rows if split == "train" else rows[:5])]
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    content = {
        "model": {"vision": parts["vision"], "predictor": parts["decoder"], "y_encoder": parts["text"]},
        "data": {"dataset": [str(data)], "eval_split": "validation", "num_frames": 2},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        },
    }
    content["model"] |= {"licence": "mit", "num_layers": 1, "config": {"projection_dim": 12, "pool_tokens": "all"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_two_stages_and_a_decoder(program, parts, recipe, tmp_path, capsys):
    first = [str(recipe), f"--y_decoder={parts['decoder']}", "--target_prompt=document"]
    program.main([*first, "--gradient_cache_micro_batch=3"])
    release = tmp_path / "run" / "release"
    model = AutoModel.from_pretrained(release)
    # Folders of this machine are no sources for others.
    assert model.config.sources is None
    assert AutoProcessor.from_pretrained(release).target_prompt == "document"
    results = json.loads((release / "results.json").read_text())
    assert {entry["metric"] for entry in results["evaluations"]} == {"recall@1", "recall@5", "recall@10"}
    assert results["training"]["pairs_per_loss"] == 4
    assert "licence of the data" in (release / "README.md").read_text()
    content = yaml.safe_load(recipe.read_text())
    content["model"] = {"checkpoint": str(release), "licence": "mit", "config": {"image_num_frames": 4}}
    content["data"] |= {"query_column": "ask", "target_prompt": "document", "data_licence": "cc0-1.0"}
    content["training"]["output_dir"] = str(tmp_path / "second")
    recipe.write_text(yaml.safe_dump(content))
    program.main([str(recipe), "--y_decoder_steps=3", "--lora_rank=2"])
    assert json.loads((tmp_path / "second/release/results.json").read_text())["data"]["licence"] == "cc0-1.0"
    second = AutoModel.from_pretrained(tmp_path / "second" / "release")
    assert second.config.image_num_frames == 4
    assert second.config.predictor_adapter["r"] == 2
    before, after = model.y_decoder.state_dict(), second.y_decoder.state_dict()
    assert {name for name in before if (before[name] != after[name]).any()} == {"prefix.weight", "prefix.bias"}
    assert "retrieval of texts by prediction  recall@1" in capsys.readouterr().out


def test_a_dry_run_counts(program, recipe, capsys):
    program.main([str(recipe), "--dry_run", "--gradient_accumulation_steps=2"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["pairs_per_loss"] == 4
    assert shown["global_batch_size"] == 8
    assert shown["training_rows"] == 12
    assert set(shown["parameters"]) >= {"vision", "predictor", "y_encoder", "vision_projection"}
    assert shown["trainable_parameters"] < sum(shown["parameters"].values())


def test_mixtures_and_random_predictors(program, recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    content["data"] |= {"dataset": content["data"]["dataset"] * 2, "dataset_weights": [0.7, 0.3], "eval_split": None}
    content["data"]["queries"] = ["w1 w2", "w3"]
    content["model"]["predictor"] = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    del content["model"]["num_layers"]
    content["model"]["config"] |= {"loss": "cosine", "regularizer": "vicreg"}
    recipe.write_text(yaml.safe_dump(content))
    program.main([str(recipe)])
    config = AutoModel.from_pretrained(tmp_path / "run" / "release").config
    assert (config.predictor_config.num_hidden_layers, config.predictor_config.vocab_size) == (2, 30)
    assert (config.loss, config.regularizer) == ("cosine", "vicreg")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=nowhere/at/all.jsonl"], "no file or folder"),
        (["--checkpoint=x"], "leave vision, predictor, y_encoder out"),
        (["--config={projektion_dim: 3}"], "projektion_dim"),
        (["--query_column=question"], "No dataset has the column 'question'"),
        (["--target_column=caption"], "no column 'caption'"),
        (["--y_decoder_steps=3"], "needs a `y_decoder`"),
        (["--licence="], "give --licence"),
        (["--num_layers=5"], "were asked of a decoder that has 2"),
        (["--target_prompt=query"], "no prompt 'query'"),
        (["--config={projection_dim: 0}"], "projection_dim"),
        (["--lora_runk=2"], "did you mean '--lora_rank'"),
        (["--per_device_train_batch_size=1"], "accumulation adds no negatives"),
    ],
)
def test_bad_recipes_are_named(program, recipe, flags, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        program.main([str(recipe), *flags])


def test_parts_that_are_missing_are_named(program, recipe):
    content = yaml.safe_load(recipe.read_text())
    del content["model"]["vision"]
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="Give `vision`, `predictor` and `y_encoder`"):
        program.main([str(recipe)])
