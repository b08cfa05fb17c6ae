"""I-JEPA with a regularizer and with targets from the encoder itself."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForPreTraining, IJepaConfig

from hf_jepa import (
    CJepaForPreTraining,
    CJepaPreTrainingConfig,
    IJepaForPreTraining,
    IJepaPreTrainingConfig,
    JepaTrainer,
    JepaTrainingArguments,
)
from hf_jepa.conversion.ijepa import export_original_checkpoint
from hf_jepa.data import MaskCollator
from hf_jepa.evaluation import pooled_features
from hf_jepa.hub.release import load_pretraining, save_release
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.objectives import RDMReg, SIGReg, VISReg, WeakSIGReg
from hf_jepa.objectives.vicreg import variance_covariance
from hf_jepa.training.checkpoints import COMPLETE_MARKER

SLICES = 16
DEFAULT_WEIGHT = {"sigreg": 0.05, "visreg": 0.02, "weak_sigreg": 1.0, "rdmreg": 5.0, "vicreg": 0.04}


def tiny_config(config_class: type = IJepaPreTrainingConfig, **kwargs) -> IJepaPreTrainingConfig:
    encoder = IJepaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    defaults = {"predictor_hidden_size": 16, "predictor_num_hidden_layers": 1, "initialization": "fan_in"}
    return config_class(encoder_config=encoder, **{**defaults, "num_slices": SLICES, **kwargs})


def tiny(seed: int = 0, **kwargs) -> IJepaForPreTraining:
    torch.manual_seed(seed)
    return IJepaForPreTraining(tiny_config(**kwargs))


@pytest.fixture
def inputs() -> dict:
    # Two context masks, so that views and images cannot be mixed up unnoticed.
    return {
        "pixel_values": torch.randn(3, 3, 32, 32),
        "context_mask": [torch.tensor([[0, 1, 4], [8, 9, 12], [2, 3, 6]]), torch.tensor([[5, 6, 7]] * 3)],
        "target_mask": [torch.tensor([[10, 11]] * 3), torch.tensor([[14, 15]] * 3)],
    }


@pytest.mark.parametrize("target", ["ema", "stop_gradient", "shared"])
@pytest.mark.parametrize("regularizer", DEFAULT_WEIGHT)
def test_the_loss_is_prediction_plus_weighted_objective(inputs, regularizer, target):
    output = tiny(regularizer=regularizer, target=target).train()(**inputs)
    context = output.context_features.detach()
    # By hand: one set of embeddings per context mask, each image's tokens averaged.
    views = torch.stack([context[:3].mean(dim=1), context[3:].mean(dim=1)])
    if regularizer == "sigreg":
        expected = SIGReg(SLICES)(views)
    elif regularizer == "rdmreg":
        expected = RDMReg(num_projections=SLICES)(views.clamp(min=0))
    elif regularizer in ("visreg", "weak_sigreg"):
        expected = {"visreg": VISReg, "weak_sigreg": WeakSIGReg}[regularizer](SLICES)(views)
    else:
        std, cov = variance_covariance(views)
        expected = 25 * std.mean() + cov.mean()
    prediction = F.smooth_l1_loss(torch.cat(output.predictions), torch.cat(output.targets)).detach()
    terms = output.loss_components
    assert terms.keys() == {"prediction_loss", regularizer}
    assert not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(terms["prediction_loss"], prediction)
    torch.testing.assert_close(terms[regularizer], expected)
    assert expected > 0.01
    torch.testing.assert_close(output.loss.detach(), prediction + DEFAULT_WEIGHT[regularizer] * expected)


def test_the_weight_scales_the_regularizer_alone(inputs):
    losses = {w: tiny(regularizer="sigreg", regularizer_weight=w).train()(**inputs) for w in (0.0, 1, 2.0)}
    plain = tiny().train()(**inputs).loss
    torch.testing.assert_close(losses[0.0].loss, plain)
    torch.testing.assert_close(losses[2.0].loss - plain, 2 * losses[1].loss_components["sigreg"])


def test_defaults_are_ijepa_as_it_was(inputs):
    model = tiny()
    assert list(dict(model.named_children())) == ["encoder", "target_encoder", "predictor"]
    assert not any(name.startswith("regularizer") for name in model.state_dict())


def forget_new_fields(folder) -> None:
    """As a version of this package without regularizers has written it."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("target", "regularizer", "regularizer_weight", "num_slices"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    marker = json.loads((folder / COMPLETE_MARKER).read_text())
    marker["files"]["config.json"] = (folder / "config.json").stat().st_size
    (folder / COMPLETE_MARKER).write_text(json.dumps(marker))


def test_checkpoints_of_earlier_versions_load_and_resume(tmp_path):
    whole = trainer(tiny(num_slices=1024), tmp_path, save_strategy="steps", save_steps=1)
    whole.train()
    forget_new_fields(tmp_path / "checkpoint-2")
    loaded = IJepaForPreTraining.from_pretrained(tmp_path / "checkpoint-2")
    assert (loaded.config.target, loaded.config.regularizer) == ("ema", "none")
    resumed = trainer(tiny(seed=1, num_slices=1024), tmp_path, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.model.state_dict().items())
    with pytest.raises(ValueError, match=r"config\.regularizer: 'none' in the checkpoint, 'vicreg' now"):
        trainer(tiny(num_slices=1024, regularizer="vicreg"), tmp_path).train(str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("target", ["stop_gradient", "shared"])
def test_without_ema_there_is_one_encoder(inputs, target):
    model = tiny(target=target, regularizer="sigreg")
    keys = tiny().state_dict().keys()
    assert model.state_dict().keys() == {k for k in keys if not k.startswith("target_")} | {"regularizer.global_step"}
    assert model.target_encoder is None
    before = copy.deepcopy(model.state_dict())
    model.sync_target()
    model.update_target(0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="momentum"):
        model.update_target(2.0)
    with pytest.raises(ValueError, match="which"):
        model.get_features(inputs["pixel_values"], which="both")
    pixels = inputs["pixel_values"]
    features = model.eval().get_features(pixels)
    assert torch.equal(features, model.get_features(pixels, which="context"))
    for which in ("target", "context"):
        exported = model.export_encoder(which)
        torch.testing.assert_close(exported(pixels).last_hidden_state, features)
    assert torch.equal(pooled_features(model, pixels), features.mean(dim=1))


def gradients(model: IJepaForPreTraining, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    return {name: gradient for (name, _), gradient in zip(named, found, strict=True)}


def test_targets_get_gradients_only_where_the_encoder_is_shared(inputs):
    models = {target: tiny(target=target).train() for target in ("ema", "stop_gradient", "shared")}
    weights = models["ema"].state_dict()
    for model in models.values():
        model.load_state_dict({name: value for name, value in weights.items() if name in model.state_dict()})
    outputs = {target: model(**inputs) for target, model in models.items()}
    # At the start the EMA copy is the encoder, so all three compare the same tensors.
    for output in outputs.values():
        assert torch.equal(output.loss, outputs["ema"].loss)
    assert [output.targets[0].requires_grad for output in outputs.values()] == [False, False, True]
    found = {target: gradients(models[target], output.loss) for target, output in outputs.items()}
    for name, gradient in found["stop_gradient"].items():
        torch.testing.assert_close(gradient, found["ema"][name], msg=name)

    # Shared: the gradient is the sum of that through the predictions and that through the targets.
    shared = models["shared"]
    output = shared(**inputs)
    prediction, target = torch.cat(output.predictions), torch.cat(output.targets)
    through_targets = gradients(shared, F.smooth_l1_loss(prediction.detach(), target))
    assert through_targets["predictor.proj.weight"] is None
    assert through_targets["encoder.layers.0.mlp.fc1.weight"].abs().max() > 0
    for name, gradient in found["shared"].items():
        other = through_targets[name]
        expected = found["stop_gradient"][name] + (0 if other is None else other)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("regularizer", ["sigreg", "rdmreg", "vicreg"])
def test_the_regularizer_moves_the_context_encoder_alone(inputs, regularizer):
    plain, regularized = tiny().train(), tiny(regularizer=regularizer).train()
    before = gradients(plain, plain(**inputs).loss)
    after = gradients(regularized, regularized(**inputs).loss)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "encoder.layers.0.mlp.fc1.weight" in changed
    assert all(name.startswith("encoder.") for name in changed)


def test_directions_follow_the_training_steps(inputs):
    model = tiny(regularizer="sigreg").train()
    first, second = model(**inputs), model(**inputs)
    assert model.regularizer.global_step == 2
    assert first.loss_components["sigreg"] != second.loss_components["sigreg"]
    model.eval()
    assert model(**inputs).loss == model(**inputs).loss
    assert model.energy(**inputs).shape == (3,)
    assert model.regularizer.global_step == 2


@pytest.mark.parametrize("kwargs", [{"target": "stop_gradient", "regularizer": "sigreg"}, {"regularizer": "rdmreg"}])
def test_round_trip_through_auto_classes(inputs, tmp_path, kwargs):
    model = tiny(**kwargs, regularizer_weight=0.3).train()
    model(**inputs)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "model")
    assert type(loaded) is IJepaForPreTraining
    for name in ("target", "regularizer", "regularizer_weight", "num_slices"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    assert loaded.regularizer.global_step == 1
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded.train()(**inputs).loss, model(**inputs).loss)
    continued = IJepaForPreTraining.from_encoder(loaded.export_encoder(), target="shared", regularizer="vicreg")
    assert torch.equal(continued.encoder.layernorm.weight, model.encoder.layernorm.weight)
    assert continued.target_encoder is None


def test_a_checkpoint_of_another_target_is_refused(tmp_path):
    tiny(target="stop_gradient", regularizer="sigreg").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="target_encoder"):
        IJepaForPreTraining.from_pretrained(tmp_path, config=tiny_config())


def test_a_release_says_what_it_holds(inputs, tmp_path):
    model = tiny(target="stop_gradient", regularizer="sigreg").eval()
    results = {"model": {"name": "tiny"}, "licence": "apache-2.0"}
    folder = save_release(model, tmp_path / "release", results=results)
    encoder = AutoModel.from_pretrained(folder)
    pixels = inputs["pixel_values"]
    torch.testing.assert_close(encoder(pixels).last_hidden_state, model.get_features(pixels))
    assert encoder.config.jepa_encoder == "context"
    card = (folder / "README.md").read_text()
    assert "holds the **encoder**" in card
    assert "target encoder" not in card
    assert "(encoder, predictor, regularizer)" in card
    assert 'target="stop_gradient"' in card
    assert "sigreg" in card
    assert load_pretraining(folder / "pretraining").config.regularizer == "sigreg"
    with pytest.raises(ValueError, match="no target encoder"):
        export_original_checkpoint(folder, tmp_path / "original.pth.tar")


class Pictures:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, object]:
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": image + index % 2, "label": index % 2}


def trainer(model: IJepaForPreTraining, folder, **args) -> JepaTrainer:
    return JepaTrainer(
        model=model,
        args=JepaTrainingArguments(
            output_dir=str(folder),
            max_steps=3,
            per_device_train_batch_size=4,
            warmup_steps=1,
            logging_steps=1,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **args,
        ),
        data_collator=MaskCollator(MultiBlockMaskGenerator(32, 8, min_keep=1, mode="balanced")),
        train_dataset=Pictures(),
        eval_dataset=Pictures(),
        probe_train_dataset=Pictures(),
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"target": "stop_gradient", "regularizer": "sigreg"},
        {"target": "shared", "regularizer": "rdmreg"},
        {"target": "ema", "regularizer": "vicreg"},
    ],
    ids=["sigreg", "rdmreg", "vicreg"],
)
def test_training_resumes_bit_for_bit(tmp_path, kwargs):
    whole = trainer(tiny(**kwargs), tmp_path, save_strategy="steps", save_steps=1, probe_num_neighbors=3)
    whole.train()
    resumed = trainer(tiny(seed=1, **kwargs), tmp_path, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    states = [t.model.state_dict() for t in (whole, resumed)]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    logs = [[entry for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    assert ("ema_momentum" in logs[0][0]) == (kwargs["target"] == "ema")
    assert all({kwargs["regularizer"], "prediction_loss", "target_std"} <= entry.keys() for entry in logs[0])
    if kwargs["regularizer"] != "vicreg":
        assert whole.model.regularizer.global_step == 3
    assert 0 <= whole.evaluate()["eval_knn_accuracy"] <= 1


@pytest.mark.parametrize("kwargs", [{}, {"target": "shared", "regularizer": "sigreg"}])
def test_weights_in_half_precision_are_not_trained(tmp_path, kwargs):
    with pytest.raises(ValueError, match="is trained in torch.bfloat16"):
        trainer(tiny(**kwargs).to(torch.bfloat16), tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"regularizer": "sigreg", "regularizer_weight": -0.1}, "-0.1"),
        ({"regularizer": "sigreg", "regularizer_weight": float("nan")}, "nan"),
        ({"regularizer": "sigreg", "regularizer_weight": float("inf")}, "inf"),
        ({"regularizer_weight": 0.1}, "'none'"),
        ({"regularizer": "sigreg", "num_slices": 0}, "num_slices"),
        ({"regularizer": "barlow"}, "regularizer"),
        ({"target": "momentum"}, "target"),
        ({"config_class": CJepaPreTrainingConfig, "regularizer": "sigreg"}, "is 'cjepa'"),
    ],
)
def test_bad_configs_are_named(kwargs, message):
    with pytest.raises(Exception, match=message) as error:
        tiny_config(**kwargs)
    assert isinstance(error.value, ValueError) or "Strict" in type(error.value).__name__


@pytest.mark.parametrize("regularizer", DEFAULT_WEIGHT)
def test_a_batch_of_one_is_refused(inputs, regularizer):
    one = {
        "pixel_values": inputs["pixel_values"][:1],
        "context_mask": [mask[:1] for mask in inputs["context_mask"]],
        "target_mask": [mask[:1] for mask in inputs["target_mask"]],
    }
    with pytest.raises(ValueError, match="at least 2"):
        tiny(regularizer=regularizer).train()(**one)


def test_a_run_that_will_collapse_is_warned_about(monkeypatch):
    warned = []
    monkeypatch.setattr("hf_jepa.regularized.logger.warning_once", warned.append)
    tiny_config(target="ema")
    tiny_config(target="shared", regularizer="sigreg")
    tiny_config(CJepaPreTrainingConfig, target="stop_gradient")
    assert not warned
    tiny_config(target="stop_gradient")
    assert 'target="stop_gradient"' in warned[0]
    assert "regularizer" in warned[0]


def test_cjepa_may_do_without_its_ema_too(inputs):
    model = CJepaForPreTraining(
        tiny_config(CJepaPreTrainingConfig, target="stop_gradient", projector_hidden_size=8, projector_output_size=8)
    )
    output = model.train()(**inputs)
    output.loss.backward()
    assert model.target_encoder is None
    assert output.loss_components.keys() == {"prediction_loss", "vicreg_sim", "vicreg_std", "vicreg_cov"}
    assert model.encoder.layernorm.weight.grad.abs().max() > 0
