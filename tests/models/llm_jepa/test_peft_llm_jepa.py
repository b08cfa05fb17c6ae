"""LLM-JEPA around a decoder with LoRA adapters."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM

from hf_jepa import LLMJepaForCausalLM
from hf_jepa.masking import pack_examples
from hf_jepa.programs.counting import enable_checkpointing


@pytest.fixture(params=["llama", "llama_tied"])
def base(request, make_decoder):
    return make_decoder(request.param)


@pytest.fixture
def model(base):
    adapted = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return LLMJepaForCausalLM.from_decoder(adapted, num_predictor_tokens=2)


def test_only_adapters_and_predictor_vectors_learn(base, model, examples):
    batch = pack_examples(examples, 2, "shared")
    model.train()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    model(**batch).loss.backward()
    optimizer.step()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "lora_" in name or name == "predictor_tokens"}
    assert len(changed) == 13
    # The wrapped decoder is the adapted one: its one pass is what separate passes give.
    model.eval()
    output = model(**batch)
    ids = torch.tensor([examples[0]["code_ids"]])
    expected = model.causal_lm.base_model(ids).last_hidden_state[0, -1]
    torch.testing.assert_close(output.code_embeddings[0], expected, rtol=1e-5, atol=1e-5)
    assert (base.base_model(ids).last_hidden_state[0, -1] - expected).abs().max() > 1e-2


def test_gradient_checkpointing_with_frozen_embeddings(model, examples):
    batch = pack_examples(examples, 2, "shared")
    weight = model.causal_lm.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    (expected,) = torch.autograd.grad(model.train()(**batch).loss, weight)
    enable_checkpointing(model)
    model.enable_input_require_grads()
    (found,) = torch.autograd.grad(model(**batch).loss, weight)
    torch.testing.assert_close(found, expected)


def test_adapter_reloads_with_peft_alone_or_merged(base, model, examples, tmp_path):
    ids = torch.tensor([examples[0]["input_ids"]])
    expected = model.eval().decoder(ids).logits
    model.export_decoder(merge_adapter=False).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "model.safetensors").exists()
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, expected)
    merged = model.export_decoder()
    assert type(merged) is type(base)
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    # Exporting changes nothing here.
    assert torch.equal(model.decoder(ids).logits, expected)


def test_a_training_checkpoint_restores_adapters(model, examples, tmp_path):
    batch = pack_examples(examples, 2, "shared")
    expected = model.eval()(**batch).loss
    model.save_pretrained(tmp_path)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    assert not torch.allclose(model(**batch).loss, expected)
    model.load_state_dict(state)
    assert torch.equal(model(**batch).loss, expected)


@pytest.mark.parametrize("tied", [False, True])
def test_trained_rows_of_predictor_tokens(make_decoder, examples, tmp_path, tied):
    decoder = make_decoder("llama_tied" if tied else "llama")
    decoder.resize_token_embeddings(62)
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        trainable_token_indices=[60, 61],
        task_type="CAUSAL_LM",
        ensure_weight_tying=tied,
    )
    options = {"predictor_mode": "vocab", "predictor_token_ids": [61, 60], "original_vocab_size": 60}
    model = LLMJepaForCausalLM.from_decoder(get_peft_model(decoder, config), num_predictor_tokens=2, **options)
    batch = pack_examples(examples, 2, "shared", predictor_token_ids=[61, 60])
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    before = model(**batch)
    before.loss.backward()
    optimizer.step()
    after = model.eval()(**batch)
    assert (after.predicted_embeddings - before.predicted_embeddings).abs().max() > 1e-3
    # The base has no such rows: the adapter alone would not load.
    with pytest.raises(ValueError, match="merge_adapter=True"):
        model.export_decoder(merge_adapter=False, keep_predictor_tokens=False)
    merged = model.export_decoder(keep_predictor_tokens=False)
    assert merged.get_input_embeddings().weight.shape[0] == merged.get_output_embeddings().weight.shape[0] == 60
    ids = torch.tensor([examples[0]["input_ids"]])
    expected = model.decoder(ids).logits[..., :60]
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)


FORMS = {
    "layers": {},
    "rows": {"trainable_token_indices": [60, 61]},
    "copies": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied_copies": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "biases": {"bias": "lora_only"},
}


@pytest.fixture(params=[f"{tied}-{form}" for tied in ("tied", "untied") for form in FORMS])
def trained(request, make_decoder, examples):
    """A model whose adapter has moved, and the batch that moved it."""
    tied, form = request.param.split("-")
    decoder = make_decoder("qwen2", use_sliding_window=False, tie_word_embeddings=tied == "tied")
    decoder.resize_token_embeddings(62)
    model = LLMJepaForCausalLM.from_decoder(
        decoder, num_predictor_tokens=2, predictor_mode="vocab", predictor_token_ids=[61, 60], original_vocab_size=60
    )
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **FORMS[form]}
    model.add_decoder_adapter(LoraConfig(**options))
    batch = pack_examples(examples, 2, "shared", predictor_token_ids=[61, 60])
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval(), batch


def learns(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_checkpoint_with_an_adapter_is_the_model(trained, tmp_path):
    model, batch = trained
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is LLMJepaForCausalLM
    assert again.config.decoder_adapter == model.config.decoder_adapter
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name
    assert learns(again) == learns(model)
    assert again.tied_names() == model.tied_names()
    assert torch.equal(again(**batch).loss, model(**batch).loss)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == model.saved_state_dict().keys()
    # The rows that unmerging goes back to are in no checkpoint.
    ids = batch["input_ids"][:1]
    before = again.decoder(ids).logits
    again.decoder.merge_adapter()
    again.decoder.unmerge_adapter()
    torch.testing.assert_close(again.decoder(ids).logits, before, rtol=1e-3, atol=1e-3)


def test_a_merged_decoder_says_what_the_adapted_one_says(trained, tmp_path):
    model, batch = trained
    ids = batch["input_ids"][:1]
    expected = model.decoder(ids).logits
    model.export_decoder().save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.decoder(ids).logits, expected)


def test_saved_weights_restore_the_training_state(trained):
    model, batch = trained
    expected = model(**batch).loss
    saved = {name: value.clone() for name, value in model.saved_state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    assert not torch.allclose(model(**batch).loss, expected)
    model.load_state_dict(saved, strict=False)
    assert torch.equal(model(**batch).loss, expected)


def test_adapters_that_no_checkpoint_could_carry_are_refused(make_decoder, model):
    with pytest.raises(ValueError, match="merge it first"):
        model.add_decoder_adapter(LoraConfig(r=2))
    ema = LLMJepaForCausalLM.from_decoder(make_decoder(), target="ema")
    with pytest.raises(ValueError, match="EMA target"):
        ema.add_decoder_adapter(LoraConfig(r=2))
    plain = LLMJepaForCausalLM.from_decoder(make_decoder())
    with pytest.raises(ValueError, match="got PromptTuningConfig"):
        plain.add_decoder_adapter(PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    tied = LLMJepaForCausalLM.from_decoder(make_decoder("llama_tied"))
    with pytest.raises(ValueError, match="by views of one another"):
        tied.add_decoder_adapter(LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True))
    named = get_peft_model(make_decoder(), LoraConfig(r=2), adapter_name="style")
    with pytest.raises(ValueError, match="named 'default'"):
        LLMJepaForCausalLM.from_decoder(named)
