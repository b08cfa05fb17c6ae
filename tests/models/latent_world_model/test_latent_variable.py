"""The latent variable: a true minimum over codes, remedies against dead ones, limits of a continuous one."""

import math

import pytest
import torch

from hf_jepa import ConvEncoderConfig, LatentWorldModel, LatentWorldModelConfig
from hf_jepa.models.latent_world_model.latent_variable import InferredVariable, LatentCodes

KINDS = ["discrete", "sparse", "noisy"]


def build(kind="discrete", **changes):
    fields = {
        "encoder_config": ConvEncoderConfig(image_size=4, num_channels=1, hidden_sizes=[8], hidden_size=6),
        "action_dim": 1,
        "latent_variable": kind,
        "latent_variable_size": 3,
        "num_codes": 4,
        "predictor_hidden_size": 32,
        "inverse_hidden_size": 16,
        "sigreg_weight": 0.1,
        "num_slices": 8,
        **changes,
    }
    return LatentWorldModel(LatentWorldModelConfig(**fields))


def batch():
    return torch.randn(5, 3, 1, 4, 4), torch.randn(5, 2, 1)


@torch.no_grad()
def test_energy_is_the_minimum_over_codes():
    model = build().eval()
    frames, actions = batch()
    given = torch.stack([model.energy(frames, actions, z=torch.full((5, 2), code)) for code in range(4)])
    assert torch.equal(model.energy(frames, actions), given.amin(dim=0))
    assert torch.equal(model.infer_latent_variable(model.encode(frames), actions), given.argmin(dim=0))
    torch.testing.assert_close(model(frames, actions).loss_components["prediction"], given.amin(dim=0).mean())


def test_only_the_best_code_is_trained():
    model = build(num_codes=8, latent_variable_weight=0.0).train()
    frames, actions = batch()
    output = model(frames[:2], actions[:2])
    output.loss.backward()
    trained = model.latent_variable.codes.grad.abs().sum(dim=1) > 0
    best = model.infer_latent_variable(model.encode(frames[:2]), actions[:2])
    assert set(trained.nonzero().flatten().tolist()) == set(best.flatten().tolist())
    assert output.predictions[0].shape == (2, 2, 1, 6)


def test_assignment_hardens():
    codes = LatentCodes(2, 3, annealing_steps=10)
    errors = torch.tensor([[1.0], [3.0]])
    soft = [codes.assign(errors, step)[0][0].item() for step in (0, 5, 9)]
    assert 0.5 < soft[0] < soft[1] < soft[2] < 1
    # exp(-error / mean error / temperature), the mean being 2.
    assert soft[0] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6)
    assert torch.equal(codes.assign(errors, 10)[0], torch.tensor([[1.0], [0.0]]))


def test_unequal_use_is_penalised():
    codes = LatentCodes(2, 3, annealing_steps=0)
    equal = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    assert codes.assign(equal, 0)[1] == pytest.approx(0.0, abs=1e-6)
    one = torch.tensor([[0.0, 0.0], [2.0, 2.0]], requires_grad=True)
    share = 1 / (1 + math.exp(-2))
    divergence = math.log(2) + share * math.log(share) + (1 - share) * math.log(1 - share)
    penalty = codes.assign(one, 0)[1]
    assert penalty.item() == pytest.approx(divergence, rel=1e-5)
    penalty.backward()
    # Going down it makes the code that loses better.
    assert (one.grad[1] > 0).all()


def test_dead_codes_move_beside_the_busiest():
    codes = LatentCodes(3, 3, annealing_steps=0).train()
    errors = torch.tensor([[5.0], [1.0], [5.0]])
    before = codes.codes.detach().clone()
    for _ in range(300):
        codes.assign(errors, codes.start_step())
        if not torch.equal(codes.codes, before):
            break
    moved = codes.codes.detach()
    assert torch.equal(moved[1], before[1])
    assert 0 < (moved[0] - moved[1]).norm() < 1
    assert 0 < (moved[2] - moved[1]).norm() < 1
    assert (codes.usage[[0, 2]] > 0.3).all()
    codes.eval()
    usage = codes.usage.clone()
    codes.assign(errors, codes.start_step())
    assert torch.equal(codes.usage, usage)


def test_noise_is_the_steps_and_only_in_training():
    variable = InferredVariable(6, 16, 3, noisy=True)
    twin = InferredVariable(6, 16, 3, noisy=True)
    twin.load_state_dict(variable.state_dict())
    latents, after = torch.randn(2, 4, 2, 1, 6)
    first, second = variable.draw(latents, after)[0], variable.draw(latents, after)[0]
    assert not torch.equal(first, second)
    assert torch.equal(twin.draw(latents, after)[0], first)
    variable.eval()
    assert torch.equal(variable.draw(latents, after)[0], variable.infer(latents, after))


@pytest.mark.parametrize("kind", ["sparse", "noisy"])
def test_the_variable_does_not_shape_what_it_is_told_from(kind):
    variable = InferredVariable(6, 16, 3, noisy=kind == "noisy")
    latents = torch.randn(4, 2, 1, 6, requires_grad=True)
    z, penalty = variable.draw(latents, latents + 1)
    (z.sum() + penalty).backward()
    assert latents.grad is None


@pytest.mark.parametrize("kind", ["sparse", "noisy"])
def test_search_is_no_worse_than_the_inverse_model(kind):
    model = build(kind).eval()
    frames, actions = batch()
    latents = model.encode(frames).detach()
    inferred = model.infer_latent_variable(latents, actions)
    found = model._search_variable(latents, actions)
    weight, limit = model.config.latent_variable_weight, model.latent_variable.limit

    def value(z):
        return model.transition_energy(latents, actions, z) + weight * limit(z)

    assert (value(found) <= value(inferred) + 1e-6).all()
    assert value(found).mean() < value(inferred).mean()
    assert torch.equal(model.energy(frames, actions), model.transition_energy(latents, actions, found))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_rollout_takes_the_variable(kind):
    model = build(kind).eval()
    frames, actions = batch()
    latents = model.encode(frames)
    z = model.infer_latent_variable(latents, actions)
    step = model.rollout(latents[:, :1], actions[:, :1], z=z[:, :1])
    expected = model.transition_energy(latents[:, :2], actions[:, :1], z[:, :1])
    torch.testing.assert_close((step - latents[:, 1:2]).square().mean(dim=(2, 3)), expected)
    with pytest.raises(ValueError, match="or codes"):
        model.rollout(latents[:, :1], actions, z=z[:, :1])
    if kind == "discrete":
        with pytest.raises(ValueError, match="one of 4 codes"):
            model.rollout(latents[:, :1], actions)
    else:
        zero = model.rollout(latents[:, :1], actions, z=torch.zeros(5, 2, 3))
        assert torch.equal(model.rollout(latents[:, :1], actions), zero)


def test_transformers_tell_a_continuous_variable_of_every_frame():
    changes = {"predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2, "predictor_head_dim": 4}
    model = build("noisy", predictor_type="transformer", context_frames=3, predictor_intermediate_size=8, **changes)
    frames, actions = batch()
    model(frames, actions).loss.backward()
    latents = model.eval().encode(frames).detach()
    imagined = model.rollout(latents, torch.randn(10, 2, 1), past_actions=actions)
    assert imagined.shape == (10, 2, 1, 6)
    assert model.energy(frames, actions).shape == (5, 2)


def test_two_codes_learn_both_ways_of_a_fork():
    """One frame, two that may follow it: without a code the mean is predicted, with two each gets its own."""
    torch.manual_seed(0)
    start, ways = torch.randn(1, 4, 4), torch.randn(2, 1, 4, 4)
    side = torch.arange(64) % 2
    frames, actions = torch.stack([start.expand(64, 1, 4, 4), ways[side]], dim=1), torch.zeros(64, 1, 1)

    def trained(kind):
        torch.manual_seed(1)
        changes = {"freeze_encoder": True, "sigreg_weight": 0.0, "num_codes": 2, "code_annealing_steps": 20}
        model = build(kind, **changes)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            model.train()(frames, actions).loss.backward()
            optimizer.step()
        return model.eval()

    without, model = trained("none"), trained("discrete")
    with torch.no_grad():
        left, right = model.encode(ways[:, None])[:, 0, 0]
        now = model.encode(start[None, None])
        apart = (left - right).norm()
        mean = without.rollout(without.encode(start[None, None]), actions[:1])[0, 0, 0]
        targets = without.encode(ways[:, None])[:, 0, 0]
        assert (mean - targets.mean(dim=0)).norm() < 0.05 * (targets[0] - targets[1]).norm()
        both = model.rollout(now, actions[:2], z=torch.tensor([[0], [1]]))[:, 0, 0]
        distances = torch.cdist(both, torch.stack([left, right]))
        assert min(distances.diagonal().max(), distances.fliplr().diagonal().max()) < 0.05 * apart
