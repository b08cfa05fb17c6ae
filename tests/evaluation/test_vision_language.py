"""Evaluation of a VL-JEPA on datasets, against its embeddings; and through the command."""

import json

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
)

from hf_jepa import VLJepaModel, VLJepaProcessor
from hf_jepa.cli import main
from hf_jepa.evaluation import evaluate_vision_language
from hf_jepa.pipelines.vl_jepa import VLJepaPipeline

WIDE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
WORDS = ("cat", "dog", "bird", "house", "a", "what", "is", "it", "red", "blue")


@pytest.fixture
def model_folder(tmp_path):
    language = {"vocab_size": 20, "max_position_embeddings": 40, "initializer_range": 0.3, **WIDE}
    parts = (
        AutoModel.from_config(AutoConfig.for_model("vit", image_size=16, patch_size=8, initializer_range=0.3, **WIDE)),
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **language)),
        AutoModel.from_config(AutoConfig.for_model("bert", **language)),
    )
    vocabulary = {"[PAD]": 0, **{word: place + 3 for place, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    processor = VLJepaProcessor(
        ViTImageProcessor(size={"height": 16, "width": 16}), None, tokenizer, tokenizer, num_frames=2
    )
    VLJepaModel.from_components(*parts, num_layers=2, projection_dim=16).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def rows(tmp_path):
    """Six images with labels, texts (two alike), questions, answers and candidates, as a list of files."""
    (tmp_path / "images").mkdir()
    table = []
    for place, (label, text, answer) in enumerate(
        [("cat", "a cat", "red"), ("dog", "a dog", "blue"), ("bird", "bird", "red"), ("cat", "a cat", "blue"),
         ("house", "a red house", "red"), ("dog", "blue dog", "red")]
    ):  # fmt: skip
        pixels = np.random.default_rng(place).integers(0, 255, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{place}.png")
        table.append({"image": f"images/{place}.png", "label": label, "text": text, "answer": answer})
    return table


def write(rows, path, **extra):
    path.write_text("".join(json.dumps({**row, **extra}) + "\n" for row in rows))
    return path


def pictures(rows, tmp_path):
    return [str(tmp_path / row["image"]) for row in rows]


def values(results):
    return {entry["metric"]: entry["value"] for entry in results["evaluations"]}


def test_zero_shot(model_folder, rows, tmp_path):
    pipeline = VLJepaPipeline.from_pretrained(str(model_folder))
    results = evaluate_vision_language(
        model_folder, write(rows, tmp_path / "t.jsonl"), query="what is it", batch_size=4
    )
    names = ["bird", "cat", "dog", "house"]
    found = pipeline.zero_shot_classify(names, pictures(rows, tmp_path), query="what is it", top_k=1)
    right = [row["label"] == best[0].text for row, best in zip(rows, found, strict=True)]
    assert values(results) == {"accuracy": pytest.approx(sum(right) / 6)}
    entry = results["evaluations"][0]
    assert (entry["num_examples"], entry["num_labels"], entry["features"]) == (6, 4, "query: what is it")
    # The template changes what is encoded of a name.
    other = pipeline.zero_shot_classify(names, pictures(rows, tmp_path), template="a red {}", top_k=1)
    right = [row["label"] == best[0].text for row, best in zip(rows, other, strict=True)]
    found = evaluate_vision_language(model_folder, tmp_path / "t.jsonl", template="a red {}")
    assert values(found)["accuracy"] == pytest.approx(sum(right) / 6)


def test_labels_of_a_saved_dataset(model_folder, rows, tmp_path):
    import datasets

    names = ["bird", "cat", "dog", "house"]
    table = datasets.Dataset.from_dict(
        {"image": pictures(rows, tmp_path), "label": [names.index(row["label"]) for row in rows]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
    )
    table.save_to_disk(str(tmp_path / "saved"))
    listed = evaluate_vision_language(model_folder, write(rows, tmp_path / "t.jsonl"))
    assert values(evaluate_vision_language(model_folder, tmp_path / "saved")) == values(listed)


def test_retrieval_counts_equal_texts_as_right(model_folder, rows, tmp_path):
    pipeline = VLJepaPipeline.from_pretrained(str(model_folder))
    results = evaluate_vision_language(model_folder, write(rows, tmp_path / "t.jsonl"), task="retrieval")
    texts = [row["text"] for row in rows]
    cosine = pipeline.encode(images=pictures(rows, tmp_path)) @ pipeline.encode_text(texts).T
    by_image = [texts[best] == text for best, text in zip(cosine.argmax(dim=1).tolist(), texts, strict=True)]
    by_text = [texts[best] == text for best, text in zip(cosine.argmax(dim=0).tolist(), texts, strict=True)]
    found = values(results)
    assert found["retrieval at 1"] == pytest.approx(sum(by_image) / 6)
    assert found["text-to-media retrieval at 1"] == pytest.approx(sum(by_text) / 6)
    assert found["retrieval at 10"] == 1


def test_question_answering(model_folder, rows, tmp_path):
    pipeline = VLJepaPipeline.from_pretrained(str(model_folder))
    asked = [{**row, "text": f"what is it {row['label']}"} for row in rows]
    found = evaluate_vision_language(model_folder, write(asked, tmp_path / "t.jsonl"), task="vqa")
    best = pipeline.answer([row["text"] for row in asked], ["blue", "red"], pictures(rows, tmp_path))
    right = [row["answer"] == ranked[0].text for row, ranked in zip(rows, best, strict=True)]
    assert values(found)["accuracy"] == pytest.approx(sum(right) / 6)
    # A row's own candidates count; with one there is no choice.
    alone = [{**row, "candidates": [row["answer"]]} for row in asked]
    assert values(evaluate_vision_language(model_folder, write(alone, tmp_path / "a.jsonl"), task="vqa")) == {
        "accuracy": 1.0
    }


def test_the_command(model_folder, rows, tmp_path, capsys):
    listed = write(rows, tmp_path / "t.jsonl")
    output = tmp_path / "found.json"
    arguments = ["evaluate", str(model_folder), "--dataset", str(listed), "--task", "retrieval", "--max-test", "5"]
    assert main([*arguments, "--output", str(output)]) == 0
    assert "retrieval  retrieval at 1: " in capsys.readouterr().out
    results = json.loads(output.read_text())
    assert results["data"]["num_examples"] == 5
    assert results["evaluations"][0]["command"].startswith("hf-jepa evaluate")


def test_bad_input(model_folder, rows, tmp_path):
    listed = write(rows, tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match="one of zero-shot, retrieval, vqa, got 'caption'"):
        evaluate_vision_language(model_folder, listed, task="caption")
    with pytest.raises(ValueError, match="no column 'species'"):
        evaluate_vision_language(model_folder, listed, label_column="species")
    with pytest.raises(ValueError, match=r"none of the columns \['video', 'photo'\]"):
        evaluate_vision_language(model_folder, listed, image_column="photo")
    wrong = write(rows, tmp_path / "w.jsonl", candidates=["blue"])
    with pytest.raises(ValueError, match=r"Row 0: the answer 'red' is not among its candidates \['blue'\]"):
        evaluate_vision_language(model_folder, wrong, task="vqa")
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="Among rows 2 to 3: Image 1 cannot be read"):
        evaluate_vision_language(model_folder, listed, batch_size=2)
    with pytest.raises(ValueError, match="Cannot load a VL-JEPA"):
        evaluate_vision_language(tmp_path / "nowhere", listed)
