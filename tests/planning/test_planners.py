import numpy as np
import pytest
import torch

from hf_jepa.planning import CEMPlanner, GradientPlanner, MPPIPlanner

PLANNERS = {
    "cem": lambda **changes: CEMPlanner(
        **{"horizon": 4, "num_samples": 48, "num_iterations": 4, "num_elites": 6, **changes}
    ),
    "icem": lambda **changes: CEMPlanner(
        **{
            "horizon": 4,
            "num_samples": 48,
            "num_iterations": 4,
            "num_elites": 6,
            "correlation": 0.9,
            "keep_elites": 2,
            "result": "best",
            "std_floor": 0.05,
            **changes,
        }
    ),
    "mppi": lambda **changes: MPPIPlanner(
        **{"horizon": 4, "num_samples": 48, "num_iterations": 4, "num_elites": 6, **changes}
    ),
    "gradient": lambda **changes: GradientPlanner(**{"horizon": 4, "num_samples": 4, "num_iterations": 8, **changes}),
}
every_planner = pytest.mark.parametrize("name", PLANNERS)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def scene(model, batch):
    seeded = torch.Generator().manual_seed(5)
    latents = torch.randn(batch, 1, 1, model.width, generator=seeded)
    actions = 0.8 * torch.rand(batch, 4, 2, generator=seeded) - 0.4
    return latents, model.rollout(latents, model.normalize_actions(actions))[:, -1].detach()


def distance(model, latents, goal, plan):
    return model.cost(model.rollout(latents, model.normalize_actions(plan)), goal, norm="l2").detach()


@every_planner
def test_plans_lead_to_the_goal(point, name):
    model = point()
    latents, goal = scene(model, 5)
    planner = PLANNERS[name](num_iterations=40 if name == "gradient" else 12)
    plan = planner.plan(model, latents, goal, generators(*range(5)))
    still = distance(model, latents, goal, torch.zeros(5, 4, 2))
    # Plain averages of elites come close, descents and the best candidate closer.
    assert (distance(model, latents, goal, plan) < 0.2 * still).all()


@every_planner
def test_the_batch_changes_no_bit(point, name):
    model = point()
    latents, goal = scene(model, 7)
    planner = PLANNERS[name]()
    together = planner.plan(model, latents, goal, generators(*range(7)))
    pairs = [planner.plan(model, latents[i : i + 2], goal[i : i + 2], generators(i, i + 1)) for i in range(0, 6, 2)]
    assert torch.equal(together[:6], torch.cat(pairs))
    assert torch.equal(together[6:], planner.plan(model, latents[6:], goal[6:], generators(6)))


def test_one_generator_seeds_the_same_episodes_for_every_batch(point):
    model = point()
    latents, goal = scene(model, 4)
    planner = PLANNERS["cem"]()
    four = planner.plan(model, latents, goal, torch.Generator().manual_seed(3))
    two = planner.plan(model, latents[:2], goal[:2], torch.Generator().manual_seed(3))
    assert torch.equal(four[:2], two)
    assert not torch.equal(four[:1], planner.plan(model, latents[:1], goal[:1], torch.Generator().manual_seed(4)))


@every_planner
@pytest.mark.parametrize("most", [1, 10, 100])
def test_smaller_calls_give_the_same_plan(point, name, most):
    model = point()
    latents, goal = scene(model, 3)
    whole = PLANNERS[name]().plan(model, latents, goal, generators(0, 1, 2))
    parts = PLANNERS[name](max_rollouts=most).plan(model, latents, goal, generators(0, 1, 2))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@every_planner
def test_one_elite_or_sample_stays_finite(point, name):
    model = point()
    latents, goal = scene(model, 2)
    few = (
        {"num_samples": 1}
        if name == "gradient"
        else {"num_elites": 1, "keep_elites": 1}
        if name == "icem"
        else {"num_elites": 1}
    )
    assert torch.isfinite(PLANNERS[name](**few).plan(model, latents, goal)).all()


@every_planner
def test_plans_are_inside_the_bounds_and_in_the_environments_units(point, name):
    # Statistics that a second normalisation, or none, would show: actions lie between 5 and 7.
    settings = {
        "action_mean": [6.0, 6.0],
        "action_std": [0.5, 0.5],
        "action_low": [5.0, 5.0],
        "action_high": [7.0, 7.0],
    }
    model = point(**settings)
    latents = torch.zeros(3, 1, 1, model.width)
    target = torch.full((3, 4, 2), 6.4)
    goal = model.rollout(latents, model.normalize_actions(target))[:, -1].detach()
    planner = PLANNERS[name](num_iterations=30, initial_std=1.5)
    plan, trace = planner.plan(model, latents, goal, generators(0, 1, 2), return_trace=True)
    assert plan.min() >= 5
    assert plan.max() <= 7
    assert max(candidates.abs().max() for candidates in trace.candidates) <= 2
    assert (plan.mean(dim=(1, 2)) - 6.4).abs().max() < 0.15
    far = model.rollout(latents, torch.full((3, 4, 2), 2.0))[:, -1].detach() * 3
    assert planner.plan(model, latents, far, generators(0, 1, 2)).max() <= 7


def test_limit_narrows_the_bounds_per_dimension(point):
    model = point()
    latents, goal = scene(model, 2)
    planner = PLANNERS["cem"](limit=(0.1, 0.0), initial_std=3.0)
    plan, trace = planner.plan(model, latents, goal, return_trace=True)
    assert all((candidates[..., 0].abs() <= 0.1).all() for candidates in trace.candidates)
    assert (plan[..., 1] == 0).all()
    assert (plan[..., 0] != 0).all()


def test_long_actions_are_shortened_in_their_direction(point):
    """In the environment's units and action by action, whatever the statistics and the frameskip."""
    statistics = {"action_mean": [0.1, -0.1], "action_std": [0.5, 2.0], "action_low": None, "action_high": None}
    model = point(action_dim=4, frameskip=2, **statistics)
    latents = torch.zeros(2, 1, 1, model.width)
    goal = torch.full((2, 1, model.width), 9.0)
    settings = {"num_iterations": 1, "initial_std": 1.0}
    for name in PLANNERS:
        traces = [
            PLANNERS[name](**settings, max_norm=most).plan(model, latents, goal, generators(0, 1), return_trace=True)
            for most in (None, 0.75)
        ]
        free, short = (model.denormalize_actions(trace.candidates[0]).unflatten(-1, (2, 2)) for _, trace in traces)
        norm = free.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(short, free * (0.75 / norm).clamp_max(1))
        assert (norm > 0.75).any()
        assert (norm < 0.75).any()
        assert traces[1][0].unflatten(-1, (2, 2)).norm(dim=-1).max() <= 0.75 + 1e-5


def test_still_actions_have_no_direction(point):
    model = point()
    latents, goal = scene(model, 1)
    plan = PLANNERS["cem"](initial_std=0.0, max_norm=0.5).plan(model, latents, goal)
    assert torch.equal(plan, torch.zeros(1, 4, 2))


def test_blocks_of_actions_use_the_statistics_of_one_action(point):
    model = point(
        action_dim=6,
        frameskip=3,
        action_mean=[1.0, -1.0],
        action_std=[0.1, 0.2],
        action_low=[0.5, -2.0],
        action_high=[1.5, 0.0],
    )
    latents = torch.zeros(2, 1, 1, model.width)
    plan = PLANNERS["cem"]().plan(model, latents, latents[:, 0] + 0.1)
    assert plan.shape == (2, 4, 6)
    single = plan.view(2, 12, 2)
    assert single[..., 0].min() >= 0.5
    assert single[..., 1].max() <= 0


def test_correlated_proposals_wander_further(point):
    model = point(action_low=None, action_high=None)
    latents, goal = scene(model, 2)
    planner = PLANNERS["cem"](horizon=30, correlation=0.9, num_samples=400, num_iterations=1)
    _, trace = planner.plan(model, latents, goal, generators(0, 1), return_trace=True)
    noise = trace.candidates[0]
    assert abs(noise.std() - 1) < 0.05
    lag = (noise[:, :, 1:] * noise[:, :, :-1]).mean()
    assert abs(lag - 0.9) < 0.05
    first = (noise[:, :, 0] * noise[:, :, 20]).mean()
    assert abs(first - 0.9**20) < 0.1


def test_gradient_planner_moves_every_step(point):
    model = point()
    latents, goal = scene(model, 3)
    planner = PLANNERS["gradient"](num_samples=1, num_iterations=3, learning_rate=0.02)
    _, trace = planner.plan(model, latents, goal, generators(0, 1, 2), return_trace=True)
    assert len(trace.costs) == 4
    for before, after in zip(trace.costs, trace.costs[1:], strict=False):
        assert (after < before).all()
    # Adam, not plain descent: the first step is as long as the learning rate in every coordinate.
    step = (trace.candidates[1] - trace.candidates[0]).abs()
    torch.testing.assert_close(step, torch.full_like(step, 0.02), atol=1e-3, rtol=0)


def test_kept_elites_are_tried_again_and_returned(point):
    model = point()
    latents, goal = scene(model, 2)
    planner = PLANNERS["icem"]()
    plan, trace = planner.plan(model, latents, goal, generators(0, 1), return_trace=True)
    for number in range(1, 4):
        best = trace.candidates[number - 1].gather(1, trace.elites[number - 1][:, :2, None, None].expand(-1, -1, 4, 2))
        assert torch.equal(trace.candidates[number][:, -2:], best)
    assert all(
        (after.amin(1) <= before.amin(1)).all() for before, after in zip(trace.costs, trace.costs[1:], strict=False)
    )
    again, second = planner.plan(model, latents, goal, generators(8, 9), return_trace=True, kept=trace.best)
    torch.testing.assert_close(second.candidates[0][:, -2:], trace.best)
    assert (distance(model, latents, goal, again) <= distance(model, latents, goal, plan) + 1e-6).all()


def test_start_is_the_first_mean_and_missing_steps_are_the_mean_action(point):
    model = point(action_mean=[0.5, 0.5], action_std=[0.25, 0.25])
    latents, goal = scene(model, 2)
    start = torch.full((2, 2, 2), 0.75)
    _, trace = PLANNERS["cem"](try_mean=True).plan(model, latents, goal, return_trace=True, start=start)
    first = trace.candidates[0][:, 0]
    assert torch.equal(first[:, :2], torch.ones(2, 2, 2))
    assert torch.equal(first[:, 2:], torch.zeros(2, 2, 2))


def test_goals_are_images_clips_latents_or_callables(point):
    model = point()
    planner = PLANNERS["cem"]()
    clip = torch.randn(2, 3, 1, 4, 4)
    image, latents = clip[:, -1], torch.zeros(2, 1, 1, 16)
    goal = image.flatten(1)[:, None]
    plans = [
        planner.plan(model, latents, each, generators(0, 1))
        for each in (
            clip,
            image,
            goal,
            lambda path: (path[:, -1] - goal.repeat_interleave(48, 0)).square().sum((1, 2)),
        )
    ]
    for plan in plans[1:]:
        assert torch.equal(plan, plans[0])


def test_path_cost_hurries(point):
    model = point()
    latents = torch.zeros(1, 1, 1, model.width)
    goal = model.rollout(latents, torch.tensor([[[0.9, 0.9]]]))[:, -1].detach()
    settings = {"num_samples": 400, "num_iterations": 10, "num_elites": 20, "horizon": 4}
    plans = [CEMPlanner(**settings, over=over).plan(model, latents, goal, generators(0)) for over in ("path", "last")]
    assert plans[0][0, 0].mean() > 0.8 > plans[1][0, 0].mean()


def test_an_overflowing_candidate_is_no_elite(point):
    model = point()
    latents, _ = scene(model, 2)

    def cost(path):
        costs = path[:, -1, 0].square().sum(1)
        costs[::3] = float("nan")
        return costs

    for name in ("cem", "icem", "mppi"):
        plan, trace = PLANNERS[name]().plan(model, latents, cost, return_trace=True)
        assert torch.isfinite(plan).all()
        assert not (trace.elites[0] % 3 == 0).any()


@every_planner
def test_a_model_without_statistics_is_refused(point, name):
    model = point(action_mean=None, action_std=None)
    with pytest.raises(ValueError, match="no action_mean and action_std"):
        PLANNERS[name]().plan(model, torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 16))


def test_a_model_in_training_mode_is_refused(point):
    with pytest.raises(ValueError, match="training mode"):
        PLANNERS["cem"]().plan(point().train(), torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 1, 16)}, r"latents` must be \(batch, context, tokens, width\)"),
        ({"latents": torch.full((2, 1, 1, 16), float("nan"))}, "latents"),
        ({"goal": torch.zeros(3, 1, 16)}, "2 episodes need a goal each"),
        ({"goal": torch.zeros(2, 1, 8)}, "encode it with this model"),
        ({"goal": torch.full((2, 1, 16), float("nan"))}, "`goal` holds NaN"),
        ({"start": torch.zeros(2, 5, 2)}, "at most 4 steps"),
        ({"start": torch.zeros(2, 2, 3)}, "width 2"),
        ({"start": torch.full((2, 2, 2), float("nan"))}, "`start` holds NaN"),
        ({"noise": torch.zeros(4, 2, 48, 4, 3)}, "`noise` must be"),
        ({"generator": generators(0)}, "2 episodes need as many generators"),
        ({"past_actions": torch.zeros(2, 1, 2)}, "past_actions"),
    ],
)
def test_arguments_that_do_not_fit_are_named(point, change, message):
    arguments = {"latents": torch.zeros(2, 1, 1, 16), "goal": torch.zeros(2, 1, 16), **change}
    with pytest.raises(ValueError, match=message):
        PLANNERS["cem"]().plan(point(), **arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"latents": np.zeros((2, 1, 1, 16), np.float32)},
        {"goal": np.zeros((2, 3, 4, 4), np.uint8)},
        {"goal": [torch.zeros(1, 16)] * 2},
        {"start": [[[0.0, 0.0]]] * 2},
        {"kept": np.zeros((2, 1, 4, 2))},
    ],
)
def test_arrays_and_lists_are_no_tensors(point, change):
    arguments = {"latents": torch.zeros(2, 1, 1, 16), "goal": torch.zeros(2, 1, 16), **change}
    with pytest.raises(TypeError, match=f"`{next(iter(change))}` must be a tensor, got"):
        PLANNERS["cem"]().plan(point(), **arguments)


def test_actions_and_noise_of_other_dtypes_give_float32_plans(point):
    model = point()
    latents, goal = scene(model, 2)
    noise = torch.randn(4, 2, 48, 4, 2, generator=torch.Generator().manual_seed(0))
    start = torch.full((2, 1, 2), 0.5)
    plan = PLANNERS["cem"]().plan(model, latents, goal, noise=noise, start=start)
    other = PLANNERS["cem"]().plan(model, latents, goal, noise=noise.double(), start=start.double())
    assert other.dtype == torch.float32
    assert torch.equal(plan, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 4.0}, "`horizon` must be a whole number, at least 1, got 4.0"),
        ({"num_elites": 49}, r"`num_elites` must be between 1 and num_samples \(48\), got 49"),
        ({"num_elites": 0}, "num_elites"),
        ({"horizon": 0}, "`horizon` must be a whole number, at least 1"),
        ({"num_samples": 0}, "num_samples"),
        ({"max_rollouts": 0}, "max_rollouts"),
        ({"max_norm": 0.0}, "`max_norm` must be positive, got 0.0"),
        ({"correlation": 1.0}, "correlation"),
        ({"initial_std": -1.0}, "`initial_std` must hold finite numbers, none below 0, got -1.0"),
        ({"initial_std": [1.0, float("nan")]}, "`initial_std` must hold finite numbers"),
        ({"keep_elites": 7}, "keep_elites"),
        ({"result": "worst"}, "result"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PLANNERS["icem"](**settings)


@pytest.mark.parametrize("settings", [{"limit": (0.1, 0.1, 0.1)}, {"limit": -1.0}, {"initial_std": (1.0, 1.0, 1.0)}])
def test_settings_of_another_width_are_refused(point, settings):
    with pytest.raises(ValueError, match=r"must be one number or 2"):
        PLANNERS["cem"](**settings).plan(point(), torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 16))
