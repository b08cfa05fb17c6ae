"""LLM-JEPA's options, saving, export, semantic tube prediction, and faults."""

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    BertConfig,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    PreTrainedTokenizerFast,
)

from hf_jepa import LLMJepaConfig, LLMJepaForCausalLM
from hf_jepa.masking import draw_displacements, pack_examples
from hf_jepa.models.llm_jepa import add_predictor_tokens, predictor_token_ids
from hf_jepa.objectives import SIGReg, VISReg, WeakSIGReg, info_nce
from hf_jepa.objectives.vicreg import variance_covariance

WRAP = LLMJepaForCausalLM.from_decoder


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"w{number}": number for number in range(57)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")))


def test_stop_gradient_holds_the_target_still(make_decoder, examples):
    batch = pack_examples(examples, 0, "packed")
    decoder = make_decoder()
    shared = WRAP(decoder, num_predictor_tokens=0)(**batch)
    output = WRAP(decoder, num_predictor_tokens=0, target="stop_gradient")(**batch)
    assert torch.equal(output.loss, shared.loss)
    assert shared.target_embeddings.requires_grad
    assert not output.target_embeddings.requires_grad
    weight = decoder.base_model.layers[0].mlp.up_proj.weight
    gradients = [torch.autograd.grad(found.loss, weight)[0] for found in (output, shared)]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4


@pytest.mark.parametrize("direction", ["text2code", "code2text"])
def test_ema_target_follows_the_decoder(make_decoder, examples, direction):
    batch = pack_examples(examples, 1, "shared", direction=direction)
    model = WRAP(make_decoder("gemma3"), num_predictor_tokens=1, target="ema", direction=direction).train()
    assert not model.target_encoder.training
    assert not any(weight.requires_grad for weight in model.target_encoder.parameters())
    output = model(**batch)
    view = output.code_embeddings if direction == "text2code" else output.text_embeddings
    torch.testing.assert_close(output.target_embeddings, view, rtol=1e-5, atol=1e-5)
    assert not output.target_embeddings.requires_grad
    before = model.target_encoder.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(1.1)
    assert torch.equal(model(**batch).target_embeddings, output.target_embeddings)
    model.update_target(0.75)
    expected = 0.75 * before + 0.25 * model.encoder.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(model.target_encoder.layers[0].mlp.up_proj.weight, expected)
    model.sync_target()
    output = model(**batch)
    view = output.code_embeddings if direction == "text2code" else output.text_embeddings
    torch.testing.assert_close(output.target_embeddings, view, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("regularizer", ["sigreg", "visreg", "weak_sigreg", "vicreg"])
def test_regularizer_sees_text_and_code(make_decoder, examples, regularizer):
    batch = pack_examples(examples, 1, "shared")
    options = {"regularizer": regularizer, "regularizer_weight": 0.3, "num_slices": 16}
    model = WRAP(make_decoder(), num_predictor_tokens=1, **options).train()
    output = model(**batch)
    views = torch.stack([output.text_embeddings, output.code_embeddings]).detach()
    if regularizer != "vicreg":
        expected = {"sigreg": SIGReg, "visreg": VISReg, "weak_sigreg": WeakSIGReg}[regularizer](16)(views)
    else:
        std, cov = variance_covariance(views)
        expected = 25 * std.mean() + cov.mean()
    terms = output.loss_components
    torch.testing.assert_close(terms[regularizer], expected)
    torch.testing.assert_close(output.loss, terms["lm_loss"] + terms["jepa_loss"] + 0.3 * expected)
    # Half of the pairs of an optimizer step.
    found = model.eval()(**batch, num_pairs_in_batch=torch.tensor(4)).loss_components[regularizer]
    torch.testing.assert_close(found, model(**batch).loss_components[regularizer] / 2)
    alone = model.train()(**pack_examples(examples[:1], 1, "shared"))
    assert alone.loss_components[regularizer] == 0
    alone.loss.backward()


def test_infonce_is_one_directional_and_needs_two_pairs(make_decoder, examples):
    options = {"num_predictor_tokens": 1, "distance": "infonce", "temperature": 0.2, "jepa_lambda": 2.0}
    model = WRAP(make_decoder(), **options)
    output = model(**pack_examples(examples, 1, "shared"))
    pair = (output.predicted_embeddings, output.target_embeddings)
    expected = info_nce(*pair, 0.2, "predicted_to_target")
    torch.testing.assert_close(output.loss - output.loss_components["lm_loss"], 2 * expected)
    assert model(**pack_examples(examples[:1], 1, "shared")).loss_components["jepa_loss"] == 0


def test_weights_and_linear_predictor(make_decoder, examples):
    model = WRAP(make_decoder(), num_predictor_tokens=1, predictor_head="linear", jepa_lambda=0.5, jepa_gamma=3.0)
    weight = model.predictor_head.weight
    assert 0.9 * (6 / 64) ** 0.5 < weight.abs().max() < (6 / 64) ** 0.5
    batch = pack_examples(examples, 1, "shared")
    output = model(**batch)
    terms = output.loss_components
    torch.testing.assert_close(output.loss, 3 * terms["lm_loss"] + 0.5 * terms["jepa_loss"])
    torch.testing.assert_close(model(**batch, jepa_lambda=0).loss, 3 * terms["lm_loss"])
    with torch.no_grad():
        weight.copy_(torch.eye(32))
    plain = WRAP(model.decoder, num_predictor_tokens=1)
    plain.predictor_tokens = model.predictor_tokens
    torch.testing.assert_close(model(**batch).predicted_embeddings, plain(**batch).predicted_embeddings)
    assert not torch.allclose(output.predicted_embeddings, plain(**batch).predicted_embeddings)
    # Like a quantised decoder, in half precision under a float32 head.
    model.decoder.bfloat16()
    half = model(**batch)
    assert half.predicted_embeddings.dtype == torch.float32
    torch.testing.assert_close(half.loss, model.float()(**batch).loss, rtol=0.05, atol=0)


def test_energy_is_each_pairs_distance(make_decoder, examples):
    batch = pack_examples(examples, 1, "shared")
    model = WRAP(make_decoder(), num_predictor_tokens=1, distance="l2")
    energy = model.energy(**batch)
    assert energy.shape == (2,)
    torch.testing.assert_close(energy.mean(), model(**batch).loss_components["jepa_loss"])
    model.config.distance = "infonce"
    output = model(**batch)
    cosine = F.cosine_similarity(output.predicted_embeddings, output.target_embeddings)
    torch.testing.assert_close(model.energy(**batch), 1 - cosine.detach())


def test_mean_pooling_averages_what_the_read_token_sees(make_decoder, examples):
    model = WRAP(make_decoder(), num_predictor_tokens=1, pooling="mean")
    output = model(**pack_examples(examples, 1, "shared", row_length=64))
    embedding, backbone = model.get_input_embeddings(), model.encoder
    for number, example in enumerate(examples[:2]):
        text = embedding(torch.tensor([example["input_ids"][: example["text_length"]]]))
        views = {
            "text": text,
            "predicted": torch.cat([text, model.predictor_tokens[None]], dim=1),
            "code": embedding(torch.tensor([example["code_ids"]])),
        }
        for name, view in views.items():
            expected = backbone(inputs_embeds=view).last_hidden_state[0].mean(dim=0)
            torch.testing.assert_close(output[f"{name}_embeddings"][number], expected, rtol=1e-5, atol=1e-5)


def test_semantic_tube_prediction(make_decoder, examples):
    generator = torch.Generator().manual_seed(0)
    plain = [{"input_ids": example["input_ids"], "labels": example["labels"]} for example in examples]
    plain[0]["displacements"] = draw_displacements([(0, 12)], generator, times=2)
    plain[1]["displacements"] = draw_displacements([(1, 8), (9, 12)], generator, "random_span")
    model = WRAP(make_decoder(), objective="stp", num_predictor_tokens=0, jepa_lambda=0.02)
    output = model(**pack_examples(plain, 0, "packed", row_length=64))
    losses, lm_loss, labels = [], 0, 0
    for example in plain:
        ids = torch.tensor([example["input_ids"]])
        states = model.encoder(ids).last_hidden_state[0]
        for pair in example.get("displacements", ()):
            vectors = [sum(states[end] - states[start] for start, end in segments) for segments in pair]
            losses.append(1 - F.cosine_similarity(*vectors, dim=0))
        wanted = torch.tensor(example["labels"])[1:]
        lm_loss += F.cross_entropy(model.decoder(ids).logits[0, :-1], wanted, reduction="sum")
        labels += (wanted != -100).sum()
    assert len(losses) == 3
    torch.testing.assert_close(output.loss_components["jepa_loss"], torch.stack(losses).mean().detach())
    torch.testing.assert_close(output.loss, lm_loss / labels + 0.02 * torch.stack(losses).mean())
    with pytest.raises(ValueError, match="no displacement_index"):
        model(**pack_examples(examples, 0, "packed"))


def test_labels_without_an_index_and_logits(make_decoder, examples):
    model = WRAP(make_decoder("gemma2"), num_predictor_tokens=1)
    batch = pack_examples(examples, 1, "shared")
    expected = model(**batch, return_logits=True)
    assert model(**batch).logits is None
    index = batch.pop("label_index")
    found = model(**batch, return_logits=True)
    assert torch.equal(found.logits, expected.logits)
    assert found.logits.shape == (len(index), 60)
    row, column = index.unbind(1)
    assert torch.equal(found.shift_labels, batch["labels"][row, column + 1])
    # The model's own soft-capping.
    assert found.logits.abs().max() < model.decoder.config.final_logit_softcapping
    # Rows filled up to a fixed number of labels.
    filled = torch.cat([index, torch.tensor([[0, 0]])])
    torch.testing.assert_close(model(**batch, label_index=filled).loss, expected.loss)


@pytest.mark.parametrize("family", ["llama_tied", "gemma3"])
def test_saved_whole_and_exported_plain(make_decoder, examples, tmp_path, family):
    decoder = make_decoder(family)
    model = WRAP(decoder, num_predictor_tokens=2, predictor_head="linear", target="ema")
    with torch.no_grad():
        model.predictor_tokens.normal_()
        model.target_encoder.layers[0].mlp.up_proj.weight.add_(0.1)
    batch = pack_examples(examples, 2, "shared")
    expected = model(**batch)
    model.save_pretrained(tmp_path / "whole")
    for auto_class in (AutoModel, AutoModelForPreTraining):
        again = auto_class.from_pretrained(tmp_path / "whole").eval()
        assert isinstance(again, LLMJepaForCausalLM)
        assert torch.equal(again(**batch).loss, expected.loss)
    assert AutoConfig.from_pretrained(tmp_path / "whole").decoder_config.model_type == decoder.config.model_type
    assert not again.target_encoder.layers[0].mlp.up_proj.weight.requires_grad
    head, embedding = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert (head is embedding) == decoder.config.tie_word_embeddings

    model.export_decoder().save_pretrained(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert type(plain) is type(decoder)
    ids = torch.tensor([examples[0]["input_ids"]])
    assert torch.equal(plain(ids).logits, decoder(ids).logits)
    assert plain.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 14)
    fresh = WRAP(str(tmp_path / "plain"), num_predictor_tokens=1, attn_implementation="eager")
    assert fresh.decoder.config._attn_implementation == "eager"
    mean = plain.get_input_embeddings().weight.mean(dim=0)
    torch.testing.assert_close(fresh.predictor_tokens[0], mean, rtol=0, atol=1e-3)

    (tmp_path / "plain" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    with pytest.raises(ValueError, match="does not hold a whole LLMJepaForCausalLM"):
        LLMJepaForCausalLM.from_pretrained(tmp_path / "plain")


def test_config_builds_a_model_from_scratch(examples):
    config = LLMJepaConfig(
        decoder_config={"model_type": "llama", "vocab_size": 60, "hidden_size": 16, "intermediate_size": 16,
                        "num_hidden_layers": 1, "num_attention_heads": 2},
        num_predictor_tokens=1,
    )  # fmt: skip
    model = AutoModelForPreTraining.from_config(config)
    model(**pack_examples(examples, 1, model.resolve_layout())).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_predictor_tokens_in_the_vocabulary(make_decoder, tokenizer, examples):
    decoder = make_decoder("llama_tied")
    with pytest.raises(ValueError, match=r"lacks <\|predictor_1\|>, <\|predictor_2\|>"):
        predictor_token_ids(tokenizer, 2)
    # 57 words leave 3 of the decoder's 60 rows; they are used before any are added, and never cut off.
    add_predictor_tokens(decoder, tokenizer, 2)
    assert decoder.get_input_embeddings().weight.shape[0] == 60
    assert predictor_token_ids(tokenizer, 2) == [58, 57]
    model = WRAP(decoder, tokenizer, num_predictor_tokens=5, predictor_mode="vocab")
    assert model.config.predictor_token_ids == [61, 60, 59, 58, 57]
    assert model.config.original_vocab_size == 60
    assert predictor_token_ids(tokenizer, 3, "front") == [57, 58, 59]
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert embedding.weight.shape[0] == 62
    batch = pack_examples(examples, 5, "shared", predictor_token_ids=model.config.predictor_token_ids)
    assert model(**batch).loss.isfinite()
    kept = model.export_decoder()
    assert kept.config.vocab_size == 62
    with torch.no_grad():
        # What would be the likeliest next token is never said.
        kept.get_output_embeddings().weight[57:] = kept.base_model(torch.tensor([[5, 6]])).last_hidden_state[0, -1]
    assert kept(torch.tensor([[5, 6]])).logits[0, -1].argmax() >= 57
    assert kept.generate(torch.tensor([[5, 6]]), max_new_tokens=1, do_sample=False)[0, -1] < 57
    small = model.export_decoder(keep_predictor_tokens=False)
    assert small.generation_config.suppress_tokens == [57, 58, 59]
    assert small.config.vocab_size == small.get_output_embeddings().weight.shape[0] == 60
    ids = torch.tensor([examples[0]["input_ids"]])
    torch.testing.assert_close(small(ids).logits, model.decoder(ids).logits[..., :60])


def test_features_of_padded_texts(make_decoder):
    model = WRAP(make_decoder("mistral"), num_predictor_tokens=0).eval()
    text = torch.tensor([[5, 6, 7, 8, 9, 10]])
    expected = model.encoder(text).last_hidden_state[:, -1]
    for side in ((2, 0), (0, 2)):
        ids, mask = (F.pad(tensor, side) for tensor in (text, torch.ones_like(text)))
        torch.testing.assert_close(model.get_features(ids, mask), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.get_features(text, which="target"), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_predictor_tokens": 0, "predictor_head": "linear"}, "makes the predictor the identity"),
        ({"predictor_token_ids": [1]}, "belong to predictor_mode='vocab'"),
        ({"predictor_mode": "vocab"}, "needs 1 `predictor_token_ids`, got None"),
        ({"predictor_mode": "vocab", "predictor_token_ids": [60]}, "outside the decoder's vocabulary of 60"),
        ({"objective": "stp"}, "hence no num_predictor_tokens"),
        ({"objective": "stp", "num_predictor_tokens": 0, "target": "ema"}, "hence no target='ema'"),
        ({"num_predictor_tokens": -1}, "`num_predictor_tokens` must not be negative, got -1"),
        ({"jepa_lambda": -1.0}, "`jepa_lambda` must be a finite number"),
        ({"jepa_gamma": float("inf")}, "`jepa_gamma` must be a finite number"),
        ({"temperature": 0}, "`temperature` must be positive"),
        ({"regularizer_weight": 1.0}, "`regularizer` is 'none'"),
    ],
)
def test_faults_of_options(make_decoder, options, message):
    # Strict configs wrap the ValueError of their validators.
    with pytest.raises(Exception, match=message) as error:
        WRAP(make_decoder(), **options)
    assert isinstance(error.value.__cause__ or error.value, ValueError)


def test_faults_of_batches(make_decoder, examples):
    model = WRAP(make_decoder(), num_predictor_tokens=1)
    batch = pack_examples(examples, 1, "shared")
    with pytest.raises(ValueError, match=r"jepa_lambda is 1.0, but the batch has no code_index; .* or jepa_lambda=0"):
        model(**{**batch, "code_index": None})
    assert model(**{**batch, "code_index": None}, jepa_lambda=0).loss.isfinite()
    with pytest.raises(ValueError, match=r"`document` must be int64 of shape \(rows, length\)"):
        model(**{**batch, "document": batch["document"][:, 1:]})
    with pytest.raises(ValueError, match="`branch` must be int64.*got torch.int32"):
        model(**{**batch, "branch": batch["branch"].int()})
    with pytest.raises(ValueError, match=r"Token 60 lies outside the decoder's vocabulary of 60: the tokenizer is"):
        model(**{**batch, "input_ids": batch["input_ids"].clamp(min=60)})
    model.causal_lm.lm_head = torch.nn.Linear(32, 61, bias=False)
    with pytest.raises(ValueError, match="60 rows but the head 61: the vocabulary was resized without its head"):
        model(**batch)


def test_decoders_that_cannot_take_the_mask_are_refused(make_decoder, examples):
    small = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for config, message in (
        (MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1), "MambaForCausalLM has no attention backbone"),
        (BertConfig(**small, intermediate_size=8), "BertLMHeadModel attends to what follows"),
        (BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2), "BloomForCausalLM counts positions"),
        (MptConfig(vocab_size=9, d_model=8, n_layers=1, n_heads=2), "MptForCausalLM counts positions"),
        (FalconConfig(**small, alibi=True), "FalconForCausalLM counts positions"),
    ):
        with pytest.raises(ValueError, match=message):
            WRAP(AutoModelForCausalLM.from_config(config))
    decoder = make_decoder()
    decoder.config._attn_implementation = "paged|sdpa"
    with pytest.raises(ValueError, match="one of sdpa, flex_attention, eager"):
        WRAP(decoder)
    decoder = make_decoder()
    model = WRAP(decoder, num_predictor_tokens=1)
    decoder.config._attn_implementation = "flash_attention_2"
    assert model.resolve_layout() == "replicated"
    with pytest.raises(ValueError, match="cannot keep branches apart"):
        model(**pack_examples(examples, 1, "shared"))


def test_flash_attention_gets_one_row_of_restarting_positions(make_decoder, examples):
    decoder = make_decoder()
    model = WRAP(decoder, num_predictor_tokens=1).eval()
    batch = pack_examples(examples, 1, "replicated")
    expected = model(**batch)
    model._inputs = lambda *args, **kwargs: one_row(*args, **kwargs)
    original = LLMJepaForCausalLM._inputs

    def one_row(*args, **kwargs):
        # Without a mask, sdpa keeps documents apart as FlashAttention does: by positions that start again.
        decoder.config._attn_implementation = "flash_attention_2"
        inputs = original(model, *args, **kwargs)
        decoder.config._attn_implementation = "sdpa"
        assert "attention_mask" not in inputs
        assert inputs["position_ids"].shape == (1, batch["input_ids"].numel())
        return inputs

    found = model(**batch)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.predicted_embeddings, expected.predicted_embeddings, rtol=1e-5, atol=1e-5)


def test_absolute_positions(make_decoder, examples, monkeypatch):
    decoder = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0, embd_pdrop=0)
    ).eval()
    model = WRAP(decoder, num_predictor_tokens=1).eval()
    batch = pack_examples(examples, 1, "shared", row_length=64)
    output = model(**batch)
    for number, example in enumerate(examples[:2]):
        expected = decoder.base_model(torch.tensor([example["code_ids"]])).last_hidden_state[0, -1]
        torch.testing.assert_close(output.code_embeddings[number], expected, rtol=1e-5, atol=1e-5)
    assert isinstance(LLMJepaConfig().decoder_config, LlamaConfig)
    batch["position_ids"] = batch["position_ids"] + 64
    with pytest.raises(
        ValueError, match="reaches position 7., but the decoder's table of positions has 64: keep rows"
    ):
        model(**batch)
    said: list[str] = []
    monkeypatch.setattr("hf_jepa.models.llm_jepa.decoder_checks.logger.warning_once", said.append)
    assert WRAP(make_decoder(), num_predictor_tokens=1)(**batch).loss.isfinite()
    assert "beyond the 64 positions that the decoder's config promises" in said[0]
