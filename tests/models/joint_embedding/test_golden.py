"""The losses and heads of the released code bases, number for number."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig

from hf_jepa import SimSiamForPreTraining, SimSiamPreTrainingConfig
from hf_jepa.models.joint_embedding import lejepa_loss
from hf_jepa.models.joint_embedding.modeling_simsiam import negative_cosine

from .conftest import build

LEJEPA_FORMS = {
    "lejepa_minimal": {},
    "lejepa_lightly": {"regularizer_weight": 0.05, "centre": "global_views"},
    "lejepa_stable_pretraining": {"centre": "global_views", "combination": "additive", "flatten_views": True},
    "sigreg_eb_jepa": {
        "regularizer_weight": 10.0,
        "combination": "additive",
        "centre": "pairs",
        "t_max": 3.0,
        "num_points": 10,
        "scale_by_batch": False,
    },
}


def lejepa_case(golden_dir, name: str) -> tuple[dict, torch.Tensor]:
    case = load_file(golden_dir / f"{name}.safetensors")
    return case, case["proj"] if "proj" in case else torch.stack([case["z1"], case["z2"]])


@pytest.mark.parametrize("name", LEJEPA_FORMS)
def test_lejepa_losses_of_four_code_bases(golden_dir, name):
    case, projections = lejepa_case(golden_dir, name)
    projections.requires_grad_(True)
    options = dict(LEJEPA_FORMS[name])
    if options.get("centre") == "global_views":
        options["num_global_views"] = 2
    if name == "sigreg_eb_jepa":
        options["form"] = "paper"
    loss, invariance, regularizer = lejepa_loss(projections, case["directions"], **options)
    expected = {
        "inv_loss": invariance,
        "invariance_loss": invariance,
        "sigreg_loss": regularizer,
        "bcs_loss": regularizer,
        "lejepa_loss": loss,
        "loss": loss,
    }
    compared = expected.keys() & case.keys()
    assert len(compared) == 3
    for key in compared:
        torch.testing.assert_close(expected[key], case[key].to(loss.dtype), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, projections, retain_graph=True)
    total = case["grad_total"] if "grad_total" in case else torch.stack([case["grad_z1"], case["grad_z2"]])
    torch.testing.assert_close(gradient, total, rtol=1e-4, atol=1e-6)
    if "grad_inv" in case:
        (gradient,) = torch.autograd.grad(invariance, projections)
        torch.testing.assert_close(gradient, case["grad_inv"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", LEJEPA_FORMS)
def test_the_config_says_the_same_as_the_function(name, views, local_views):
    form = "paper" if name == "sigreg_eb_jepa" else "package"
    model = build(sigreg_form=form, **LEJEPA_FORMS[name])
    directions = []
    model.sigreg.register_forward_pre_hook(lambda module, inputs: directions.append(int(module.global_step)))
    output = model(views, local_views)
    generator = torch.Generator().manual_seed(directions[0])
    options = {"num_global_views": 2, **LEJEPA_FORMS[name]}
    drawn = torch.nn.functional.normalize(torch.randn(4, 16, generator=generator), dim=0).T
    loss, *_ = lejepa_loss(output.projections, drawn, form=form, **options)
    torch.testing.assert_close(output.loss, loss)


def test_paper_form_sums_over_the_width_and_pulls_to_the_global_centre():
    projections = torch.randn(5, 6, 3)
    directions = torch.nn.functional.normalize(torch.randn(7, 3), dim=1)
    loss, invariance, regularizer = lejepa_loss(
        projections, directions, 0.05, centre="global_views", num_global_views=2, reduction="sum", form="paper"
    )
    by_hand = sum((projections[:2].mean(0) - view).square().sum(1).mean() for view in projections) / 5
    torch.testing.assert_close(invariance, by_hand)
    torch.testing.assert_close(loss, 0.95 * invariance + 0.05 * regularizer)


def simsiam(case: dict[str, torch.Tensor], dtype: torch.dtype) -> SimSiamForPreTraining:
    encoder = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    config = SimSiamPreTrainingConfig(encoder_config=encoder, projection_size=12, predictor_hidden_size=6)
    model = SimSiamForPreTraining(config)
    for head, state in heads(case, "state/").items():
        getattr(model, head).load_state_dict(state)
    return model.to(dtype)


def heads(case: dict[str, torch.Tensor], prefix: str) -> dict[str, dict[str, torch.Tensor]]:
    """The golden's `projector/linear1/weight` as our `projector`: `0.weight`."""
    position = {"linear1": 0, "bn1": 1, "linear2": 3, "bn2": 4, "linear3": 6, "bn3": 7}
    found: dict[str, dict[str, torch.Tensor]] = {"projector": {}, "predictor": {}}
    for key, value in case.items():
        if key.startswith((f"{prefix}projector/", f"{prefix}predictor/")):
            head, layer, name = key.removeprefix(prefix).split("/")
            found[head][f"{position[layer]}.{name}" if head == "projector" else f"{position[layer]}.{name}"] = value
    return found


def heads_forward(model: SimSiamForPreTraining, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    projections = model._project(inputs)
    return projections, model._apply_head(model.predictor, projections)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simsiam_heads_loss_gradients_and_buffers(golden_dir, dtype):
    case = load_file(golden_dir / "simsiam.safetensors")
    suffix, close = (
        ("_f64", {"rtol": 1e-9, "atol": 1e-12}) if dtype == torch.float64 else ("", {"rtol": 1e-4, "atol": 1e-6})
    )
    model = simsiam(case, dtype).train()
    inputs = torch.stack([case["x1"], case["x2"]]).to(dtype).requires_grad_(True)
    projections, predictions = heads_forward(model, inputs)
    energies = negative_cosine(predictions, projections)
    loss = energies.mean()
    loss.backward()
    for name, value in (("z", projections), ("p", predictions)):
        for view in (0, 1):
            torch.testing.assert_close(value[view], case[f"{name}{view + 1}{suffix}"], **close)
    torch.testing.assert_close(loss.double(), case[f"loss{suffix}"].double(), **close)
    cosine = torch.nn.functional.cosine_similarity(predictions[0], projections[1], dim=1)
    torch.testing.assert_close(cosine, case[f"cos_p1_z2{suffix}"], **close)
    for view in (0, 1):
        torch.testing.assert_close(inputs.grad[view], case[f"grad/x{view + 1}{suffix}"], **close)
    # The golden also says what comes out without the stop-gradient.
    assert not torch.allclose(inputs.grad[0], case["grad_without_stopgrad/x1"].to(dtype), rtol=1e-2, atol=1e-4)
    if dtype == torch.float64:
        return
    for head, gradients in heads(case, "grad/").items():
        parameters = dict(getattr(model, head).named_parameters())
        assert {name for name, parameter in parameters.items() if parameter.grad is not None} == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(parameters[name].grad, gradient, **close)
    for head, buffers in heads(case, "after/").items():
        state = getattr(model, head).state_dict()
        assert buffers
        for name, value in buffers.items():
            torch.testing.assert_close(state[name], value, **close)
    projections, predictions = heads_forward(simsiam(case, dtype).eval(), inputs)
    torch.testing.assert_close(projections[0], case["eval/z1"], **close)
    torch.testing.assert_close(predictions[0], case["eval/p1"], **close)
