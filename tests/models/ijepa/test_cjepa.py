"""C-JEPA: I-JEPA plus VICReg, in both readings."""

import itertools
import json

import pytest
import torch
from transformers import AutoModelForPreTraining

from hf_jepa import CJepaForPreTraining, CJepaPreTrainingConfig, IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.objectives import vicreg
from tests.tiny_models import tiny_ijepa

PLAIN = {"model_type": "ijepa_pretraining", "regularizer": "none", "regularizer_weight": None}


def build(**kwargs) -> CJepaForPreTraining:
    sizes = {"projector_hidden_size": 24, "projector_output_size": 12}
    return tiny_ijepa({"image_size": 32}, CJepaPreTrainingConfig, **sizes, **kwargs)


@pytest.fixture
def inputs() -> dict:
    return {
        "pixel_values": torch.randn(6, 3, 32, 32),
        "context_mask": [torch.tensor([[0, 1, 4, 5]] * 6)],
        "target_mask": [torch.tensor([[10, 11]] * 6), torch.tensor([[14, 15]] * 6), torch.tensor([[2, 3]] * 6)],
    }


def test_blocks_reading_is_the_mean_over_pairs(inputs):
    model = build()
    output = model(**inputs)
    blocks = model.projector(torch.cat(output.predictions).mean(dim=1)).chunk(3)
    pairs = [vicreg(blocks[i], blocks[j]) for i, j in itertools.permutations(range(3), 2)]
    for name in ("sim", "std", "cov"):
        expected = torch.stack([getattr(terms, name) for terms in pairs]).mean().detach()
        torch.testing.assert_close(output.loss_components[f"vicreg_{name}"], expected, rtol=1e-4, atol=1e-6)
    regularizer = torch.stack([terms.loss for terms in pairs]).mean()
    torch.testing.assert_close(output.loss, output.loss_components["prediction_loss"] + 0.001 * regularizer)


def test_context_reading(inputs):
    model = build(regularized="context")
    output = model(**inputs)
    embeddings = model.projector(output.context_features.mean(dim=1))
    goal = model.projector(torch.stack(output.targets).mean(dim=(0, 2)))
    terms = output.loss_components
    torch.testing.assert_close(terms["vicreg_sim"], (embeddings - goal).square().mean().detach())
    own = vicreg(embeddings, embeddings)
    torch.testing.assert_close(terms["vicreg_std"], own.std.detach())
    torch.testing.assert_close(2 * terms["vicreg_cov"], own.cov.detach())


@pytest.mark.parametrize("regularized", ["predicted_blocks", "context"])
def test_without_weight_it_is_ijepa_and_every_parameter_learns(inputs, regularized):
    model = build(regularized=regularized)
    plain = IJepaForPreTraining(IJepaPreTrainingConfig(**{**model.config.to_dict(), **PLAIN}))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("projector")})
    output = model(**inputs)
    torch.testing.assert_close(output.loss_components["prediction_loss"], plain(**inputs).loss.detach())
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.encoder.layers[0].mlp.fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("regularized", ["predicted_blocks", "context"])
def test_it_is_a_setting_of_ijepa(inputs, regularized):
    model = build(regularized=regularized, std_weight=5.0)
    fields = {**model.config.to_dict(), "model_type": "ijepa_pretraining"}
    setting = IJepaForPreTraining(IJepaPreTrainingConfig(**fields))
    setting.load_state_dict(model.state_dict())
    assert setting.config.regularizer_weight == 0.001
    expected, output = model(**inputs), setting(**inputs)
    assert torch.equal(output.loss, expected.loss)
    assert output.loss_components.keys() == {"prediction_loss", "vicreg_sim", "vicreg_std", "vicreg_cov"}


def test_configs_of_earlier_versions_are_read(tmp_path):
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"vicreg_weight": 0.3, "regularizer": "none", "regularizer_weight": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = AutoModelForPreTraining.from_pretrained(tmp_path).config
    assert (read.regularizer, read.regularizer_weight) == ("cjepa", 0.3)
    assert "vicreg_weight" not in read.to_dict()


def test_save_and_load(inputs, tmp_path):
    model = build(regularizer_weight=0.01).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert isinstance(loaded, CJepaForPreTraining)
    assert torch.equal(loaded(**inputs).loss, model(**inputs).loss)


def test_faults(inputs):
    with pytest.raises(ValueError, match="batch of at least 2"):
        build()(
            inputs["pixel_values"][:1],
            [m[:1] for m in inputs["context_mask"]],
            [m[:1] for m in inputs["target_mask"]],
        )
    with pytest.raises(ValueError, match="at least 2, got 1"):
        build()(**{**inputs, "target_mask": inputs["target_mask"][:1]})
    for field, value in (
        ("regularizer_weight", -1.0),
        ("sim_weight", -1.0),
        ("projector_output_size", 0),
        ("regularized", "both"),
    ):
        with pytest.raises(Exception, match=field):
            build(**{field: value})
