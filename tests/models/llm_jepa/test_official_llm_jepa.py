"""LLM-JEPA against the released code's numbers: masks, embeddings, losses, gradients, one pass and several."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_jepa import LLMJepaForCausalLM
from hf_jepa.masking import pack_official
from hf_jepa.masking.attention import Tokens, visible_tokens

CASES = [("llm_jepa_k0", "", 0, -2), ("llm_jepa_k1", "", 1, -2), ("llm_jepa_k3", "", 3, -2)]
CASES += [("llm_jepa_last_token", f"last{last}/", 1, last) for last in (-1, -2, -3)]
VIEWS = ("full", "text", "code")


@pytest.fixture
def decoder(golden_dir: Path) -> LlamaForCausalLM:
    options = json.loads((golden_dir / "llm_jepa_model.json").read_text())["config"]["llama_config"]
    decoder = LlamaForCausalLM(LlamaConfig(**options))
    decoder.load_state_dict(load_file(golden_dir / "llm_jepa_model.safetensors"))
    return decoder.eval()


def official_batch(golden: dict, k: int, last_token: int, form: str) -> dict:
    inputs = {
        f"{view}_{name}": golden[f"batch/{view}_{name}"] for view in VIEWS for name in ("input_ids", "attention_mask")
    }
    return pack_official(
        **inputs, full_labels=golden["batch/full_labels"], num_predictor_tokens=k, last_token=last_token, form=form
    )


def wrap(decoder: LlamaForCausalLM, k: int, **options) -> LLMJepaForCausalLM:
    # The ids of the recorded batches, descending; nothing of the forward pass depends on them.
    ids = {"predictor_mode": "vocab", "predictor_token_ids": list(range(4 + k, 4, -1)), "num_predictor_tokens": k}
    return LLMJepaForCausalLM.from_decoder(decoder, **ids, **options)


@pytest.mark.parametrize("form", ["one_pass", "multi_pass"])
@pytest.mark.parametrize(("case", "prefix", "k", "last_token"), CASES)
def test_official_embeddings_losses_and_gradients(golden_dir, decoder, case, prefix, k, last_token, form):
    golden = load_file(golden_dir / f"{case}.safetensors")
    recorded = {
        name.removeprefix(f"{prefix}{form.replace('_', '')}/"): value
        for name, value in golden.items()
        if name.startswith(f"{prefix}{form.replace('_', '')}/")
    }
    batch = official_batch(golden, k, last_token, form)
    assert torch.equal(batch["input_ids"], recorded["input_ids"])
    assert torch.equal(batch["labels"], recorded["labels"])
    assert torch.equal(batch["predictor_index"][:, 1], recorded["index_pred"])
    assert torch.equal(batch["code_index"][:, 1], recorded["index_code"])
    if form == "one_pass":
        seen = visible_tokens(Tokens(batch["document"], None, batch["position_ids"]))
        assert torch.equal(seen, recorded["attention_allowed"])
        assert torch.equal(batch["position_ids"], recorded["position_ids"].expand(seen.shape[0], -1))

    model = wrap(decoder, k)
    for jepa_lambda in (1.0, 2.0):
        output = model(**batch, jepa_lambda=jepa_lambda)
        expected = recorded[f"total_lambda{jepa_lambda:g}"]
        torch.testing.assert_close(output.loss.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.predicted_embeddings, recorded["pred_embedding"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.code_embeddings, recorded["code_embedding"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss_components["lm_loss"], recorded["lm_loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(output.loss_components["jepa_loss"], recorded["jepa_loss"], rtol=1e-5, atol=1e-6)
    if k == 0:
        assert torch.equal(output.text_embeddings, output.predicted_embeddings)
    # Without labels there is no language-model term.
    jepa_alone = model(**{**batch, "labels": None, "label_index": None}).loss
    for kind, loss in (("grad_total_lambda2", output.loss), ("grad_jepa", jepa_alone)):
        for name in (name.split("/")[1] for name in recorded if name.startswith(kind)):
            (found,) = torch.autograd.grad(loss, decoder.get_parameter(name), retain_graph=True)
            expected = recorded[f"{kind}/{name}"]
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), (kind, name)
    for distance in ("l2", "mse", "infonce"):
        model.config.distance = distance
        found = model(**batch).loss_components["jepa_loss"]
        # Recorded as a difference of float32 numbers.
        torch.testing.assert_close(found, recorded[f"jepa_{distance}"], rtol=1e-5, atol=1e-5)

    model = wrap(decoder.double(), k)
    output = model(**batch)
    torch.testing.assert_close(output.loss_components["jepa_loss"], recorded["jepa_loss_f64"], rtol=0, atol=1e-6)
    torch.testing.assert_close(output.loss_components["lm_loss"], recorded["lm_loss_f64"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_labels_of_the_assistant_alone(golden_dir, decoder, k):
    golden = load_file(golden_dir / f"llm_jepa_k{k}.safetensors")
    golden["batch/full_labels"] = load_file(golden_dir / "llm_jepa_data.safetensors")[f"k{k}/labels_dataset"]
    for form in ("one_pass", "multi_pass"):
        found = wrap(decoder, k)(**official_batch(golden, k, -2, form)).loss_components["lm_loss"]
        recorded = golden[f"{form.replace('_', '')}/lm_loss_assistant_only"]
        torch.testing.assert_close(found, recorded, rtol=1e-5, atol=0)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_positions_may_start_again_but_views_may_not_leak(golden_dir, decoder, k):
    golden = load_file(golden_dir / f"llm_jepa_k{k}.safetensors")
    batch = official_batch(golden, k, -2, "one_pass")
    model = wrap(decoder, k)
    restarted = {**batch, "position_ids": batch["position_ids"].clone()}
    code = batch["document"] == 1
    restarted["position_ids"] -= code * ((batch["document"] == 0).sum(dim=1, keepdim=True))
    found = model(**restarted).loss_components["jepa_loss"]
    torch.testing.assert_close(found, golden["contrast/jepa_positions_restarted_for_code"], rtol=1e-5, atol=1e-6)
    leaking = {**batch, "document": torch.where(code, 0, batch["document"])}
    found = model(**leaking).loss_components["jepa_loss"]
    torch.testing.assert_close(found, golden["contrast/jepa_plain_causal_packing"], rtol=1e-5, atol=1e-6)
    assert abs(found - golden["onepass/jepa_loss"]) > 1e-3


def test_padding_is_finite_under_eager_attention(golden_dir, decoder):
    golden = load_file(golden_dir / "llm_jepa_k1.safetensors")
    decoder.set_attn_implementation("eager")
    # The released code's fully masked rows give NaN here.
    output = wrap(decoder, 1)(**official_batch(golden, 1, -2, "one_pass"))
    torch.testing.assert_close(output.loss.detach(), golden["onepass/total_lambda1"], rtol=1e-5, atol=1e-6)
    output.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in decoder.parameters())


def test_faults_of_official_batches(golden_dir):
    golden = load_file(golden_dir / "llm_jepa_k1.safetensors")
    with pytest.raises(ValueError, match='"one_pass" or "multi_pass"'):
        official_batch(golden, 1, -2, "three_pass")
    for last_token in (0, -14):
        with pytest.raises(ValueError, match=f"last_token={last_token}"):
            official_batch(golden, 1, last_token, "one_pass")
    left = {**golden, "batch/text_attention_mask": golden["batch/text_attention_mask"].flip(1)}
    with pytest.raises(ValueError, match="`text_attention_mask` is padded on the left"):
        official_batch(left, 1, -2, "one_pass")
    short = {name: value[:, :22] if name.startswith("batch/") else value for name, value in golden.items()}
    with pytest.raises(ValueError, match="Text and Code take 2. tokens together, but rows hold 22"):
        official_batch(short, 1, -2, "one_pass")
    uneven = {**golden, "batch/code_input_ids": golden["batch/code_input_ids"][:, :-1]}
    with pytest.raises(ValueError, match="one shape"):
        official_batch(uneven, 1, -2, "one_pass")
