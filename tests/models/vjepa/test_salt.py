"""SALT (arXiv 2509.24317): V-JEPA that predicts pixels, then V-JEPA that predicts the encoder so trained."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForPreTraining

from hf_jepa import VJepaForPreTraining, VJepaModel
from hf_jepa.objectives.distances import normalize_targets
from hf_jepa.predictor import gather_tokens

from .test_modeling_vjepa_pretraining import build, split


@pytest.fixture
def inputs() -> dict:
    return {"pixel_values_videos": torch.randn(3, 8, 3, 16, 16) + 5, **split(3, (20, 40))}


def test_pixels_are_each_tubelets_by_its_own_mean_and_deviation(inputs):
    model = build("2", target="pixels").train()
    output = model(**inputs)
    clips, token = inputs["pixel_values_videos"], int(inputs["target_mask"][0][1, 2])
    # Tubelets of 2 frames and 4 x 4 pixels on a grid of 4 x 4 x 4; (frame, channel, row, column) order.
    slot, row, column = token // 16, token // 4 % 4, token % 4
    tubelet = clips[1, 2 * slot : 2 * slot + 2, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
    expected = (tubelet - tubelet.mean()) / tubelet.std()
    torch.testing.assert_close(output.targets[0][1, 2], expected, rtol=1e-4, atol=1e-5)
    assert output.predictions[0].shape == output.targets[0].shape
    assert not model.has_target_encoder
    output.loss.backward()
    unread = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unread == []


@pytest.mark.parametrize("name", ["patch_size", "tubelet_size", "in_chans"])
def test_tokens_of_another_kind_than_the_teachers_are_refused(name):
    config = build("2", target="pixels").config.encoder_config
    with pytest.raises(StrictDataclassError, match=f"teacher's `{name}` is 1, the student's {getattr(config, name)}"):
        build("2", target="frozen", teacher_config=type(config)(**{**config.to_diff_dict(), name: 1}))


@pytest.mark.parametrize("width", [24, 36])
def test_the_second_stage_predicts_the_first_ones_encoder(inputs, tmp_path, width):
    first = build("2", target="pixels", hidden_size=width).eval()
    first.export_encoder().save_pretrained(tmp_path / "teacher")
    config = VJepaModel.from_pretrained(tmp_path / "teacher").config
    model = build("2", target="frozen", teacher_config=config).train()
    model.load_teacher(str(tmp_path / "teacher"))
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    output = model(**inputs)
    tokens = normalize_targets(first.get_features(inputs["pixel_values_videos"]))
    torch.testing.assert_close(output.targets[0], gather_tokens(tokens, inputs["target_mask"][0]))
    output.loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    model.update_target(0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    model.eval().save_pretrained(tmp_path / "whole")
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(loaded(**inputs).loss, model(**inputs).loss)
    torch.testing.assert_close(
        loaded.get_features(inputs["pixel_values_videos"]), model.encoder([inputs["pixel_values_videos"]])[0]
    )


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"target": "frozen"}, "belong together"),
        ({"target": "pixels", "generation": "2.1"}, "one level"),
        ({"target": "noise"}, "target"),
    ],
)
def test_faults(kwargs, match):
    with pytest.raises(Exception, match=match):
        build(**kwargs)


def test_the_card_says_what_was_predicted():
    from hf_jepa.regularized import deviations

    assert deviations(build("2").config) == {}
    assert deviations(build("2", target="pixels").config)["target"] == "pixels"


def test_an_ema_model_has_no_teacher():
    assert VJepaForPreTraining.config_class().target == "ema"
    with pytest.raises(ValueError, match="no teacher"):
        build("2").load_teacher("nowhere")
