"""
Counts what one sample of three large models asks for (parameters, FLOPs, activations), on shapes alone, and writes
model_cards/comparisons/counts.json, from which docs/planning.md is rendered. A minute on a CPU.

    python -m scripts.cards.count_models
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_jepa import LLMJepaForCausalLM
from hf_jepa.masking import pack_examples
from hf_jepa.methods import method_of
from hf_jepa.programs.counting import count_work, enable_checkpointing
from hf_jepa.programs.dry_run import replace_by_shapes, report_on
from hf_jepa.programs.launch import family_of

COUNTS = Path(__file__).resolve().parents[2] / "model_cards" / "comparisons" / "counts.json"
RECIPES = {
    "I-JEPA ViT-H/14, 224 px": "ijepa_in1k_vith14",
    "V-JEPA 2 ViT-g/16, 16 frames, 256 px": "vjepa2_vitg16_pretrain",
}
# Of Llama-3.1-8B, from its published configuration.
LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
# Pairs of about the lengths of NL-RX-SYNTH with chat markup, as many as a row of 1024 tokens holds.
TEXT, RESPONSE, CODE, ROW = 54, 16, 16, 1024


def count_recipe(name: str) -> dict[str, Any]:
    """What a dry run of a recipe of images or clips counts; every sample is one image or clip."""
    program = vars(__import__(method_of(family_of([name])).load("program").__module__, fromlist=["PROGRAM"]))[
        "PROGRAM"
    ]
    with tempfile.TemporaryDirectory() as folder:
        report = report_on(program, [name], folder)
    batch = report["recipe"]["per_device_train_batch_size"]
    return {
        "recipe": name,
        "sample": "image" if "ijepa" in name else "clip",
        "batch_size": batch,
        "counted": report["cost"]["counted"],
    }


def count_llm() -> dict[str, Any]:
    """LLM-JEPA over a Llama-3.1-8B, with one soft predictor vector and gradient checkpointing, a row per sample."""
    with torch.device("meta"):
        decoder = LlamaForCausalLM(LlamaConfig(**LLAMA))
        model = LLMJepaForCausalLM.from_decoder(decoder, num_predictor_tokens=1).train()
    replace_by_shapes(model)
    enable_checkpointing(model)
    ids = list(range(3, 3 + TEXT + RESPONSE))
    pair = {"input_ids": ids, "labels": [-100] * TEXT + ids[TEXT:], "text_length": TEXT, "code_ids": ids[:CODE]}
    rows = pack_examples([pair] * (ROW // (TEXT + RESPONSE + 1 + CODE)), 1, "shared", row_length=ROW)
    assert len(rows["input_ids"]) == 1
    work, _ = count_work(model, lambda batch: model(**batch).loss, rows, 1, half=True)
    return {"recipe": None, "sample": f"row of {ROW} tokens", "batch_size": 4, "counted": asdict(work)}


def main() -> None:
    found = {title: count_recipe(name) for title, name in RECIPES.items()}
    found["LLM-JEPA, Llama-3.1-8B"] = count_llm()
    COUNTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {COUNTS}")


if __name__ == "__main__":
    main()
