import numpy as np
import pytest
import torch

from hf_jepa.planning import CEMPlanner, MPCPolicy


class Line:
    """A vector environment whose frames show the point that [`PointModel`] imagines, four numbers by four."""

    def __init__(self, model, num):
        self.model, self.now = model, torch.zeros(num, 1, 1, model.width)
        self.actions = []

    def frames(self):
        return self.now.view(-1, 1, 4, 4).numpy()

    def step(self, actions):
        self.actions.append(actions)
        block = np.concatenate(self.actions[-self.model.config.frameskip :], axis=1)
        if len(self.actions) % self.model.config.frameskip == 0:
            with torch.no_grad():
                self.now = self.model.rollout(self.now, self.model.normalize_actions(torch.tensor(block))[:, None])


def planner(**changes):
    return CEMPlanner(
        **{"horizon": 4, "num_samples": 64, "num_iterations": 6, "num_elites": 6, "std_floor": 0.02, "over": "path"}
        | changes
    )


def goals(model, num):
    actions = torch.rand(num, 5, model.config.action_dim, generator=torch.Generator().manual_seed(0)) / 2 + 0.2
    with torch.no_grad():
        return model.rollout(torch.zeros(num, 1, 1, model.width), actions)[:, -1].view(num, 1, 4, 4).numpy()


def drive(policy, model, num, steps, targets, numbers=None):
    environment = Line(model, num)
    policy.reset(targets, numbers)
    for _ in range(steps):
        environment.step(policy(environment.frames()))
    return environment


@pytest.mark.parametrize("settings", [{}, {"execute": 3}, {"context": 2, "execute": 2}, {"warm_start": False}])
@pytest.mark.parametrize("skip", [1, 2])
def test_the_loop_closes_on_images_of_goals(point, settings, skip):
    model = point(action_dim=2 * skip, frameskip=skip)
    targets = goals(model, 4)
    policy = MPCPolicy(model, planner(), torch.as_tensor, **settings)
    environment = drive(policy, model, 4, 12 * skip, targets)
    start, end = (np.abs(targets - frames).mean((1, 2, 3)) for frames in (0 * targets, environment.frames()))
    assert (end < 0.3 * start).all()


def test_plans_are_made_every_execute_steps_from_what_the_last_one_left(point, monkeypatch):
    model = point(action_dim=4, frameskip=2)
    calls = []
    plain = CEMPlanner.plan

    def spy(self, model, latents, goal, *args, **kwargs):
        actions, trace = plain(self, model, latents, goal, *args, **kwargs)
        calls.append((latents.shape, kwargs, actions))
        return actions, trace

    monkeypatch.setattr(CEMPlanner, "plan", spy)
    policy = MPCPolicy(model, planner(keep_elites=3), torch.as_tensor, execute=2, context=3)
    environment = drive(policy, model, 2, 12, goals(model, 2))
    assert [shape[1] for shape, _, _ in calls] == [1, 3, 3]
    executed = torch.tensor(np.stack(environment.actions, 1)).view(2, 6, 4)
    for number, (_, given, _) in enumerate(calls[1:], start=1):
        torch.testing.assert_close(given["past_actions"], executed[:, 2 * number - 2 : 2 * number])
        assert torch.equal(given["start"], calls[number - 1][2][:, 2:])
        assert given["kept"].shape == (2, 3, 4, 4)
    assert "start" not in calls[0][1]
    assert "kept" not in calls[0][1]


@pytest.mark.parametrize("context", [1, 2])
def test_an_episode_does_not_depend_on_the_others(point, context):
    model = point()
    targets = goals(model, 5)
    policy = MPCPolicy(model, planner(keep_elites=2, correlation=0.5), torch.as_tensor, execute=2, context=context)
    together = np.stack(drive(policy, model, 5, 8, targets).actions, 1)
    pair = np.stack(drive(policy, model, 2, 8, targets[[3, 1]], [3, 1]).actions, 1)
    assert np.array_equal(pair, together[[3, 1]])


def test_another_seed_draws_other_plans(point):
    model = point()
    first, second = (
        drive(MPCPolicy(model, planner(), torch.as_tensor, seed=seed), model, 2, 2, goals(model, 2)) for seed in (0, 1)
    )
    assert not np.array_equal(first.actions[0], second.actions[0])


def test_one_environment_starts_anew_while_others_go_on(point):
    model = point()
    targets = goals(model, 3)
    policy = MPCPolicy(model, planner(), torch.as_tensor, execute=3)
    undisturbed = np.stack(drive(policy, model, 3, 6, targets).actions, 1)
    environment = Line(model, 3)
    policy.reset(targets)
    for step in range(6):
        if step == 4:
            policy.reset(targets[[1]], [7], where=[1])
        environment.step(policy(environment.frames()))
    mixed = np.stack(environment.actions, 1)
    assert np.array_equal(mixed[[0, 2]], undisturbed[[0, 2]])
    assert not np.array_equal(mixed[1, 4:], undisturbed[1, 4:])


def test_lists_of_frames_are_frames(point):
    model = point()
    targets = goals(model, 2)
    frames = Line(model, 2).frames()
    policy = MPCPolicy(model, planner(), torch.as_tensor)
    policy.reset(targets)
    expected = policy(frames)
    policy.reset(list(targets))
    assert np.array_equal(policy(list(frames)), expected)


def test_a_latent_and_a_callable_are_goals_too(point):
    model = point()
    targets = goals(model, 2)
    latents = model.encode_goal(torch.tensor(targets))

    def shared(path):
        return (path[:, :, 0] - latents[0]).square().sum(-1).mean(1)

    runs = [
        drive(MPCPolicy(model, planner(), torch.as_tensor), model, 1, 4, aim, [0]).actions
        for aim in (targets[:1], latents[:1], shared, np.stack([0 * targets[:1], targets[:1]], axis=1))
    ]
    assert np.array_equal(runs[3], runs[0])
    np.testing.assert_allclose(runs[1], runs[0])
    np.testing.assert_allclose(runs[2], runs[0], atol=1e-3)


def test_faults_are_named(point):
    model = point()
    with pytest.raises(ValueError, match="execute"):
        MPCPolicy(model, planner(), torch.as_tensor, execute=5)
    with pytest.raises(ValueError, match="context"):
        MPCPolicy(model, planner(), torch.as_tensor, context=0)
    with pytest.raises(ValueError, match="no action_mean"):
        MPCPolicy(point(action_mean=None, action_std=None), planner(), torch.as_tensor)
    policy = MPCPolicy(model, planner(), torch.as_tensor)
    policy.reset(goals(model, 2))
    with pytest.raises(ValueError, match="3 frames for 2 goals"):
        policy(np.zeros((3, 1, 4, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="numbers"):
        policy.reset(lambda path: path.sum((1, 2, 3)))
    with pytest.raises(ValueError, match="2 goals need as many"):
        policy.reset(goals(model, 2), [1])
