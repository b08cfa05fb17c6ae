"""V-JEPA pretraining: what a user relies on."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, VJEPA2Config, VJEPA2Model

from hf_jepa import (
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VJepaConfig,
    VJepaForPreTraining,
    VJepaModel,
    VJepaPreTrainingConfig,
)
from hf_jepa.programs.counting import enable_checkpointing

from .conftest import close

SIZES = {
    "crop_size": 16,
    "patch_size": 4,
    "frames_per_clip": 8,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "pred_hidden_size": 12,
    "pred_num_hidden_layers": 2,
    "pred_num_attention_heads": 2,
    "initializer_range": 0.1,
}
TOKENS = 64
CLASSES = {"1": VJepaForPreTraining, "2": VJepa2ForPreTraining, "2.1": VJepa2ForPreTraining}


def build(generation: str = "2", **kwargs) -> VJepaForPreTraining:
    if generation == "2.1":
        kwargs = {"hierarchical_layers": [0, 1, 2], **kwargs}
    config = CLASSES[generation].config_class.from_size("tiny", generation, **{**SIZES, **kwargs})
    return CLASSES[generation](config)


def split(batch: int, *sizes: tuple[int, int], tokens: int = TOKENS) -> dict[str, list[torch.Tensor]]:
    """Disjoint context and target masks of the given sizes."""
    orders = [torch.stack([torch.randperm(tokens) for _ in range(batch)]) for _ in sizes]
    pairs = list(zip(orders, sizes, strict=True))
    return {
        "context_mask": [order[:, :kept].sort().values for order, (kept, _) in pairs],
        "target_mask": [order[:, tokens - hidden :].sort().values for order, (_, hidden) in pairs],
    }


@pytest.fixture
def inputs() -> dict:
    return {"pixel_values_videos": torch.randn(3, 8, 3, 16, 16), **split(3, (20, 40), (9, 50))}


@pytest.mark.parametrize("generation", ["1", "2", "2.1"])
def test_a_step_trains_everything_but_the_target(inputs, generation):
    model = build(generation).train()
    for target, context in zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(target, context)
    assert not model.target_encoder.training
    output = model(**inputs)
    output.loss.backward()
    width = 24 * (3 if generation == "2.1" else 1)
    assert [tuple(p.shape) for p in output.predictions] == [(3, 40, width), (3, 50, width)]
    assert [tuple(p.shape) for p in output.context_features] == [(3, 20, width), (3, 9, width)]
    assert not any(target.requires_grad for target in output.targets)
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())
    idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert all("image" in name for name in idle)
    assert bool(idle) == (generation == "2.1")
    assert {name for name, p in model.encoder.named_parameters() if not p.requires_grad} == (
        {"embeddings.position_embeddings"} if generation == "1" else set()
    )


@pytest.mark.parametrize("generation", ["1", "2", "2.1"])
def test_masks_and_groups_are_independent(generation):
    """One pass over everything equals a pass for each pair."""
    model = build(generation)
    model.predictor.embeddings.mask_tokens.data.normal_()
    clips = [torch.randn(2, 8, 3, 16, 16), torch.randn(1, 4, 3, 12, 20)]
    masks = [split(2, (20, 40), (9, 50)), split(1, (7, 20), (11, 13), tokens=30)]
    together = model(clips, [m["context_mask"] for m in masks], [m["target_mask"] for m in masks])
    position = 0
    for group in range(2):
        for mask in range(2):
            pair = ([[masks[group][name][mask]]] for name in ("context_mask", "target_mask"))
            alone = model.predict([clips[group]], *pair, [mask if generation == "1" else group])
            close(together.predictions[position], alone.predictions[0])
            close(together.targets[position], alone.targets[0])
            position += 1
    close(
        together.loss_components["prediction_loss"],
        torch.stack(
            [(p - t).abs().mean() for p, t in zip(together.predictions, together.targets, strict=True)]
        ).mean(),
    )


@pytest.mark.parametrize(("generation", "by_mask"), [("1", True), ("2", False)])
def test_which_mask_token_learns(inputs, generation, by_mask):
    model = build(generation, pred_num_mask_tokens=3)
    model(**inputs).loss.backward()
    trained = model.predictor.embeddings.mask_tokens.grad.flatten(1).any(dim=1).tolist()
    assert trained == [True, by_mask, False]


def test_hidden_tubelets_cannot_leak_into_the_context(inputs):
    model = build()
    masks = {name: value[:1] for name, value in inputs.items() if name != "pixel_values_videos"}
    before = model(inputs["pixel_values_videos"], **masks)
    token = int(masks["target_mask"][0][0, -1])
    slot, row, column = token // 16, token // 4 % 4, token % 4
    changed = inputs["pixel_values_videos"].clone()
    changed[0, 2 * slot : 2 * slot + 2, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 5.0
    after = model(changed, **masks)
    assert torch.equal(before.context_features[0], after.context_features[0])
    assert torch.equal(before.predictions[0], after.predictions[0])
    assert not torch.equal(before.targets[0], after.targets[0])


def test_context_loss_is_its_definition(inputs):
    model = build("2.1")
    for distance in (True, False):
        model.config.context_loss_distance = distance
        output = model(**inputs)
        losses = []
        for index in range(2):
            context, target = inputs["context_mask"][index], inputs["target_mask"][index]
            (features,) = model.encoder([inputs["pixel_values_videos"]], [[context]], 3)
            _, (predicted,) = model.predictor([features], [context], [target], [(4, 4, 4)], [0], predict_context=True)
            (whole,) = model.target_encoder([inputs["pixel_values_videos"]], num_levels=3)
            whole = torch.cat([F.layer_norm(level, (24,)) for level in whole.split(24, dim=-1)], dim=-1)
            error = (predicted - whole.gather(1, context.unsqueeze(-1).expand(-1, -1, 72))).abs().mean(dim=-1)
            places = [torch.stack([m // 16, m // 4 % 4, m % 4], dim=-1).float() for m in (context, target)]
            nearest = (places[0].unsqueeze(2) - places[1].unsqueeze(1)).norm(dim=-1).amin(dim=-1)
            losses.append((error / nearest.sqrt() if distance else error).mean())
        expected = torch.stack(losses).mean()
        torch.testing.assert_close(output.loss_components["context_loss"], expected.detach())
        total = output.loss_components["prediction_loss"] + 0.5 * expected
        torch.testing.assert_close(output.loss, total)
    model.context_loss_weight = 0.1
    torch.testing.assert_close(model(**inputs).loss, output.loss - 0.4 * expected)


def test_images_and_videos_train_together():
    model = build("2.1")
    clips = [torch.randn(2, 8, 3, 16, 16), torch.randn(4, 1, 3, 16, 16)]
    masks = [split(2, (20, 40)), split(4, (5, 8), tokens=16)]
    model(clips, [m["context_mask"] for m in masks], [m["target_mask"] for m in masks]).loss.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.encoder.named_parameters() if "embeddings" in n)
    for part in (model.encoder, model.predictor):
        assert part.embeddings.image_modality.grad.any()
        assert part.embeddings.video_modality.grad.any()


def test_exponent_and_variance(inputs):
    model = build("1", loss_exponent=2.0, variance_weight=0.5)
    output = model(**inputs)
    pairs = list(zip(output.predictions, output.targets, strict=True))
    prediction = sum(F.mse_loss(p, t) / 2 for p, t in pairs) / 2
    torch.testing.assert_close(output.loss_components["prediction_loss"], prediction.detach())
    torch.testing.assert_close(output.loss, prediction + 0.5 * output.loss_components["variance"])
    assert build("1")(**inputs).loss_components.keys() == {"prediction_loss"}


def test_update_target_moves_frozen_tables_too():
    model = build("1")
    before = {name: parameter.clone() for name, parameter in model.target_encoder.named_parameters()}
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    model.update_target(0.9)
    assert "embeddings.position_embeddings" in before
    for name, parameter in model.target_encoder.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.1)


def test_energy_is_the_unreduced_loss(inputs):
    model = build()
    energy = model.energy(**inputs)
    assert energy.shape == (3,)
    assert float(energy.mean()) == pytest.approx(float(model(**inputs).loss.detach()), abs=1e-6)
    output = model(**inputs)
    curve = model.energy(**inputs, per_time_step=True)
    assert curve.shape == (3, 4)
    errors = [(p - t).abs().mean(dim=-1) for p, t in zip(output.predictions, output.targets, strict=True)]
    for clip in range(3):
        for slot in range(4):
            hit = [e[clip][m[clip] // 16 == slot] for e, m in zip(errors, inputs["target_mask"], strict=True)]
            assert float(curve[clip, slot]) == pytest.approx(float(torch.cat(hit).detach().mean()), abs=1e-6)


def test_surprise_looks_only_back():
    model = build("1", pred_num_mask_tokens=2)
    model.predictor.embeddings.mask_tokens.data.normal_()
    clip = torch.randn(2, 8, 3, 16, 16)
    curve = model.energy(clip, per_time_step=True)
    assert curve[:, 0].isnan().all()
    assert curve[:, 1:].isfinite().all()
    torch.testing.assert_close(model.energy(clip), curve[:, 1:].mean(dim=1))
    tokens = torch.arange(64).expand(2, -1)
    third = model.energy(clip, [tokens[:, :32]], [tokens[:, 32:48]])
    torch.testing.assert_close(curve[:, 2], third)
    later = clip.clone()
    later[:, 4:] = 0.0
    masks = [tokens[:, :32]], [tokens[:, 32:48]]
    assert torch.equal(model(later, *masks).predictions[0], model(clip, *masks).predictions[0])
    with pytest.raises(ValueError, match="no past"):
        model.energy(clip[:, :2])


def test_attention_is_that_of_transformers_and_stays_out_of_files(inputs, tmp_path):
    model = build()
    parts = (model, model.encoder, model.target_encoder, model.predictor)
    assert {part.config._attn_implementation for part in parts} == {"sdpa"}
    model.set_attn_implementation("cpu_bf16")
    assert {part.config._attn_implementation for part in parts} == {"cpu_bf16"}
    model.save_pretrained(tmp_path)
    model.export_encoder().save_pretrained(tmp_path / "encoder")
    for config in (tmp_path / "config.json", tmp_path / "encoder" / "config.json"):
        assert "attn" not in config.read_text()


@pytest.mark.parametrize("generation", ["1", "2", "2.1"])
def test_gradient_checkpointing_changes_nothing(inputs, generation):
    model = build(generation).train()
    model(**inputs).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    enable_checkpointing(model)
    assert model.encoder.layer[0].gradient_checkpointing
    assert model.predictor.layer[0].gradient_checkpointing
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, plain[name])


@pytest.mark.parametrize("generation", ["1", "2", "2.1"])
def test_bf16_autocast_keeps_loss_and_targets_in_fp32(inputs, generation):
    model = build(generation)
    reference = model(**inputs).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    assert output.loss.dtype == torch.float32
    assert output.targets[0].dtype == torch.float32
    assert output.predictions[0].dtype == torch.bfloat16
    assert float(output.loss.detach()) == pytest.approx(float(reference.detach()), rel=0.05)
    output.loss.backward()


# One generation in the default suite: compiling takes a quarter of a minute each.
@pytest.mark.parametrize(
    "generation", [pytest.param("1", marks=pytest.mark.slow), "2", pytest.param("2.1", marks=pytest.mark.slow)]
)
def test_compiles_without_graph_breaks(inputs, generation):
    torch._dynamo.reset()
    model = build(generation)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).loss, model(**inputs).loss)


@pytest.mark.slow
def test_a_changing_context_weight_compiles_once(inputs):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = build("2.1")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    losses = []
    for weight in (0.1, 0.2, 0.3, 0.4):
        model.context_loss_weight = weight
        losses.append(compiled(**inputs).loss)
    steps = torch.stack(losses).diff()
    torch.testing.assert_close(steps, steps[:1].expand(3))
    # One graph for the first number and one for any other.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("generation", ["1", "2", "2.1"])
def test_save_and_load(inputs, tmp_path, generation):
    model = build(generation)
    model.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForPreTraining):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is CLASSES[generation]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(loaded(**inputs).loss, model.eval()(**inputs).loss)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_partial_checkpoints_are_refused(tmp_path, damage):
    build().save_pretrained(tmp_path)
    tensors, key = load_file(tmp_path / "model.safetensors"), "predictor.proj.weight"
    if damage == "missing":
        del tensors[key]
    elif damage == "unexpected":
        key = "predictor.stranger"
        tensors[key] = torch.zeros(2)
    else:
        tensors[key] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=key):
        AutoModelForPreTraining.from_pretrained(tmp_path)


def test_from_encoder_continues_from_an_in_tree_release(inputs, tmp_path):
    sizes = {**SIZES, "pred_num_mask_tokens": 4, "frames_per_clip": 16, "pred_zero_init_mask_tokens": False}
    in_tree = VJEPA2Model(VJEPA2Config(**sizes)).eval()
    in_tree.save_pretrained(tmp_path)
    pixels = inputs["pixel_values_videos"]
    for source in (str(tmp_path), in_tree, VJepaModel.from_pretrained(tmp_path)):
        model = VJepa2ForPreTraining.from_encoder(source, loss_exponent=2.0)
        assert model.config.loss_exponent == 2.0
        assert model.config.encoder_config.model_type == "vjepa"
        assert torch.equal(model.predictor.embeddings.mask_tokens, in_tree.predictor.embeddings.mask_tokens)
        with torch.no_grad():
            close(model.get_features(pixels), in_tree.get_vision_features(pixels))
        assert torch.equal(model.get_features(pixels, "context"), model.get_features(pixels))
        assert model.train()(**inputs).loss.isfinite()
    with pytest.raises(ValueError, match="Linear"):
        VJepa2ForPreTraining.from_encoder(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("generation", "kind"), [("1", VJepaModel), ("2", VJEPA2Model), ("2.1", VJepaModel)])
def test_export_is_in_tree_where_in_tree_can(inputs, tmp_path, generation, kind):
    model = build(generation)
    with torch.no_grad():
        model.target_encoder.layernorm.weight.mul_(1.5)
    for which in ("target", "context"):
        exported = model.export_encoder(which)
        assert type(exported) is kind
        assert not exported.training
        assert all(p.requires_grad for n, p in exported.named_parameters() if "position" not in n)
        exported.save_pretrained(tmp_path / which)
        loaded = AutoModel.from_pretrained(tmp_path / which)
        assert type(loaded) is kind
        pixels = inputs["pixel_values_videos"]
        with torch.no_grad():
            close(loaded.get_vision_features(pixels), model.get_features(pixels, which))
    with pytest.raises(ValueError, match="which"):
        model.export_encoder("teacher")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_mask": []}, "non-empty list"),
        ({"target_mask": torch.zeros(3, 2, dtype=torch.int64)}, "non-empty list"),
        ({"target_mask": [torch.tensor([[64, 1]] * 3)] * 2}, "index 64"),
        ({"context_mask": [torch.tensor([[-1, 1]] * 3)] * 2}, "index -1"),
        ({"target_mask": [torch.zeros(3, 2, dtype=torch.int64)]}, "2 in `context_mask` and 1"),
        ({"pixel_values_videos": torch.randn(3, 7, 3, 16, 16)}, "7 frames"),
        ({"pixel_values_videos": torch.randn(3, 8, 3, 16, 18)}, "16x18"),
        ({"pixel_values_videos": torch.randn(3, 8, 3, 12, 16)}, "index"),
        ({"pixel_values_videos": [torch.randn(3, 8, 3, 16, 16)]}, "1 groups"),
    ],
)
def test_bad_inputs_are_named(inputs, change, message):
    with pytest.raises(ValueError, match=message):
        build()(**{**inputs, **change})


def test_a_predictor_of_a_teacher_cannot_be_trained_alone(inputs):
    with pytest.raises(ValueError, match="teacher"):
        build("2.1", pred_num_levels=1, pred_output_size=30, context_loss_weight=0.0)(**inputs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loss_exponent": 0.0}, "loss_exponent"),
        ({"variance_weight": -1.0}, "variance_weight"),
        ({"context_loss_weight": 0.5}, "pred_context_output"),
        ({"mask_token_by": "clip"}, "mask_token_by"),
        ({"encoder_config": {"model_type": "vjepa", "crop_size": 15}}, "crop_size"),
        ({"encoder_config": VJEPA2Config()}, "vjepa2"),
    ],
)
def test_bad_configs_are_named(kwargs, message):
    with pytest.raises(Exception, match=message) as error:
        VJepaPreTrainingConfig(**kwargs)
    assert isinstance(error.value, ValueError) or "Strict" in type(error.value).__name__


def test_defaults_are_the_published_ones():
    first, second = VJepaPreTrainingConfig(), VJepa2PreTrainingConfig()
    assert (first.encoder_config.position_embedding_type, first.encoder_config.crop_size) == ("sincos", 224)
    assert first.encoder_config.to_dict() == VJepaConfig.from_size("large", "1").to_dict()
    assert second.encoder_config.to_dict() == VJepaConfig.from_size("large").to_dict()
    assert (first.mask_token_by, second.mask_token_by) == ("mask", "group")
    latest = VJepa2PreTrainingConfig.from_size("large", "2.1", loss_exponent=2)
    assert (latest.context_loss_weight, latest.loss_exponent) == (0.5, 2)
    assert latest.encoder_config.hierarchical_layers == [5, 11, 17, 23]
