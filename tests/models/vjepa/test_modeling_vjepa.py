"""The video backbone: any size, any set of visible tokens, and faults."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_jepa import VJepaConfig, VJepaModel
from hf_jepa.models.vjepa.encoder_vjepa import VJepaEncoder
from hf_jepa.models.vjepa.layers_vjepa import Segment, VJepaLayer, pack, query_tokens

from .conftest import SIZES, clips, close, random_mask, tiny


def test_float32_angles_are_nearer_to_the_truth_in_bf16():
    torch.manual_seed(3)
    reference = tiny(num_hidden_layers=1, frames_per_clip=64)
    pixels = clips(1, 64)
    with torch.no_grad():
        truth, errors = reference.get_vision_features(pixels), {}
        for rope_dtype in ("reference", "float32"):
            model = tiny(num_hidden_layers=1, frames_per_clip=64, rope_dtype=rope_dtype)
            model.load_state_dict(reference.state_dict())
            assert torch.equal(model.get_vision_features(pixels), truth)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                errors[rope_dtype] = (model.get_vision_features(pixels).float() - truth).pow(2).mean()
    assert errors["float32"] < errors["reference"]


@pytest.mark.parametrize("position_embedding_type", ["rope", "sincos"])
def test_everything_visible_is_the_whole_clip(position_embedding_type):
    model, pixels = tiny(position_embedding_type=position_embedding_type), clips()
    order = torch.stack([torch.randperm(144) for _ in range(2)])
    with torch.no_grad():
        whole = model.get_vision_features(pixels)
        shuffled = model(pixels, context_mask=[order]).last_hidden_state
    close(shuffled, whole.gather(1, order.unsqueeze(-1).expand(-1, -1, 48)))


@pytest.mark.parametrize("layout", ["tiled", "interleaved"])
def test_masks_and_groups_of_all_lengths_share_a_pass(layout):
    model = tiny(rope_layout=layout)
    groups = [clips(2), clips(3, 4, 16, 28), clips(1, 1)]
    masks = [
        [random_mask(2, 30, 144), random_mask(2, 7, 144)],
        [random_mask(3, 20, 56), random_mask(3, 50, 56)],
        [random_mask(1, 11, 36)],
    ]
    together = model.encoder(groups, masks)
    alone = [model.encoder([group], [[mask]])[0] for group, own in zip(groups, masks, strict=True) for mask in own]
    assert [part.shape for part in together] == [part.shape for part in alone]
    for ours, expected in zip(together, alone, strict=True):
        close(ours, expected)

    weights = [torch.randn_like(part) for part in together]
    gradients = []
    for parts in (together, alone):
        loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, list(model.encoder.parameters())))
    for ours, expected in zip(*gradients, strict=True):
        close(ours, expected, 5e-5)


def test_sincos_predictor_follows_the_clip():
    model = tiny(position_embedding_type="sincos")
    same = tiny(position_embedding_type="sincos", crop_size=12, frames_per_clip=4)
    weights = {name: value for name, value in model.state_dict().items() if "position" not in name}
    same.load_state_dict(weights, strict=False)
    pixels = clips(1, 4, 12, 12)
    # A table of the clip's own size in place of the interpolated one.
    for part in ("encoder", "predictor"):
        table = getattr(same, part).embeddings.position_embeddings
        old = getattr(model, part).embeddings.position_embeddings.transpose(1, 2).unflatten(2, (4, 6, 6))
        resized = F.interpolate(old, scale_factor=(0.5, 0.5, 0.5), mode="trilinear").flatten(2).transpose(1, 2)
        table.data.copy_(resized)
    masks = [random_mask(1, 7, 18)], [random_mask(1, 5, 18)]
    with torch.no_grad():
        ours, expected = (part(pixels, *masks).predictor_output.last_hidden_state for part in (model, same))
    close(ours, expected)


def test_predictor_runs_on_request_alone():
    model, pixels, masks = tiny(), clips(), [random_mask(2, 20, 144)]
    assert model(pixels).predictor_output is None
    assert model(pixels, masks, masks, skip_predictor=True).predictor_output is None
    assert model(pixels, masks, masks).predictor_output.last_hidden_state.shape == (2, 20, 48)
    as_tuple = model(pixels, masks, masks, return_dict=False)
    assert torch.equal(as_tuple[0], model(pixels, masks).last_hidden_state)


def test_one_frame_stands_for_a_tubelet():
    model, image = tiny(), clips(2, 1)
    assert torch.equal(model.get_vision_features(image), model.get_vision_features(image.repeat(1, 2, 1, 1, 1)))


def version_2_1(**kwargs) -> VJepaModel:
    return tiny(
        **{
            "num_hidden_layers": 4,
            "hierarchical_layers": [1, 2, 3],
            "rope_layout": "interleaved",
            "rope_interpolation": True,
            "pred_rope_interpolation": True,
            "use_image_tokenizer": True,
            "pred_context_output": True,
            **kwargs,
        }
    )


def test_levels_have_norms_of_their_own():
    model, pixels = version_2_1(), clips()
    encoder = model.encoder
    with torch.no_grad():
        for index, norm in enumerate((*encoder.level_norms, encoder.layernorm)):
            norm.weight.fill_(index + 2.0)
        states = model(pixels, output_hidden_states=True).hidden_states
        (levels,) = encoder([pixels], num_levels=3)
        expected = [F.layer_norm(states[block + 1], (48,), eps=1e-6) * (i + 2) for i, block in enumerate((1, 2, 3))]
        close(levels, torch.cat(expected, dim=-1))
        assert torch.equal(model.get_vision_features(pixels), levels[..., -48:])
        assert model.predictor.proj.out_features == 3 * 48
        assert model(pixels, target_mask=[random_mask(2, 5, 144)]).last_hidden_state.shape == (2, 144, 48)


def test_images_and_videos_have_tokenizers_and_vectors_of_their_own():
    model, image = version_2_1(), clips(2, 1)
    video = image.repeat(1, 2, 1, 1, 1)
    embeddings = model.encoder.embeddings
    assert embeddings.image_patch_embeddings.proj.weight.shape == (48, 3, 1, 4, 4)
    with torch.no_grad():
        embeddings.image_modality.normal_()
        embeddings.video_modality.normal_()
        grid = (1, 6, 6)
        expected = F.conv2d(image[:, 0], embeddings.image_patch_embeddings.proj.weight[:, :, 0], stride=4)
        bias = embeddings.image_patch_embeddings.proj.bias + embeddings.image_modality
        close(embeddings(image, grid, None), expected.flatten(2).transpose(1, 2) + bias)
        expected = F.conv3d(video.transpose(1, 2), embeddings.patch_embeddings.proj.weight, stride=(2, 4, 4))
        bias = embeddings.patch_embeddings.proj.bias + embeddings.video_modality
        close(embeddings(video, grid, None), expected.flatten(2).transpose(1, 2) + bias)
    mask = [random_mask(2, 9, 36)]
    before = {name: model(x, mask, mask).predictor_output[0] for name, x in (("image", image), ("video", video))}
    model.predictor.embeddings.image_modality.data.add_(1.0)
    assert torch.equal(model(video, mask, mask).predictor_output[0], before["video"])
    assert not torch.allclose(model(image, mask, mask).predictor_output[0], before["image"])


def test_distilled_predictors_read_one_level_and_predict_their_teacher():
    model = version_2_1(pred_num_levels=1, pred_output_size=60)
    assert isinstance(model.predictor.embeddings.predictor_embeddings, torch.nn.Linear)
    assert model(clips(), target_mask=[random_mask(2, 5, 144)]).predictor_output[0].shape == (2, 5, 60)


def test_a_tail_is_the_end_of_the_whole():
    config = VJepaConfig(**SIZES)
    layer = VJepaLayer(config, 48, 3, 4.0, 0, 0.0)
    config._attn_implementation = "sdpa"
    parts = [torch.randn(2, 9, 48), torch.randn(1, 5, 48)]
    whole = [Segment(2, 9), Segment(1, 5)]
    ends = [Segment(2, 9, start=4), Segment(1, 5, start=2)]
    packed = pack(parts)
    torch.testing.assert_close(layer(packed, ends), query_tokens(layer(packed, whole), ends))


def test_stochastic_depth_drops_whole_sequences():
    encoder = VJepaEncoder(VJepaConfig(**{**SIZES, "drop_path_rate": 0.5}))
    assert [layer.drop_path_rate for layer in encoder.layer] == [0.0, 0.5]
    layer, segments = encoder.layer[1].train(), [Segment(40, 3), Segment(40, 5)]
    branch = torch.randn(40 * 8, 48)
    ratio = layer.drop_path(branch, segments) / branch
    for part, length in zip(ratio.split([120, 200]), (3, 5), strict=True):
        per_clip = part.view(40, length * 48)
        torch.testing.assert_close(per_clip, per_clip[:, :1].expand_as(per_clip))
        assert set(per_clip[:, 0].round().tolist()) == {0.0, 2.0}
    assert layer.eval().drop_path(branch, segments) is branch


@pytest.mark.parametrize("kwargs", [{}, {"position_embedding_type": "sincos"}])
def test_compiles_without_graph_breaks(kwargs):
    torch._dynamo.reset()
    model, pixels = tiny(**kwargs), clips()
    masks = [random_mask(2, 20, 144), random_mask(2, 20, 144)], [random_mask(2, 9, 144), random_mask(2, 9, 144)]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        ours, expected = compiled(pixels, *masks), model(pixels, *masks)
    torch.testing.assert_close(ours.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(ours.predictor_output[0], expected.predictor_output[0])


def test_attention_implementations_agree():
    model, pixels = tiny(), clips()
    results = []
    for name in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(name)
        # A kernel of flex attention takes a C++ compiler half a minute.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            results.append(model(pixels, target_mask=[random_mask(2, 36, 144)]).last_hidden_state)
    for other in results[1:]:
        close(other, results[0])


def test_gradient_checkpointing_changes_nothing():
    model, pixels, masks = tiny().train(), clips(), ([random_mask(2, 20, 144)], [random_mask(2, 9, 144)])
    gradients = []
    for _ in range(2):
        model(pixels, *masks).predictor_output[0].pow(2).mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
        model.gradient_checkpointing_enable()
    assert model.encoder.layer[0].gradient_checkpointing
    assert model.predictor.layer[0].gradient_checkpointing
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("build", [tiny, version_2_1])
def test_save_and_load(tmp_path, build):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is VJepaModel
    assert loaded.config.to_dict() == VJepaModel.from_pretrained(tmp_path).config.to_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    pixels = clips()
    assert torch.equal(loaded.get_vision_features(pixels), model.get_vision_features(pixels))


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_partial_checkpoints_are_refused(tmp_path, damage):
    tiny().save_pretrained(tmp_path)
    tensors, key = load_file(tmp_path / "model.safetensors"), "predictor.proj.weight"
    tensors[key] = torch.zeros(3, 3)
    if damage == "missing":
        del tensors[key]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=key):
        VJepaModel.from_pretrained(tmp_path)


def test_published_parameter_counts():
    counts = {"base": 86.2, "large": 303.9, "huge": 631.6, "giant": 1012.2, "gigantic": 1843.9}
    counts_2_1 = {"base": 86.8, "large": 304.7, "giant": 1013.3, "gigantic": 1845.2}
    for generation, expected in (("2", counts), ("2.1", counts_2_1)):
        for size, count in expected.items():
            with torch.device("meta"):
                model = VJepaModel(VJepaConfig.from_size(size, generation))
            assert sum(p.numel() for p in model.encoder.parameters()) / 1e6 == pytest.approx(count, abs=0.05)
            if generation == "2" and size in ("large", "huge", "giant"):
                assert 22.0 < sum(p.numel() for p in model.predictor.parameters()) / 1e6 < 22.5
    first = VJepaConfig.from_size("huge", "1")
    assert (first.position_embedding_type, first.crop_size, first.frames_per_clip) == ("sincos", 224, 16)
    assert (first.pred_num_attention_heads, first.pred_num_mask_tokens) == (16, 2)
    assert VJepaConfig.from_size("gigantic", "2.1").hierarchical_layers == [11, 23, 37, 47]
    assert VJepaConfig.from_size("base", "2.1").pred_num_hidden_layers == 12


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 7, 3, 24, 24), "7 frames .* tubelets of 2"),
        ((2, 0, 3, 24, 24), "0 frames"),
        ((2, 8, 3, 22, 24), "22x24"),
        ((2, 8, 3, 24, 0), "24x0"),
        ((2, 8, 4, 24, 24), "3 channels"),
        ((2, 3, 24, 24), "3 channels"),
    ],
)
def test_bad_clips_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"context_mask": [torch.tensor([[144, 0]] * 2)]}, "index 144"),
        ({"context_mask": torch.zeros(2, 2, dtype=torch.int64)}, "non-empty list"),
        ({"context_mask": []}, "non-empty list"),
        ({"context_mask": [torch.zeros(2, 2)]}, "int64"),
        ({"context_mask": [torch.tensor([[1, 2]])]}, r"\(2, kept\)"),
        ({"context_mask": [torch.tensor([[1, 2]] * 2), torch.tensor([[1]] * 2)]}, r"\[2, 1\]"),
        ({"target_mask": [torch.tensor([[-1, 2]] * 2)]}, "index -1"),
        ({"context_mask": [torch.tensor([[1]] * 2)], "target_mask": [torch.tensor([[1]] * 2)] * 2}, "1 in `context"),
    ],
)
def test_bad_masks_are_named(masks, message):
    with pytest.raises(ValueError, match=message):
        tiny()(clips(), **masks)


def test_a_sincos_predictor_knows_no_slot_after_the_clip():
    with pytest.raises(ValueError, match="index 150"):
        tiny(position_embedding_type="sincos")(clips(), target_mask=[torch.tensor([[150]] * 2)])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop_size": 22}, "crop_size"),
        ({"frames_per_clip": 7}, "frames_per_clip"),
        ({"tubelet_size": 0}, "tubelet_size"),
        ({"hidden_size": 50}, "hidden_size"),
        ({"num_attention_heads": 12}, "6 channels"),
        ({"pred_num_hidden_layers": 0}, "pred_num_hidden_layers"),
        ({"rope_layout": "spiral"}, "rope_layout"),
        ({"position_embedding_type": "learned"}, "position_embedding_type"),
        ({"hierarchical_layers": [0]}, "hierarchical_layers"),
        ({"hierarchical_layers": [1, 0, 1]}, "hierarchical_layers"),
        ({"pred_num_levels": 2}, "pred_num_levels"),
    ],
)
def test_bad_configs_are_named(kwargs, message):
    with pytest.raises(Exception, match=message) as error:
        VJepaConfig(**{**SIZES, **kwargs})
    assert isinstance(error.value, ValueError) or "Strict" in type(error.value).__name__


def test_unknown_sizes_and_generations():
    with pytest.raises(ValueError, match="enormous"):
        VJepaConfig.from_size("enormous")
    with pytest.raises(ValueError, match="'3'"):
        VJepaConfig.from_size("base", "3")
    with pytest.raises(ValueError, match="hierarchical_layers"):
        VJepaConfig.from_size("huge", "2.1")
