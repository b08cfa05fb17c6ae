"""What every composite shares: what of it trains, and starting from an encoder at a size of one's own."""

import pytest
import torch
from transformers import (  # fmt: skip
    AutoConfig,
    AutoModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    IJepaConfig,
    IJepaModel,
    TimmWrapperConfig,
    ViTConfig,
    ViTModel,
    VJEPA2Config,
    VJEPA2Model,
)

from hf_jepa import (
    Data2VecVisionForPreTraining,
    IJepaForPreTraining,
    LatentWorldModel,
    LatentWorldModelConfig,
    LeJepaForPreTraining,
    LeJepaPreTrainingConfig,
    LLMJepaForCausalLM,
    VJepa2ACModel,
    VJepa2ForPreTraining,
    VJepaActionAnticipationConfig,
    VJepaConfig,
    VJepaForActionAnticipation,
    VJepaForVideoClassification,
)

VIT = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
BEIT = {"use_mask_token": True, "use_mean_pooling": False, "use_shared_relative_position_bias": True}
CLIP = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 32, "patch_size": 8,
    "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
}  # fmt: skip
LEVELS = {
    **CLIP, "num_hidden_layers": 2, "hierarchical_layers": [0, 1], "use_image_tokenizer": True,
    "rope_layout": "interleaved", "pred_context_output": True, "pooler_num_attention_heads": 2, "num_pooler_layers": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "encoder", ["dinov2", "dinov2_with_registers", "dinov3_vit", "siglip_vision_model", "clip_vision_model", "beit",
                "vit", "deit", "vit_mae", "convnext"],
)  # fmt: skip
def test_all_that_trains_gets_a_gradient_in_every_step(encoder, tmp_path):
    options = VIT if encoder != "convnext" else {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}
    config = LeJepaPreTrainingConfig(
        encoder_config=AutoConfig.for_model(encoder, **options), image_size=32, projector_hidden_size=8, num_slices=8
    )
    LeJepaForPreTraining(config).save_pretrained(tmp_path)
    for model in (LeJepaForPreTraining(config), LeJepaForPreTraining.from_pretrained(tmp_path)):
        model.train()(torch.randn(4, 2, 3, 32, 32)).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(parameter.requires_grad for parameter in model.export_encoder().parameters())


@pytest.mark.parametrize("encoder", ["dinov2", "dinov3_vit", "siglip_vision_model", "clip_vision_model", "beit"])
def test_all_of_a_world_model_that_trains_gets_a_gradient(encoder):
    fields = {"pooling": "mean", "inverse_dynamics_weight": 1.0, "action_dim": 2}
    config = LatentWorldModelConfig(encoder_config=AutoConfig.for_model(encoder, **VIT, use_mask_token=True), **fields)
    model = LatentWorldModel(config).train()
    model(torch.randn(2, 3, 3, 32, 32), torch.randn(2, 2, 2)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(parameter.requires_grad for parameter in model.export_encoder().parameters())


def test_it_is_for_the_batch_to_say_whether_the_image_tokenizer_is_read():
    models = [VJepa2ForPreTraining(VJepa2ForPreTraining.config_class(encoder_config=VJepaConfig(**sizes)))
              for sizes in (CLIP, LEVELS)]  # fmt: skip
    assert [model.reads_by_batch for model in models] == [False, True]


@pytest.mark.parametrize("model_class", [VJepaForVideoClassification, VJepaForActionAnticipation])
@pytest.mark.parametrize("options", [CLIP | {"pooler_num_attention_heads": 2, "num_pooler_layers": 1}, LEVELS])
def test_all_of_a_video_classifier_that_trains_gets_a_gradient(model_class, options, tmp_path):
    anticipates = model_class is VJepaForActionAnticipation
    sizes = {"num_verbs": 2, "num_nouns": 2, "num_actions": 2} if anticipates else {"num_labels": 2}
    config = (VJepaActionAnticipationConfig if anticipates else VJepaConfig)(**options, **sizes)
    model_class(config).save_pretrained(tmp_path)
    labels = dict.fromkeys(
        ("verb_labels", "noun_labels", "action_labels") if anticipates else ("labels",), torch.tensor([0, 1])
    )
    for model in (model_class(config), model_class.from_pretrained(tmp_path)):
        model.train()(torch.randn(2, 4, 3, 32, 32), **labels).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        beside = ("vjepa2.predictor.", "vjepa2.encoder.level_norms.", "vjepa2.encoder.embeddings.image_")
        assert all(name.startswith(beside) for name in frozen)
        assert bool(frozen) == (options is LEVELS or not anticipates)


def test_loading_meets_the_same_freezes_as_building(tmp_path):
    model = IJepaForPreTraining.from_encoder(IJepaModel(IJepaConfig(**VIT)), predictor_hidden_size=8)
    model.save_pretrained(tmp_path)
    again = IJepaForPreTraining.from_pretrained(tmp_path)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    assert {p.requires_grad for p in again.parameters()} == {True, False}


@pytest.mark.parametrize("size", [48, (48, 64)])
def test_ijepa_goes_on_at_another_size(size):
    encoder = IJepaModel(IJepaConfig(**VIT)).eval()
    model = IJepaForPreTraining.from_encoder(encoder, image_size=size, patch_size=8, predictor_hidden_size=8).eval()
    height, width = (size, size) if isinstance(size, int) else size
    assert model.config.grid_size == (height // 8, width // 8)
    images = torch.randn(2, 3, height, width)
    same = IJepaForPreTraining.from_encoder(encoder, predictor_hidden_size=8).eval()
    assert torch.equal(model.get_features(images), same.get_features(images))
    # Plain transformers gives these features with the encoder that is exported.
    plain = model.export_encoder()
    torch.testing.assert_close(plain(images).last_hidden_state, model.get_features(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [48, (48, 64)])
def test_joint_embedding_goes_on_at_another_size(size):
    encoder = ViTModel(ViTConfig(**VIT))
    model = LeJepaForPreTraining.from_encoder(encoder, image_size=size, projector_hidden_size=8)
    assert model.config.image_size == size
    assert torch.equal(model.encoder.embeddings.position_embeddings, encoder.embeddings.position_embeddings)


@pytest.mark.parametrize("name", ["crop_size", "image_size"])
def test_vjepa2_goes_on_at_another_size(name):
    encoder = VJEPA2Model(VJEPA2Config(**CLIP)).eval()
    model = VJepa2ForPreTraining.from_encoder(encoder, frames_per_clip=8, **{name: 64}).eval()
    assert model.config.encoder_config.grid_size == (4, 8, 8)
    assert model.export_encoder().config.crop_size == 64


@pytest.mark.parametrize(
    ("model_class", "encoder", "options", "message"),
    [
        (IJepaForPreTraining, IJepaModel(IJepaConfig(**VIT)), {"patch_size": 16}, "patches are 8"),
        (LeJepaForPreTraining, ViTModel(ViTConfig(**VIT)), {"patch_size": (8, 16)}, "patches are 8"),
        (IJepaForPreTraining, IJepaModel(IJepaConfig(**VIT)), {"predictor_depth": 2}, "no field `predictor_depth`"),
        (LeJepaForPreTraining, ViTModel(ViTConfig(**VIT)), {"embedding_sizes": 2}, "did you mean `embedding_size`"),
        (
            Data2VecVisionForPreTraining,
            Data2VecVisionModel(Data2VecVisionConfig(**VIT, **BEIT)),
            {"image_size": 64},
            "the encoder is one for 32 pixels",
        ),
        (VJepa2ForPreTraining, VJEPA2Model(VJEPA2Config(**CLIP)), {"patch_size": 16}, "patches are 8"),
        (VJepa2ForPreTraining, VJEPA2Model(VJEPA2Config(**CLIP)), {"image_size": (64, 32)}, "square"),
        (LatentWorldModel, ViTModel(ViTConfig(**VIT)), {"sigreg_wieght": 1.0}, "did you mean `sigreg_weight`"),
        (LatentWorldModel, ViTModel(ViTConfig(**VIT)), {"preset": "lewn"}, "Unknown preset 'lewn'"),
        (LatentWorldModel, ViTModel(ViTConfig(**VIT)), {"image_size": 64}, "one for 32 pixels"),
        (
            VJepa2ACModel,
            VJEPA2Model(VJEPA2Config(**CLIP)),
            {"num_hidden_layer": 1},
            "did you mean `num_hidden_layers`",
        ),
        (VJepa2ACModel, VJEPA2Model(VJEPA2Config(**CLIP)), {"image_size": 64}, "one for 32 pixels"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model_class, encoder, options, message):
    with pytest.raises(ValueError, match=message):
        model_class.from_encoder(encoder, **options)


def test_unknown_fields_are_refused_for_decoders_too():
    from transformers import LlamaConfig, LlamaForCausalLM

    decoder = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="did you mean `jepa_lambda`"):
        LLMJepaForCausalLM.from_decoder(decoder, jepa_lamda=1.0)


@pytest.mark.parametrize("given", [{}, {"img_size": 64}, {"img_size": 64, "dynamic_img_size": True}])
def test_timm_vits_take_views_of_any_size(given, tmp_path):
    encoder = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 1, **given})
    model = LeJepaForPreTraining(
        LeJepaPreTrainingConfig(encoder_config=encoder, image_size=64, projector_hidden_size=8, num_slices=8)
    )
    assert encoder.model_args == {"depth": 1, **given}
    assert torch.isfinite(model(torch.randn(2, 2, 3, 64, 64), torch.randn(2, 2, 3, 32, 32)).loss)
    assert model.encoder.timm_model.patch_embed.grid_size == (4, 4)
    model.save_pretrained(tmp_path / "whole")
    again = LeJepaForPreTraining.from_pretrained(tmp_path / "whole").eval()
    images = torch.randn(2, 3, 32, 48)
    assert torch.equal(again.get_features(images), model.eval().get_features(images))
    model.export_encoder().save_pretrained(tmp_path / "encoder")
    plain = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    assert torch.equal(plain(images).pooler_output, model.get_pooled_features(images))


def test_a_timm_vit_goes_on_at_another_size():
    encoder = AutoModel.from_config(TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 1}))
    model = LeJepaForPreTraining.from_encoder(encoder, image_size=64, projector_hidden_size=8, num_slices=8)
    assert torch.equal(model.encoder.timm_model.pos_embed, encoder.timm_model.pos_embed)
    assert torch.isfinite(model(torch.randn(2, 2, 3, 64, 64), torch.randn(2, 2, 3, 32, 32)).loss)


@pytest.mark.parametrize("channels", [1, 12])
@pytest.mark.parametrize("family", ["ijepa", "data2vec", "lejepa", "lejepa_timm", "lejepa_resnet", "vjepa2", "vjepa"])
def test_images_have_any_number_of_channels(family, channels, tmp_path):
    vit, masks = {**VIT, "num_channels": channels}, [torch.arange(4).expand(2, -1)]
    targets = [torch.arange(4, 8).expand(2, -1)]
    views, clips = torch.randn(2, 2, channels, 32, 32), torch.randn(2, 4, channels, 32, 32)
    joint = {"image_size": 32, "projector_hidden_size": 8, "num_slices": 8}
    if family == "ijepa":
        model = IJepaForPreTraining.from_encoder(IJepaModel(IJepaConfig(**vit)), predictor_hidden_size=8)
        inputs = (views[:, 0], masks, targets)
    elif family == "data2vec":
        model = Data2VecVisionForPreTraining.from_encoder(Data2VecVisionModel(Data2VecVisionConfig(**vit, **BEIT)))
        inputs = (views[:, 0], targets)
    elif family.startswith("lejepa"):
        options = {"depth": 1, "in_chans": channels}
        encoder = {
            "lejepa": ViTConfig(**vit),
            "lejepa_timm": TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=options),
            "lejepa_resnet": AutoConfig.for_model(
                "resnet", num_channels=channels, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], embedding_size=8
            ),
        }[family]
        model, inputs = LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=encoder, **joint)), (views,)
        assert model.config.num_channels == channels
    else:
        positions = {"position_embedding_type": "sincos"} if family == "vjepa" else {}
        encoder = VJepaConfig(**CLIP, in_chans=channels, **positions)
        model = VJepa2ForPreTraining(VJepa2ForPreTraining.config_class(encoder_config=encoder))
        inputs = (clips, masks, targets)
    assert torch.isfinite(model(*inputs).loss)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    pixels = clips if family.startswith("vjepa") else views[:, 0]
    assert torch.equal(again.get_features(pixels), model.eval().get_features(pixels))
    assert model.export_encoder() is not None
    # What files hold, up to 255, would be taken for normalised.
    for call in (lambda: model(inputs[0].byte(), *inputs[1:]), lambda: model.get_features(pixels.byte())):
        with pytest.raises(ValueError, match=r"must be floating point, .* got torch.uint8: pass images through"):
            call()
    with pytest.raises(ValueError, match=r"batch is empty|batch of at least 2 images, got 0"):
        model(inputs[0][:0], *[[mask[:0] for mask in masks] for masks in inputs[1:]])
