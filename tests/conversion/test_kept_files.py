"""What people keep of a checkpoint: one encoder, wrapped somehow, in half precision. All of it or nothing."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForVideoClassification, Data2VecVisionConfig, VJEPA2Model

from hf_jepa import (
    Data2VecVisionForPreTraining,
    Data2VecVisionPreTrainingConfig,
    IJepaForPreTraining,
    VJepa2ForPreTraining,
    VJepaConfig,
    VJepaForPreTraining,
    VJepaModel,
)
from hf_jepa.cli import main
from hf_jepa.conversion.data2vec_vision import convert_data2vec_vision_checkpoint
from hf_jepa.conversion.data2vec_vision import export_original_checkpoint as export_data2vec
from hf_jepa.conversion.ijepa import convert_ijepa_checkpoint
from hf_jepa.conversion.ijepa import export_original_checkpoint as export_ijepa
from hf_jepa.conversion.reading import licence_of
from hf_jepa.conversion.vjepa import PUBLISHED, convert_vjepa_checkpoint
from hf_jepa.conversion.vjepa import export_original_checkpoint as export_vjepa
from hf_jepa.conversion.vjepa2 import PUBLISHED as PUBLISHED_2
from hf_jepa.conversion.vjepa2 import PUBLISHED_PROBE, convert_vjepa2_checkpoint
from hf_jepa.conversion.vjepa2 import export_original_checkpoint as export_vjepa2
from hf_jepa.data.transforms import IMAGENET_MEAN
from hf_jepa.hub import check_release, load_pretraining
from hf_jepa.models.data2vec_vision.configuration_data2vec_vision import ENCODER_DEFAULTS
from tests.conversion.original_files import golden, save, state_dicts, training_file

HEADS = {"num_attention_heads": 4}
CLIPS = {"num_attention_heads": 3, "predictor_num_attention_heads": 3, "image_size": 24, "num_frames": 8}


@pytest.fixture
def files(tmp_path):
    """Family -> its whole file, converter, options, way back, and names of student and teacher."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = Data2VecVisionConfig(
        **ENCODER_DEFAULTS, **sizes, image_size=16, patch_size=4, layer_scale_init_value=0.1
    )
    data2vec = Data2VecVisionForPreTraining(Data2VecVisionPreTrainingConfig(encoder_config=encoder, target_layers=[1]))
    with torch.no_grad():
        data2vec.encoder.layernorm.bias.add_(1)
    data2vec.save_pretrained(tmp_path / "data2vec")
    written = torch.load(export_data2vec(tmp_path / "data2vec", tmp_path / "data2vec.pth"), weights_only=True)
    return {
        "ijepa": (training_file("ijepa_forward"), convert_ijepa_checkpoint, HEADS, export_ijepa),
        "vjepa": (training_file("vjepa_forward"), convert_vjepa_checkpoint, HEADS, export_vjepa),
        "vjepa2": (training_file("vjepa2_forward"), convert_vjepa2_checkpoint, CLIPS, export_vjepa2),
        "data2vec": (written, convert_data2vec_vision_checkpoint, {"target_layers": [1]}, export_data2vec),
    }


FAMILIES = ["ijepa", "vjepa", "vjepa2", "data2vec"]
STUDENT = {"data2vec": "model"}
TEACHER = {"data2vec": "model_ema"}


def bare(family: str, content: dict, which: str) -> dict[str, torch.Tensor]:
    """An encoder's state dict without any prefix."""
    group = (STUDENT if which == "context" else TEACHER).get(
        family, "encoder" if which == "context" else "target_encoder"
    )
    tensors = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in content[group].items()}
    return {key: value for key, value in tensors.items() if not key.startswith("lm_head")}


def prefixed(tensors: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in tensors.items()}


SHAPES = {
    "encoder": lambda family, file: {STUDENT.get(family, "encoder"): bare(family, file, "context"), "epoch": 3},
    "target_encoder": lambda family, file: {
        TEACHER.get(family, "target_encoder"): bare(family, file, "target"), "opt": {"state": {}},
    },
    "bare": lambda family, file: bare(family, file, "context"),
    "model": lambda family, file: {"model": prefixed(bare(family, file, "context"), "module.")},
    "state_dict": lambda family, file: {
        "state_dict": prefixed(bare(family, file, "context"), "_orig_mod.module.backbone."), "epoch": 1,
    },
    "any order": lambda family, file: {
        STUDENT.get(family, "encoder"): prefixed(bare(family, file, "context"), "backbone._orig_mod.module."),
    },
    "half": lambda family, file: {
        STUDENT.get(family, "encoder"): {
            key: value.half() if value.is_floating_point() else value
            for key, value in bare(family, file, "context").items()
        }
    },
    "parts of one": lambda family, file: {"state_dict": prefixed(
        {f"{STUDENT.get(family, 'encoder')}.{key}": value for key, value in bare(family, file, "context").items()},
        "module.",
    )},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_alone_become_releases_of_one_floor(files, family, shape, tmp_path, caplog):
    whole, convert, options, _ = files[family]
    kept = SHAPES[shape](family, whole)
    folder = convert(save(kept, tmp_path / "kept"), tmp_path / "release", licence="mit", **options)
    check_release(folder)
    assert not (folder / "pretraining").exists()
    card = (folder / "README.md").read_text()
    assert "no predictor" in card
    assert "pretraining/" not in card
    # Against the whole file's release, whose numbers the goldens hold.
    reference = convert(save(whole, tmp_path / "whole"), tmp_path / "reference", licence="mit", **options)
    which = "target" if shape == "target_encoder" else "context"
    expected = load_pretraining(reference / "pretraining")
    model = AutoModel.from_pretrained(folder)
    assert next(model.parameters()).dtype == torch.float32
    pixels = torch.randn(1, 3, 16, 16) if family == "data2vec" else torch.randn(1, 3, 64, 64)
    if family.startswith("vjepa"):
        pixels = torch.randn(1, 8, 3, 24, 24)
        assert isinstance(model, VJepaModel if family == "vjepa" else VJEPA2Model)
    with torch.no_grad():
        options = {"skip_predictor": True} if family.startswith("vjepa") else {}
        features = model(pixels, **options).last_hidden_state
        wanted = expected.get_features(pixels, which=which)
        features = features[:, 1:] if family == "data2vec" else features
    # The in-tree class orders some sums otherwise.
    tolerance = 0.05 if shape == "half" else 1e-4 if family == "vjepa2" else 0.0
    torch.testing.assert_close(features, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", ["context", "target"])
def test_one_encoder_with_its_predictor_becomes_a_composite(files, family, kept, tmp_path):
    whole, convert, options, export = files[family]
    gone = {"context": TEACHER.get(family, "target_encoder"), "target": STUDENT.get(family, "encoder")}[kept]
    del whole[gone]
    source = save(whole, tmp_path / "kept")
    folder = convert(source, tmp_path / "release", licence="mit", **options)
    model = load_pretraining(folder / "pretraining")
    pairs = zip(model.encoder.state_dict().values(), model.target_encoder.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert export(folder, tmp_path / "back.pth").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_to_the_bit(files, family, dtype, tmp_path):
    whole, convert, options, export = files[family]
    for group in whole.values():
        if isinstance(group, dict):
            for key, value in group.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    group[key] = value.to(dtype)
    source = save(whole, tmp_path / "kept")
    folder = convert(source, tmp_path / "release", licence="mit", **options)
    assert next(load_pretraining(folder / "pretraining").parameters()).dtype == torch.float32
    back = torch.load(export(folder, tmp_path / "back.pth"), weights_only=True)
    for name, group in whole.items():
        if isinstance(group, dict):
            assert all(torch.equal(back[name][key], value) for key, value in group.items())
            assert all(back[name][key].dtype == value.dtype for key, value in group.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_alone_are_read_strictly(files, family, tmp_path):
    whole, convert, options, _ = files[family]
    kept = bare(family, whole, "context")
    key = next(key for key in kept if key.endswith("norm1.weight"))
    for changed, message in (
        ({name: tensor for name, tensor in kept.items() if name != key}, f"missing: .*{key}"),
        (kept | {key: torch.zeros(3)}, f"mis-shaped: .*{key}"),
        (kept | {f"other.{n}": torch.zeros(1) for n in range(40)}, "extra: 30 more"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            convert(save(changed, tmp_path / "kept"), tmp_path / "release", licence="mit", **options)
        assert len(str(error.value)) < 2500
        assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("family", ["ijepa", "vjepa", "vjepa2"])
def test_another_vit_is_named(files, family, tmp_path):
    whole, convert, options, _ = files[family]
    kept = {"cls_token": torch.zeros(1, 1, 48), **bare(family, whole, "context")}
    with pytest.raises(ValueError, match=r"`cls_token`: it is a ViT with a class token, such as DINO"):
        convert(save({"model": kept}, tmp_path), tmp_path / "release", licence="mit", **options)


def test_long_lists_are_cut(tmp_path):
    with pytest.raises(ValueError, match=r"'key7' and 992 more\. Expected an I-JEPA"):
        convert_ijepa_checkpoint(save({f"key{n}": n for n in range(1000)}, tmp_path), tmp_path / "release")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_licence_of_own_weights_is_asked_for(files, family, tmp_path):
    whole, convert, options, _ = files[family]
    with pytest.raises(ValueError, match=r"--license"):
        convert(save(whole, tmp_path), tmp_path / "release", **options)
    assert not (tmp_path / "release").exists()


def test_published_files_are_known_by_name_and_size():
    known = {"published": "cc-by-nc-4.0", "names": PUBLISHED}
    assert licence_of(Path("x/vitl16.pth.tar"), None, **known, is_published_size=True) == "cc-by-nc-4.0"
    assert licence_of(Path("x/vitl16.pth.tar"), "mit", **known, is_published_size=True) == "mit"
    for name, is_published_size in (("vitl16.pth.tar", False), ("jepa-latest.pth.tar", True)):
        with pytest.raises(ValueError, match="--license"):
            licence_of(Path(name), None, **known, is_published_size=is_published_size)
    assert PUBLISHED_2.match("vitg-384.pt")
    assert not PUBLISHED_2.match("my-vitg.pt")
    assert PUBLISHED_PROBE.match("ssv2-vitl-16x2x3.pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_exists_is_not_overwritten_silently(files, family, tmp_path):
    whole, convert, options, _ = files[family]
    (tmp_path / "release").mkdir()
    source = save(whole, tmp_path)
    convert(source, tmp_path / "release", licence="mit", **options)  # an empty folder is free
    before = (tmp_path / "release" / "config.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="exists.*--overwrite"):
        convert(source, tmp_path / "release", licence="mit", **options)
    assert (tmp_path / "release" / "config.json").stat().st_mtime_ns == before
    convert(source, tmp_path / "release", licence="cc0-1.0", overwrite=True, **options)
    assert "license: cc0-1.0" in (tmp_path / "release" / "README.md").read_text()


def test_the_command_overwrites_only_when_told(files, tmp_path, capsys):
    source, release, back = save(files["ijepa"][0], tmp_path), tmp_path / "release", tmp_path / "back.pth.tar"
    command = ["convert", "ijepa", str(source), str(release), "--num-attention-heads", "4", "--license", "mit"]
    assert main(command) == 0
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    back.write_text("mine")
    reverse = ["convert", "ijepa", str(release), str(back), "--reverse"]
    assert main(reverse) == 1
    assert back.read_text() == "mine"
    assert main([*reverse, "--overwrite"]) == 0
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("family", ["vjepa", "vjepa2"])
def test_what_stands_in_for_the_predictor_is_never_taken_for_one(files, family, tmp_path):
    whole, convert, options, _ = files[family]
    kept = save(bare(family, whole, "context"), tmp_path)
    folder = convert(kept, tmp_path / "release", licence="mit", **options)
    model = VJepaModel.from_pretrained(folder)
    assert model.config.has_predictor is False
    everything = [torch.arange(12).expand(1, -1)]
    predicted = model(torch.randn(1, 8, 3, 24, 24), everything, everything).predictor_output.last_hidden_state
    assert predicted.isnan().all()
    trained = {"vjepa": VJepaForPreTraining, "vjepa2": VJepa2ForPreTraining}[family].from_encoder(str(folder))
    assert trained.config.encoder_config.pred_num_hidden_layers == VJepaConfig().pred_num_hidden_layers
    assert all(parameter.isfinite().all() for parameter in trained.parameters())


def test_ijepa_goes_on_from_an_encoder_alone(files, tmp_path):
    whole, convert, options, _ = files["ijepa"]
    folder = convert(save(bare("ijepa", whole, "target"), tmp_path), tmp_path / "release", licence="mit", **options)
    model = IJepaForPreTraining.from_encoder(str(folder), predictor_num_hidden_layers=1, predictor_hidden_size=24)
    assert torch.equal(model.encoder.layernorm.bias, whole["target_encoder"]["module.norm.bias"])
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == list(IMAGENET_MEAN)


@pytest.mark.parametrize("family", ["vjepa", "vjepa2"])
@pytest.mark.parametrize("shape", ["bare", "state_dict", "half"])
def test_probes_alone(family, shape, tmp_path):
    config = VJepaConfig(
        position_embedding_type="sincos" if family == "vjepa" else "rope", patch_size=4, crop_size=16,
        frames_per_clip=4, hidden_size=36, num_hidden_layers=1, num_attention_heads=3, pred_hidden_size=24,
        pred_num_hidden_layers=1, pred_num_attention_heads=2,
    )  # fmt: skip
    VJepaModel(config).save_pretrained(tmp_path / "encoder")
    name = "classifier" if family == "vjepa" else "classifiers.0"
    head = state_dicts(golden(f"{family}_attentive_probe"), (name,), "depth1/")[name]
    tensors = {key.removeprefix("module."): value for key, value in head.items()}
    content = {
        "bare": tensors,
        "state_dict": {"state_dict": prefixed(tensors, "_orig_mod.module."), "epoch": 2},
        "half": {"state_dict": {key: value.half() for key, value in tensors.items()}},
    }[shape]
    convert = {"vjepa": convert_vjepa_checkpoint, "vjepa2": convert_vjepa2_checkpoint}[family]
    options = {"encoder": tmp_path / "encoder", "num_attention_heads": 3}
    path = save(content, tmp_path / "kept", "probe.pt")
    with pytest.raises(ValueError, match="--license"):
        convert(path, tmp_path / "release", **options)
    folder = convert(path, tmp_path / "release", licence="mit", **options)
    model = AutoModelForVideoClassification.from_pretrained(folder)
    torch.testing.assert_close(model.classifier.weight, tensors["linear.weight"], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="--overwrite"):
        convert(path, tmp_path / "release", licence="mit", **options)
