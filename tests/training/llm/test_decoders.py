"""Decoders with tied and untied embeddings, with and without adapters: trained, saved, resumed, exported, merged."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from hf_jepa import LLMJepaForCausalLM, LLMJepaTrainer
from hf_jepa.cli import main

# Two predictor tokens behind the 94 of the tokenizer.
ADAPTERS: dict[str, tuple[str, Callable[[list[int]], dict[str, Any]] | None]] = {
    "none, soft": ("soft", None),
    "none, vocab": ("vocab", None),
    "LoRA, soft": ("soft", lambda ids: {}),
    "LoRA, rows": ("vocab", lambda ids: {"trainable_token_indices": ids}),
    "LoRA, modules_to_save": ("vocab", lambda ids: {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "LoRA, ensure_weight_tying": (
        "vocab",
        lambda ids: {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "LoRA on the embedding": ("vocab", lambda ids: {"target_modules": ["q_proj", "embed_tokens"]}),
}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[2, 7, 9, 11]])).logits


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    expected = one.state_dict()
    return all(torch.equal(expected[name], value) for name, value in other.state_dict().items())


@pytest.fixture
def make(make_llm_trainer: Callable[..., LLMJepaTrainer]) -> Callable[..., LLMJepaTrainer]:
    def build(tied: bool, name: str, **args: Any) -> LLMJepaTrainer:
        mode, adapter = ADAPTERS[name]
        model = {"num_predictor_tokens": 2, "predictor_mode": mode}
        decoder = {"tie_word_embeddings": tied}
        plain = make_llm_trainer(model, decoder=decoder)
        trainer = {}
        if adapter is not None:
            options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
            options |= adapter(sorted(plain.model.config.predictor_token_ids or []))
            trainer["peft_config"] = LoraConfig(**options)
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
        return make_llm_trainer(model, trainer, decoder, **{**settings, **args})

    return build


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_decoder_goes_all_the_way(make, tmp_path, capsys, name, tied):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    # The worst comes last: a step so long that the first checkpoint stays the best.
    whole = make(tied, name, learning_rate=0.05, greater_is_better=True, **settings)
    whole.train()
    best = whole.state.best_model_checkpoint
    words, head = whole.model.get_input_embeddings(), whole.model.get_output_embeddings()
    if "LoRA" not in name:
        assert (words.weight is head.weight) == tied

    resumed = make(tied, name, output_dir=str(tmp_path / "resumed"), greater_is_better=True, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert equal(whole.model, resumed.model)
    # The best one was loaded, and is what its checkpoint holds.
    assert best is not None
    assert equal(whole.model, LLMJepaForCausalLM.from_pretrained(best))

    merged = AutoModelForCausalLM.from_pretrained(whole.write_release(merge_adapter=True))
    size = merged.config.vocab_size
    torch.testing.assert_close(logits(merged), logits(whole.model.decoder)[..., :size], rtol=1e-4, atol=1e-5)
    exported = tmp_path / "exported"
    command = ["export", best, str(exported), "--license", "mit", *(["--merge-adapter"] if "LoRA" in name else [])]
    assert main(command) == 0, capsys.readouterr().err
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(exported)), logits(merged))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_decoder_that_comes_with_an_adapter_resumes_and_is_released(make_llm_trainer, tmp_path, tied):
    base = make_llm_trainer(decoder={"tie_word_embeddings": tied}).model.export_decoder()
    base.save_pretrained(tmp_path / "base")

    def build(folder: str) -> LLMJepaTrainer:
        torch.manual_seed(3)
        decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        decoder = get_peft_model(decoder, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        template = make_llm_trainer(output_dir=str(tmp_path / folder), save_strategy="steps", save_steps=1)
        model = LLMJepaForCausalLM.from_decoder(decoder)
        return LLMJepaTrainer(
            model, template.args, template.train_dataset.rows, processing_class=template.processing_class
        )

    whole, resumed = build("whole"), build("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert equal(whole.model, resumed.model)
    assert equal(whole.model, LLMJepaForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-2"))
    folder = whole.write_release()
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tmp_path / "base")
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder)
    torch.testing.assert_close(logits(reloaded), logits(whole.model.decoder))
    merged = AutoModelForCausalLM.from_pretrained(whole.write_release(merge_adapter=True))
    torch.testing.assert_close(logits(merged), logits(whole.model.decoder))
