"""VL-JEPA's forward pass: what attends to what, what is averaged, what trains, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from transformers import TimmWrapperConfig, TimmWrapperModel

from hf_jepa import VLJepaConfig

VIDEO_TOKENS = 8


def without(batch: dict, *names: str) -> dict:
    return {name: value for name, value in batch.items() if not name.startswith(names)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
def test_every_real_token_reaches_every_state(make_model, make_part, batch, attention, padded):
    model = make_model(make_part("vjepa2"), make_part("llama", attn_implementation=attention))
    model.set_attn_implementation(attention)
    if not padded:
        batch["query_attention_mask"] = torch.ones_like(batch["query_input_ids"])
    states = {}
    model.predictor.register_forward_hook(lambda module, args, output: states.update(last=output.last_hidden_state))

    def run(query: torch.Tensor) -> torch.Tensor:
        model.get_pred_embeds(**without({**batch, "query_input_ids": query}, "target"))
        return states["last"]

    before = run(batch["query_input_ids"])
    changed = batch["query_input_ids"].clone()
    changed[:, 2] = 3 + (changed[:, 2] + 1) % 50
    moved = (run(changed) - before).abs().amax(dim=-1) > 1e-6
    # The third query token moves the first vision token, and each state that is no padding.
    assert moved[:, 0].all()
    assert moved[:, :VIDEO_TOKENS].all()
    real = batch["query_attention_mask"].bool()
    assert moved[:, VIDEO_TOKENS:][real].all()
    # What stands in the padding moves no real state.
    junk = batch["query_input_ids"].masked_fill(~real, 7)
    after = run(junk)
    torch.testing.assert_close(after[:, :VIDEO_TOKENS], before[:, :VIDEO_TOKENS])
    torch.testing.assert_close(after[:, VIDEO_TOKENS:][real], before[:, VIDEO_TOKENS:][real])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", [{}, {"pool_tokens": "query"}, {"vision_positions": "shared"}])
def test_padding_changes_no_embedding(make_model, batch, side, options):
    model = make_model(**options)
    whole = model(**batch)
    for row, (query, target) in enumerate(((5, 4), (3, 6), (4, 2))):
        one = {"pixel_values_videos": batch["pixel_values_videos"][row : row + 1]}
        for name, length in (("query", query), ("target", target)):
            ids = batch[f"{name}_input_ids"][row : row + 1, :length]
            pad = (4, 0) if side == "left" else (0, 4)
            one[f"{name}_input_ids"] = F.pad(ids, pad, value=9)
            one[f"{name}_attention_mask"] = F.pad(torch.ones_like(ids), pad)
        if side == "left":
            # BERT's absolute positions are its own business.
            one = without(one, "target")
        output = model(**one, return_loss=False)
        torch.testing.assert_close(output.pred_embeds, whole.pred_embeds[row : row + 1], rtol=1e-4, atol=1e-5)
        if side == "right":
            torch.testing.assert_close(output.target_embeds, whole.target_embeds[row : row + 1], rtol=1e-4, atol=1e-5)
            assert output.target_hash == whole.target_hash[row]


def test_the_pool_is_the_mean_over_the_tokens_that_the_config_names(make_model, batch):
    for pool, part in (("all", slice(None)), ("query", slice(VIDEO_TOKENS, None))):
        model = make_model(pool_tokens=pool)
        states = {}
        model.predictor.register_forward_hook(lambda m, a, output, to=states: to.update(x=output.last_hidden_state))
        found = model.get_pred_embeds(**without(batch, "target"))
        mask = F.pad(batch["query_attention_mask"], (VIDEO_TOKENS, 0), value=1)
        for row in range(3):
            kept = states["x"][row, part][mask[row, part].bool()]
            torch.testing.assert_close(found[row], model.predictor_projection(kept.mean(dim=0)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='pool_tokens="query" averages over the query'):
        model.get_pred_embeds(batch["pixel_values_videos"][..., :1, :, :].expand(-1, -1, 3, -1, -1)[:, 0])


def test_positions_run_over_real_tokens(make_model, batch):
    seen = []
    for positions in ("running", "shared"):
        model = make_model(vision_positions=positions)
        model.predictor.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_ids"][1].tolist()), with_kwargs=True
        )
        model(**batch)
    assert seen[0][:11] == list(range(11))
    assert seen[1][:11] == [0] * VIDEO_TOKENS + [1, 2, 3]


def test_images_clips_and_cached_features_are_one(make_model, batch):
    model = make_model()
    images = torch.randn(2, 3, 16, 16)
    clips = images[:, None].expand(-1, 2, -1, -1, -1)
    query = {"query_input_ids": batch["query_input_ids"][:2]}
    as_images = model.get_pred_embeds(images, **query)
    torch.testing.assert_close(as_images, model.get_pred_embeds(pixel_values_videos=clips, **query))
    embeds, mask = model.encode_vision(images)
    assert embeds.shape == (2, 4, 24)
    assert mask.all()
    assert not embeds.requires_grad
    torch.testing.assert_close(as_images, model.get_pred_embeds(vision_embeds=embeds, **query))
    filled = make_model(model.vision, image_num_frames=4).encode_vision(images)[0]
    torch.testing.assert_close(filled, model.encode_vision(None, images[:, None].expand(-1, 4, -1, -1, -1))[0])


def test_a_mixed_batch_is_its_parts(make_model, batch):
    model = make_model()
    images = torch.randn(2, 3, 16, 16)
    query = torch.randint(3, 50, (5, 4))
    mixed = model.get_pred_embeds(images, batch["pixel_values_videos"], query_input_ids=query)
    torch.testing.assert_close(mixed[:2], model.get_pred_embeds(images, query_input_ids=query[:2]))
    apart = model.get_pred_embeds(pixel_values_videos=batch["pixel_values_videos"], query_input_ids=query[2:])
    torch.testing.assert_close(mixed[2:], apart)
    assert model.encode_vision(images, batch["pixel_values_videos"])[1].sum(dim=1).tolist() == [4, 4, 8, 8, 8]


@pytest.mark.parametrize(("name", "size", "tokens"), [("vit", 16, 4), ("resnet", 64, 64), ("timm", 64, 4)])
def test_image_encoders_read_clips_frame_by_frame(make_model, batch, name, size, tokens):
    vision = name
    if name == "timm":
        vision = TimmWrapperModel(TimmWrapperConfig(architecture="test_resnet", do_pooling=False)).eval()
    clips = F.interpolate(batch["pixel_values_videos"].flatten(0, 1), (size, size)).unflatten(0, (3, 4))
    model = make_model(vision)
    embeds, _ = model.encode_vision(pixel_values_videos=clips)
    assert embeds.shape == (3, 4 * tokens, model.config.vision_hidden_size)
    second, _ = model.encode_vision(clips[:, 1])
    torch.testing.assert_close(embeds[:, tokens : 2 * tokens], second)


def test_our_video_encoder_equals_in_tree(make_model, make_part, batch):
    model = make_model("vjepa2")
    ours = make_part("vjepa")
    ours.encoder.load_state_dict(model.vision.encoder.state_dict())
    found = make_model(ours).encode_vision(pixel_values_videos=batch["pixel_values_videos"])[0]
    expected = model.encode_vision(pixel_values_videos=batch["pixel_values_videos"])[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_only_what_trains(make_model, batch):
    expected = {
        "shared": {"y_encoder.model", "y_encoder.projection"},
        "frozen": {"y_encoder.projection"},
        "ema": {"y_encoder.model", "y_encoder.projection"},
    }
    for target, of_text in expected.items():
        model = make_model(target=target, y_dense_layers=[{"out_features": 12, "bias": True, "activation": "tanh"}])
        model.train()(**batch).loss.backward()
        reached, asked = set(), set()
        for name, parameter in model.named_parameters():
            group = ".".join(name.split(".")[: 2 if name.startswith("y_encoder") else 1])
            if parameter.requires_grad:
                asked.add(group)
                assert parameter.grad is not None, name
                # Attention is blind to its key bias.
                if parameter.grad.abs().max() > 0 or "key.bias" in name:
                    reached.add(group)
            else:
                assert parameter.grad is None, name
        dense = {"y_encoder.dense"} if target != "frozen" else set()
        assert (
            reached
            == asked
            == of_text
            | dense
            | {
                "vision_projection",
                "predictor",
                "predictor_projection",
                "contrast",
            }
        )
        assert not model.get_input_embeddings().weight.requires_grad


def test_frozen_parts_stay_in_eval(make_model, make_part):
    model = make_model(y_decoder=make_part("llama", causal=True), target="frozen").train()
    assert model.predictor.training
    assert not any(module.training for module in [*model.vision.modules(), *model.y_encoder.model.modules()])
    assert not model.y_decoder.training
    assert make_model(freeze_vision=False).train().vision.training


def test_an_unfrozen_x_encoder_trains(make_model, batch):
    model = make_model(freeze_vision=False).train()
    model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in model.vision.parameters())


def test_query_free_training_reaches_every_parameter(make_model, batch):
    model = make_model(freeze_token_embeddings=False).train()
    model(**without(batch, "query")).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert model.get_input_embeddings().weight.grad.abs().max() == 0


def test_v_jepa_2_runs_without_its_predictor(make_model, batch):
    model = make_model()
    assert not any(name.startswith("vision.predictor") for name in model.state_dict())
    expected = model.vision.encoder(batch["pixel_values_videos"]).last_hidden_state
    torch.testing.assert_close(model.get_features(batch["pixel_values_videos"]), expected)


def test_the_infonce_loss_is_that_of_its_logits(make_model, batch):
    output = make_model()(**batch, return_logits=True)
    labels = torch.arange(3)
    logits = output.logits_per_pair
    expected = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
    torch.testing.assert_close(output.loss, expected)
    assert output.logit_scale.item() == pytest.approx(1 / 0.07)
    assert output.counts["effective_negatives"] == 2


def test_duplicate_targets_are_masked_and_counted(make_model, batch):
    for name in ("target_input_ids", "target_attention_mask"):
        batch[name][2] = batch[name][0]
    output = make_model()(**batch, return_logits=True)
    assert output.counts["duplicates"] == 2
    assert output.counts["effective_negatives"].item() == pytest.approx((1 + 2 + 1) / 3)
    logits = output.logits_per_pair.clone()
    logits[0, 2] = logits[2, 0] = -torch.inf
    labels = torch.arange(3)
    expected = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
    torch.testing.assert_close(output.loss, expected)
    naive = make_model(mask_duplicates=False)(**batch)
    assert naive.counts["duplicates"] == 0
    assert naive.counts["effective_negatives"] == 2
    # Given embeddings, a number per text says which are the same.
    model = make_model()
    given = {**without(batch, "target"), "target_embeds": torch.randn(3, 16)}
    assert model(**given).counts["duplicates"] == 0
    assert model(**given, target_hash=torch.tensor([5, 6, 5])).counts["duplicates"] == 2


@pytest.mark.parametrize("loss", ["cosine", "l1", "l2"])
def test_other_distances(make_model, batch, loss):
    model = make_model(loss=loss, target="frozen", regularizer="vicreg")
    output = model(**batch)
    predicted, target = output.pred_embeds, output.target_embeds
    expected = {
        "cosine": (1 - F.cosine_similarity(predicted, target)).mean(),
        "l1": F.l1_loss(predicted, target),
        "l2": F.mse_loss(predicted, target),
    }[loss]
    torch.testing.assert_close(output.loss_components["prediction_loss"], expected)
    assert output.loss > expected
    torch.testing.assert_close(model.energy(**batch).mean(), expected)
    assert model.contrast is None


@pytest.mark.parametrize("regularizer", ["sigreg", "visreg", "weak_sigreg", "vicreg"])
def test_regularizers_see_what_trains(make_model, batch, regularizer):
    for target in ("shared", "frozen"):
        model = make_model(
            target=target, loss="cosine", y_projection="none", projection_dim=20, regularizer=regularizer
        )
        model.train()
        value = model(**batch).loss_components[regularizer]
        with torch.no_grad():
            model.y_encoder.model.embeddings.word_embeddings.weight.mul_(1.5)
        if regularizer != "vicreg":
            model.regularizer.global_step.zero_()
        changed = model(**batch).loss_components[regularizer]
        assert (changed == value) == (target == "frozen")


def test_an_ema_target_follows_and_both_sides_learn(make_model, batch):
    model = make_model(target="ema").train()
    with torch.no_grad():
        model.y_encoder.projection.weight.add_(0.1)
    output = model(**batch)
    assert not output.target_embeds.requires_grad
    assert output.online_target_embeds.requires_grad
    assert not torch.equal(output.target_embeds, output.online_target_embeds)
    half = [
        model.compute_loss(output.pred_embeds.detach(), output.online_target_embeds, None, output.target_hash)[0],
        model.compute_loss(output.pred_embeds, output.target_embeds, None, output.target_hash)[0],
    ]
    torch.testing.assert_close(output.loss, sum(half) / 2)
    model.update_target(0.0)
    texts = batch["target_input_ids"]
    torch.testing.assert_close(model.get_target_embeds(texts), model.get_target_embeds(texts, None, "online"))


def test_the_temperature_is_clamped_and_learned(make_model, batch):
    model = make_model().train()
    with torch.no_grad():
        model.contrast.logit_scale.fill_(6.0)
    model(**batch)
    assert model.contrast.logit_scale.exp().item() == pytest.approx(100)
    fixed = make_model(learnable_temperature=False, temperature=0.2)
    assert not fixed.contrast.logit_scale.requires_grad
    assert fixed(**batch).logit_scale.item() == pytest.approx(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_input_ids": torch.ones(3, 60, dtype=torch.int64), "query_attention_mask": None}, "64 positions"),
        ({"query_input_ids": torch.ones(2, 4, dtype=torch.int64)}, "3 images or clips need as many queries"),
        ({"pixel_values_videos": None}, "Pass `pixel_values`"),
        ({"vision_embeds": torch.zeros(3, 4, 24)}, "either pixels or `vision_embeds`"),
        ({"pixel_values_videos": torch.zeros(3, 3, 16, 16)}, "5 dimensions"),
        ({"pixel_values_videos": torch.zeros(3, 4, 3, 32, 32)}, "crop_size=16"),
        ({"target_embeds": torch.zeros(3, 16)}, "either `target_input_ids` or `target_embeds`"),
        ({"target_input_ids": None, "target_embeds": torch.zeros(3, 15)}, "differ in shape"),
        ({"pixel_values_videos": None, "vision_embeds": torch.zeros(3, 4, 20)}, r"\(batch, tokens, 24\)"),
    ],
)
def test_bad_inputs_are_named(make_model, batch, change, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**{**batch, **change})


def test_one_pair_has_no_negatives(make_model, batch):
    one = {name: value[:1] for name, value in batch.items()}
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        make_model()(**one)
    assert make_model(loss="cosine")(**one).loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection_dim": 0}, "at least 1"),
        ({"temperature": 0.001}, "at least 0.01"),
        ({"y_dense_layers": [{"out_features": 3}]}, "A dense layer is"),
        ({"sources": {"head": {"name_or_path": "x"}}}, "`sources` maps"),
        ({"loss": "huber"}, "huber"),
    ],
)
def test_bad_configs_are_named(options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        VLJepaConfig(**options)


def test_widths_that_differ_are_named(make_model):
    with pytest.raises(ValueError, match="embeddings of width 20, but the shared space has 16"):
        make_model(y_projection="none")
