"""One packed forward pass equals separate passes, in value and gradient, for every family and layout."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_jepa import LLMJepaForCausalLM
from hf_jepa.masking import pack_examples
from hf_jepa.programs.counting import enable_checkpointing

FAMILIES = (
    "llama", "llama_tied", "llama3_rope", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "olmo2", "phi", "smollm3",
    "opt",
)  # fmt: skip
# transformers itself refuses sdpa for soft-capped attention.
BACKENDS = {"gemma2": ["eager"]}
CASES = [(family, backend) for family in FAMILIES for backend in BACKENDS.get(family, ["sdpa", "eager"])]
OTHERS = (
    "cohere", "cohere2", "ernie4_5", "exaone4", "glm4", "gpt2", "gpt_neox", "gpt_oss", "granite", "helium",
    "ministral", "mixtral", "nemotron", "olmo", "olmo3", "persimmon", "phi3", "qwen3_moe", "seed_oss", "stablelm",
    "starcoder2",
)  # fmt: skip
# Every family takes those of these that it knows.
SIZES = {
    "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 32, "n_embd": 32,
    "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2, "n_layer": 2, "head_dim": 8,
    "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 2, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "sliding_window": 5, "max_position_embeddings": 64, "n_positions": 64,
    "initializer_range": 0.3, "attention_dropout": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip


@pytest.fixture
def check(separate_passes, assert_same_gradients):
    """Wraps a decoder, packs examples and compares the one pass with separate ones."""

    def check(decoder, examples, k, layout="auto", row_length=None, direction="text2code", position="end"):
        options = {"direction": direction, "predictor_position": position}
        model = LLMJepaForCausalLM.from_decoder(decoder, num_predictor_tokens=k, **options).eval()
        if k:
            # Far apart, so that their order counts.
            torch.nn.init.normal_(model.predictor_tokens, std=0.3)
        layout = model.resolve_layout(layout)
        output = model(**pack_examples(examples, k, layout, row_length=row_length, **options))
        vectors = model.predictor_tokens if k else torch.zeros(0, 32)
        loss, predictions, targets = separate_passes(
            decoder, examples, vectors, position == "front", direction == "code2text"
        )
        torch.testing.assert_close(output.predicted_embeddings, predictions, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.target_embeddings, targets, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=0)
        assert_same_gradients(output.loss, loss, model)
        return output

    return check


@pytest.mark.parametrize(("family", "backend"), CASES)
def test_one_pass_equals_separate_passes(make_decoder, examples, check, family, backend):
    decoder = make_decoder(family, backend)
    check(decoder, examples, k=2)
    # The last row then holds two examples.
    check(decoder, examples, k=2, row_length=28)
    check(decoder, examples, k=0, row_length=64)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("layout", ["shared", "replicated"])
@pytest.mark.parametrize("direction", ["text2code", "code2text"])
@pytest.mark.parametrize("position", ["end", "front"])
def test_every_layout_direction_and_position(make_decoder, examples, check, family, layout, direction, position):
    # Text with tokens of its own in one of two examples.
    examples[1]["text_ids"] = [5, 9, 31, 44, 8]
    check(make_decoder(family), examples, 2, layout, row_length=64, direction=direction, position=position)


def test_default_backend_of_softcapped_attention_is_one_that_computes_it(make_decoder, examples, check):
    decoder = make_decoder("gemma2")
    assert decoder.config._attn_implementation == "eager"
    check(decoder, examples, k=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_attention_equals_separate_passes(make_decoder, examples, separate_passes, family):
    decoder = make_decoder(family, "eager")
    model = LLMJepaForCausalLM.from_decoder(decoder, num_predictor_tokens=2).eval()
    torch.nn.init.normal_(model.predictor_tokens, std=0.3)
    batch = pack_examples(examples, 2, "shared", row_length=64, pad_to_multiple_of=128)
    with torch.no_grad():
        loss, predictions, targets = separate_passes(decoder, examples, model.predictor_tokens)
        model.set_attn_implementation("flex_attention")
        # The kernel has no CPU backward pass, and compiling it would take longer than all tests here.
        with torch.compiler.set_stance("force_eager"):
            found = model(**batch)
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.predicted_embeddings, predictions, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.target_embeddings, targets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", OTHERS)
def test_one_pass_of_further_families(examples, model_type):
    known = AutoConfig.for_model(model_type)
    sizes = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).eval()
    model = LLMJepaForCausalLM.from_decoder(decoder, num_predictor_tokens=1).eval()
    embedding, backbone = decoder.get_input_embeddings(), decoder.base_model
    with torch.no_grad():
        output = model(**pack_examples(examples, 1, "shared", row_length=64))
        for number, example in enumerate(examples[:2]):
            text = embedding(torch.tensor([example["input_ids"][: example["text_length"]]]))
            code = embedding(torch.tensor([example["code_ids"]]))
            asked = torch.cat([text, model.predictor_tokens[None]], dim=1)
            for name, view in (("text", text), ("predicted", asked), ("code", code)):
                expected = backbone(inputs_embeds=view, use_cache=False).last_hidden_state[0, -1]
                found = output[f"{name}_embeddings"][number]
                assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_predictors_do_not_reach_the_response_nor_text_the_code(make_decoder, examples):
    model = LLMJepaForCausalLM.from_decoder(make_decoder(), num_predictor_tokens=1).eval()
    batch = pack_examples(examples, 1, "shared")
    output = model(**batch, return_logits=True)
    with torch.no_grad():
        model.predictor_tokens.add_(1.0)
    changed = model(**batch, return_logits=True)
    assert torch.equal(changed.logits, output.logits)
    assert torch.equal(changed.code_embeddings, output.code_embeddings)
    assert (changed.predicted_embeddings - output.predicted_embeddings).abs().max() > 1e-2
    batch["input_ids"][0, 0] += 1
    changed = model(**batch)
    assert torch.equal(changed.code_embeddings, output.code_embeddings)
    assert (changed.text_embeddings[0] - output.text_embeddings[0]).abs().max() > 1e-2


def test_vocabulary_rows_equal_soft_vectors(make_decoder, examples):
    decoder = make_decoder()
    ids = [50, 40]
    vocab = LLMJepaForCausalLM.from_decoder(
        decoder, num_predictor_tokens=2, predictor_mode="vocab", predictor_token_ids=ids
    )
    soft = LLMJepaForCausalLM.from_decoder(decoder, num_predictor_tokens=2)
    with torch.no_grad():
        soft.predictor_tokens.copy_(decoder.get_input_embeddings().weight[ids])
    found = vocab(**pack_examples(examples, 2, "shared", predictor_token_ids=ids))
    expected = soft(**pack_examples(examples, 2, "shared"))
    torch.testing.assert_close(found.loss, expected.loss)
    assert "predictor_tokens" not in vocab.state_dict()
    weight = decoder.get_input_embeddings().weight
    (rows,) = torch.autograd.grad(found.loss, weight)
    (others,) = torch.autograd.grad(expected.loss, weight, retain_graph=True)
    (vectors,) = torch.autograd.grad(expected.loss, soft.predictor_tokens)
    torch.testing.assert_close(rows[ids], others[ids] + vectors)


def test_accumulated_batches_add_up_to_the_whole(make_decoder, examples, assert_same_gradients):
    for distance in ("cosine", "l2", "mse"):
        model = LLMJepaForCausalLM.from_decoder(
            make_decoder(), num_predictor_tokens=1, predictor_head="linear", distance=distance, jepa_lambda=0.7
        )
        whole = pack_examples(examples, 1, "shared")
        expected = model(**whole)
        counts = {
            "num_items_in_batch": torch.tensor(len(whole["label_index"])),
            "num_pairs_in_batch": torch.tensor(len(whole["code_index"])),
        }
        # Pairs and labels are spread unevenly; the last part has no pairs at all.
        parts = [model(**pack_examples([example], 1, "shared"), **counts) for example in examples]
        total = sum(part.loss for part in parts)
        torch.testing.assert_close(total, expected.loss)
        assert_same_gradients(total, expected.loss, model)
        for name, value in expected.loss_components.items():
            torch.testing.assert_close(sum(part.loss_components[name] for part in parts), value)


def test_a_batch_that_dropout_left_without_pairs_still_reaches_every_parameter(make_decoder, examples):
    plain = [{name: value for name, value in example.items() if name != "code_ids"} for example in examples]
    batch = pack_examples(plain, 2, "shared")
    assert batch["input_ids"].shape == (3, 12)
    assert batch["input_ids"].min() >= 0
    for distance in ("cosine", "infonce"):
        model = LLMJepaForCausalLM.from_decoder(
            make_decoder(), num_predictor_tokens=2, predictor_head="linear", distance=distance
        )
        output = model(**batch)
        assert output.loss_components["jepa_loss"] == 0
        assert torch.equal(output.loss.detach(), output.loss_components["lm_loss"])
        output.loss.backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_gradient_checkpointing_changes_nothing(make_decoder, examples, assert_same_gradients):
    batch = pack_examples(examples, 1, "shared")
    model = LLMJepaForCausalLM.from_decoder(make_decoder("gemma3"), num_predictor_tokens=1).train()
    expected = model(**batch).loss
    enable_checkpointing(model)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert_same_gradients(model(**batch).loss, expected, model)


def test_autocast_and_half_precision(make_decoder, examples):
    batch = pack_examples(examples, 1, "shared")
    decoder = make_decoder(initializer_range=0.05)
    model = LLMJepaForCausalLM.from_decoder(decoder, num_predictor_tokens=1)
    expected = model(**batch).loss
    for autocast in (True, False):
        for backend in ("sdpa", "eager"):
            model.set_attn_implementation(backend)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                found = model(**batch).loss
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
        model.bfloat16()


@pytest.mark.slow
def test_compiled_equals_eager(make_decoder, examples, assert_same_gradients):
    batch = pack_examples(examples, 1, "shared", row_length=64)
    model = LLMJepaForCausalLM.from_decoder(make_decoder(), num_predictor_tokens=1)
    expected = model(**batch)
    torch._dynamo.reset()
    found = torch.compile(model, backend="aot_eager")(**batch)
    torch.testing.assert_close(found.loss, expected.loss)
    assert_same_gradients(found.loss, expected.loss, model)
