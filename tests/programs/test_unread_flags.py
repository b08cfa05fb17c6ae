"""Flags about a model that nothing would read are refused, whatever the kind of method and what it starts from."""

import re
from typing import Any

import pytest
from transformers import AutoModel, Data2VecVisionConfig, IJepaConfig, ViTConfig

from hf_jepa.models.vjepa import VJepaConfig, VJepaModel
from hf_jepa.programs import pretrain_image, pretrain_video, train_vl_jepa
from hf_jepa.programs.image_arguments import ModelArguments
from hf_jepa.programs.train_world_model import build_model as build_world_model
from hf_jepa.programs.train_world_model import stand_in_trajectories
from hf_jepa.programs.video_arguments import VideoModelArguments
from hf_jepa.programs.vl_arguments import VLModelArguments
from hf_jepa.programs.world_model_arguments import TrajectoryArguments, WorldModelArguments
from hf_jepa.training import JepaTrainingArguments
from tests.tiny_models import TINY_VJEPA

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = {**SIZES, "image_size": 16, "patch_size": 4, "num_channels": 3}
ENCODERS = {
    "ijepa": lambda: IJepaConfig(**VIT, intermediate_size=32),
    "data2vec_vision": lambda: Data2VecVisionConfig(
        **VIT, intermediate_size=32, layer_scale_init_value=0.5, use_absolute_position_embeddings=False
    ),
    "lejepa": lambda: ViTConfig(**VIT, intermediate_size=32),
}
SMALL_HEAD = {"embedding_size": None, "projector_hidden_size": 8, "projection_size": 4, "num_slices": 8}
PREDICTOR = {"predictor_hidden_size": 8, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
PREDICTOR |= {"loss_type": "l1", "initialization": "fan_in"}


@pytest.fixture
def encoder(tmp_path) -> Any:
    def save(family: str) -> str:
        folder = tmp_path / family
        if not folder.exists():
            AutoModel.from_config(ENCODERS[family]()).save_pretrained(folder)
        return str(folder)

    return save


def refused(build: Any, args: Any, source: str, *names: str) -> None:
    listed = ", ".join(f"`{name}`" for name in names)
    taken_back = " ".join(f"--{name} null" for name in names)
    with pytest.raises(
        ValueError, match=re.escape(f"{args.family} does not read {listed} beside `{source}`")
    ) as error:
        build(args)
    assert f"leave out {listed}" in str(error.value)
    assert f"`{taken_back}` take back" in str(error.value)


@pytest.mark.parametrize(
    ("family", "unread"),
    [
        ("ijepa", {"encoder": "vit"}),
        ("ijepa", {"encoder_args": {"qkv_bias": False}}),
        ("data2vec_vision", {"encoder_args": {"drop_path_rate": 0.3}}),
        ("data2vec_vision", {"predictor_hidden_size": 8, "loss_type": "l1"}),
        ("lejepa", {"encoder_args": {"patch_drop_rate": 0.3}}),
        ("lejepa", {"encoder_args": "{hidden_dropout_prob: 0.1}"}),
        ("lejepa", SIZES),
        ("lejepa", {"size": "base"}),
        ("lejepa", {"predictor_num_hidden_layers": 1, "initialization": "fan_in"}),
        ("simsiam", {"predictor_hidden_size": 8}),
    ],
    ids=str,
)
def test_a_released_encoder_brings_its_own(encoder, family, unread):
    given = {"family": family, "from_encoder": encoder(family if family in ENCODERS else "lejepa")}
    args = ModelArguments(**given, **unread)
    order = [name for name in vars(args) if name in unread]
    refused(pretrain_image.build_model, args, "from_encoder", *order)


@pytest.mark.parametrize("family", ["ijepa", "data2vec_vision", "lejepa"])
def test_what_a_released_encoder_can_answer_is_read(encoder, family):
    given = {"family": family, "from_encoder": encoder(family), "attn_implementation": "eager"}
    given |= {"image_size": 16, "patch_size": 4, "num_channels": 3, "licence": "mit"}
    given |= PREDICTOR if family == "ijepa" else {}
    given |= {"method": SMALL_HEAD} if family == "lejepa" else {"encoder_args": {}}
    config = pretrain_image.build_model(ModelArguments(**given)).config
    assert config.encoder_config.hidden_size == 16
    if family == "ijepa":
        assert [getattr(config, name) for name in PREDICTOR] == list(PREDICTOR.values())
    for name, value in {"patch_size": 8, "num_channels": 1}.items():
        with pytest.raises(ValueError, match=f"patch_size=8|--{name}"):
            pretrain_image.build_model(ModelArguments(**{**given, name: value}))


@pytest.mark.parametrize(
    ("given", "source", "unread"),
    [
        ({"family": "ijepa", "size": "tiny", "patch_size": 16}, "size", {"encoder_args": {"qkv_bias": False}}),
        ({"family": "ijepa", **VIT}, "hidden_size", {"encoder": "vit"}),
        ({"family": "data2vec_vision", "size": "base"}, "size", {"encoder_args": {"drop_path_rate": 0.3}}),
        ({"family": "data2vec_vision", **VIT}, "hidden_size", {"encoder": "vit", "loss_type": "l1"}),
        ({"family": "vit_mae", **VIT}, "hidden_size", {"encoder_args": {"qkv_bias": False}, "loss_type": "l1"}),
        ({"family": "lejepa", "encoder": "vit"}, "encoder", {"patch_size": 4, "num_hidden_layers": 1}),
        ({"family": "lejepa", "encoder": "timm/resnet10t"}, "encoder", SIZES),
    ],
    ids=str,
)
def test_other_sources_leave_nothing_unread(given, source, unread):
    args = ModelArguments(**given, **unread)
    order = [name for name in vars(args) if name in unread]
    refused(pretrain_image.build_model, args, source, *order)


def test_own_sizes_of_a_joint_embedding_are_read():
    given = {"family": "lejepa", "encoder": "vit", **VIT, "encoder_args": {"hidden_dropout_prob": 0.1}}
    given["method"] = SMALL_HEAD
    encoder = pretrain_image.build_model(ModelArguments(**given)).config.encoder_config
    assert (encoder.hidden_size, encoder.patch_size, encoder.hidden_dropout_prob) == (16, 4, 0.1)


def test_what_is_said_twice_is_refused(encoder):
    given = {"family": "ijepa", "from_encoder": encoder("ijepa"), "predictor_hidden_size": 8}
    with pytest.raises(ValueError, match="says predictor_hidden_size twice.*leave one out"):
        pretrain_image.build_model(ModelArguments(**given, method={"predictor_hidden_size": 12}))
    for source in ({"encoder": "timm/resnet10t"}, {"from_encoder": encoder("lejepa")}):
        with pytest.raises(ValueError, match="Give `image_size` as the flag"):
            pretrain_image.build_model(ModelArguments(family="lejepa", **source, method={"image_size": 64}))


def test_a_released_video_encoder_brings_its_own(tmp_path):
    VJepaModel(VJepaConfig(**TINY_VJEPA)).save_pretrained(tmp_path)
    given = {"family": "vjepa2", "from_encoder": str(tmp_path)}
    pretrain_video.build_model(VideoModelArguments(**given), 4)
    with pytest.raises(ValueError, match="brings its own sizes; leave out `encoder_args`: drop_path_rate"):
        pretrain_video.build_model(VideoModelArguments(**given, encoder_args={"drop_path_rate": 0.1}), 4)
    with pytest.raises(ValueError, match="Give one of `size`, `from_encoder`"):
        pretrain_video.build_model(VideoModelArguments(**given, size="large"), 4)


def test_a_world_models_released_encoder_brings_its_own(encoder, tmp_path):
    data = TrajectoryArguments()
    given = {"from_encoder": encoder("lejepa"), "preset": "lewm"}

    def build(**flags: Any) -> Any:
        args = JepaTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        return build_world_model(WorldModelArguments(**given, **flags), data, args, stand_in_trajectories(data))

    # What the encoder does not bring is read.
    assert build(method={"sigreg_weight": 0.25}).config.sigreg_weight == 0.25
    with pytest.raises(ValueError, match="`from_encoder` brings its own config; leave out `encoder_args`"):
        build(encoder_args={"model_type": "vit"})


@pytest.mark.parametrize(
    "unread",
    [{"num_layers": 8}, {"predictor_layers": [0, 2]}, {"num_layers": 2, "query_tokenizer": "x"}],
    ids=str,
)
def test_a_vl_jepa_checkpoint_holds_all_parts(unread):
    given = {"checkpoint": "somewhere", "config": {"projection_dim": 8}, "lora_rank": 2, "licence": "mit"}
    given["attn_implementation"] = "eager"
    train_vl_jepa.check_sources(VLModelArguments(**given))
    args = VLModelArguments(**given, **unread)
    order = [name for name in vars(args) if name in unread]
    refused(train_vl_jepa.check_sources, args, "checkpoint", *order)


def test_heads_of_a_vl_jepa_checkpoint_stay():
    with pytest.raises(ValueError, match="vl_jepa does not read `y_heads` beside `checkpoint`: leave out `y_heads`"):
        train_vl_jepa.check_sources(VLModelArguments(checkpoint="somewhere", y_heads="none"))


@pytest.mark.parametrize(
    "choice", [{"predictor": {"model_type": "llama"}}, {"predictor": "x", "predictor_layers": [0, 2]}], ids=str
)
def test_layers_of_a_vl_jepa_are_chosen_once(choice):
    parts = {"vision": "x", "y_encoder": "x", **choice}
    train_vl_jepa.check_sources(VLModelArguments(**parts))
    with pytest.raises(ValueError, match=r"`num_layers` is not read beside .*leave `num_layers` out"):
        train_vl_jepa.check_sources(VLModelArguments(**parts, num_layers=2))
