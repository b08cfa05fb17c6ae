import numpy as np
import pytest
import torch

from hf_jepa.data import ArrayTrajectories
from hf_jepa.evaluation.latent_space import rank_correlation, state_probe
from hf_jepa.evaluation.planning import (
    Episodes,
    clean_tasks,
    planning_report,
    run_episodes,
    usual_tasks,
    wilson_interval,
)
from hf_jepa.evaluation.planning_baselines import (
    GoalConditionedPolicy,
    RandomPolicy,
    train_goal_conditioned_cloning,
    train_goal_head,
)

SIZE = 8


def draw(states):
    """A place on a line as the brightness of a column."""
    frames = np.zeros((len(states), SIZE, SIZE, 1), dtype=np.uint8)
    frames[:, :, :, 0] = np.clip(120 + 60 * states[:, :1, None], 0, 255)
    return frames


def walks(count=12, length=20, seed=0):
    generator = np.random.default_rng(seed)
    actions = generator.uniform(-0.1, 0.1, (count, length, 1)).astype(np.float32)
    start = generator.uniform(-1, 1, (count, 1, 1))
    states = np.concatenate([start, start + actions.cumsum(1)], 1).astype(np.float32)
    return ArrayTrajectories(actions, states=states, render=draw)


class Line:
    """A point on a line that moves by its action, no further than 0.1."""

    success_distance = 0.05

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def reset(self, *, seed=None, options=None):
        self.now, self.goals = options["states"].copy(), options["goals"]
        return draw(self.now), self.infos()

    def infos(self):
        return {"distance": np.abs(self.now - self.goals)[:, 0], "state": self.now.copy()}

    def step(self, actions):
        self.now = self.now + np.clip(actions, -0.1, 0.1)
        nothing = np.zeros(self.num_envs, dtype=bool)
        return draw(self.now), np.zeros(self.num_envs), nothing, nothing, self.infos()


class Walker:
    """Steps forward by the same amount, for ever."""

    def __init__(self, step):
        self.stride = step

    def reset(self, goals, numbers=None):
        self.count = len(goals)

    def __call__(self, frames):
        return np.full((self.count, 1), self.stride, dtype=np.float32)


def distance(start, goal):
    return np.abs(start - goal)[:, 0]


def test_clean_tasks_come_from_two_held_out_episodes_and_are_unsolved():
    source = walks()
    tasks = clean_tasks(source, [3, 5, 7], 30, 10, distance, 0.4, lambda s, g: s[:, 0] < g[:, 0], seed=1)
    assert len(tasks) == 30
    assert tasks.protocol == "clean"
    assert (distance(tasks.starts, tasks.goals) >= 0.4).all()
    assert (tasks.starts < tasks.goals).all()
    owners = []
    for start, goal, frame in zip(tasks.starts, tasks.goals, tasks.goal_frames, strict=True):
        assert np.array_equal(frame, draw(goal[None])[0])
        places = [[e for e in range(12) if (source.states(e) == place).any()] for place in (start, goal)]
        owners.append((places[0][0], places[1][0]))
    assert {each for pair in owners for each in pair} <= {3, 5, 7}
    assert all(first != second for first, second in owners)
    again = clean_tasks(source, [3, 5, 7], 30, 10, distance, 0.4, lambda s, g: s[:, 0] < g[:, 0], seed=1)
    assert np.array_equal(again.starts, tasks.starts)
    with pytest.raises(ValueError, match="Only 0 of 2 tasks"):
        clean_tasks(source, [3, 5], 2, 10, distance, 50.0)


def test_usual_tasks_are_a_few_rows_apart_in_one_episode():
    source = walks()
    tasks = usual_tasks(source, range(12), 40, offset=5, seed=2)
    assert tasks.max_steps == 10
    assert tasks.protocol == "usual"
    for start, goal in zip(tasks.starts, tasks.goals, strict=True):
        rows = [
            (e, int(np.flatnonzero(source.states(e) == start)[0]))
            for e in range(12)
            if (source.states(e) == start).any()
        ]
        episode, row = rows[0]
        assert source.states(episode)[row + 5] == goal
    with pytest.raises(ValueError, match="No episode has more than 25 rows"):
        usual_tasks(source, range(12), 4)


def test_success_at_the_end_is_not_success_on_the_way():
    source = walks()
    tasks = clean_tasks(source, range(12), 16, 60, distance, 0.3, lambda s, g: s[:, 0] < g[:, 0])
    episodes = run_episodes(Walker(0.04), Line(16), tasks, record=2)
    report = planning_report(episodes, 0.05)
    # The walker passes all goals and stays at none.
    assert report["success_ever"] == 1.0
    assert report["success_at_end"] < 1.0
    assert report["initially_solved"] == 0
    gaps = (tasks.goals - tasks.starts)[:, 0]
    first = np.ceil((gaps - 0.05) / 0.04 - 1e-4)
    assert report["steps_to_success"] == pytest.approx(first.mean(), abs=0.1)
    assert episodes.frames.shape == (2, 61, SIZE, SIZE, 1)
    assert episodes.states.shape == (16, 61, 1)
    np.testing.assert_allclose(episodes.distances[:, 0], gaps, atol=1e-6)


def test_a_report_without_success_says_so():
    report = planning_report(Episodes(np.full((4, 3), 0.5), None, np.zeros((0, 3, 1, 1, 1))), 0.1)
    assert report["steps_to_success"] is None
    assert report["success_at_end_interval"][0] == pytest.approx(0, abs=1e-7)
    assert 0.4 < report["success_at_end_interval"][1] < 0.6


def test_solved_starts_are_refused_under_the_clean_protocol_only():
    usual = usual_tasks(walks(), range(12), 30, offset=1)
    episodes = run_episodes(Walker(0.0), Line(30), usual)
    assert planning_report(episodes, 0.05)["initially_solved"] > 0
    solved = clean_tasks(walks(), range(12), 20, 5, distance, 0.0, lambda s, g: distance(s, g) < 0.2)
    with pytest.raises(ValueError, match="of 20 tasks are solved at the start"):
        run_episodes(Walker(0.0), Line(20), solved)
    with pytest.raises(ValueError, match="30 tasks need as many environments"):
        run_episodes(Walker(0.0), Line(3), usual)


def test_wilson_interval():
    # The bounds are the shares from which the observed one is just 1.96 standard errors away.
    for successes, trials in ((82, 100), (1, 7), (300, 300)):
        share = successes / trials
        for bound in wilson_interval(successes, trials):
            assert abs(share - bound) == pytest.approx(1.96 * (bound * (1 - bound) / trials) ** 0.5, abs=1e-7)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


def test_random_actions_stay_inside_and_belong_to_the_episode():
    policy = RandomPolicy([-1.0, 2.0], [1.0, 3.0], seed=4)
    policy.reset(np.zeros((50, 1)))
    actions = np.stack([policy(np.zeros((50, 1))) for _ in range(20)])
    assert (actions >= [-1, 2]).all()
    assert (actions <= [1, 3]).all()
    policy.reset(np.zeros((2, 1)), [7, 3])
    assert np.array_equal(policy(np.zeros((2, 1))), actions[0][[7, 3]])


def test_hindsight_imitation_learns_where_to_go():
    # Walks that go on as they began: the goal tells the action.
    generator = np.random.default_rng(0)
    speed = generator.uniform(-0.08, 0.08, (60, 1, 1))
    actions = np.broadcast_to(speed, (60, 12, 1)).astype(np.float32)
    start = generator.uniform(-1, 1, (60, 1, 1))
    states = np.concatenate([start, start + actions.cumsum(1)], 1).astype(np.float32)
    source = ArrayTrajectories(actions, states=states, render=draw)
    statistics = ([0.0], [0.05])
    features = [torch.from_numpy(source.states(e)) for e in range(60)]
    head = train_goal_head(features, source, range(60), *statistics, num_steps=300, batch_size=128)

    def encode(frames):
        return (torch.from_numpy(frames[:, 0, 0]).float() - 120) / 60

    policy = GoalConditionedPolicy(encode, head, *statistics, [-0.06], [0.06])
    tasks = clean_tasks(source, range(60), 40, 60, distance, 0.3)
    report = planning_report(run_episodes(policy, Line(40), tasks), 0.05)
    assert report["success_ever"] > 0.9
    policy.reset(draw(np.array([[1.5], [-1.5]])))
    assert policy(draw(np.zeros((2, 1)))) == pytest.approx(np.array([[0.06], [-0.06]]))

    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE * SIZE, 4))
    before = encoder[1].weight.clone()

    def pixels(frames):
        return (torch.from_numpy(np.moveaxis(frames, -1, 1).copy()).float() - 120) / 60

    head = train_goal_conditioned_cloning(encoder, pixels, source, range(60), *statistics, num_steps=200)
    assert not torch.equal(before, encoder[1].weight)
    policy = GoalConditionedPolicy(lambda frames: encoder(pixels(frames)), head, *statistics, [-0.1], [0.1])
    policy.reset(draw(np.array([[1.0], [-1.0]])))
    action = policy(draw(np.zeros((2, 1))))
    assert action[0] > 0.02
    assert action[1] < -0.02


def test_state_probe_is_scored_on_other_data():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 2, generator=generator)
    mixing = torch.randn(2, 6, generator=generator)
    features = states @ mixing
    known = state_probe(features[:200], states[:200], features[200:], states[200:])
    assert (known > 0.999).all()
    noise = torch.randn(400, 6, generator=generator)
    assert (state_probe(noise[:200], states[:200], noise[200:], states[200:]) < 0.1).all()
    with pytest.raises(ValueError, match="never changes"):
        state_probe(features, states, features[:2], states[:1].expand(2, -1))


def test_rank_correlation():
    values = torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0])
    assert rank_correlation(values, values.exp()) == pytest.approx(1.0)
    assert rank_correlation(values, -values) == pytest.approx(-1.0)
    # scipy.stats.spearmanr([3, 1, 2, 2, 5], [1, 2, 3, 4, 5])
    assert rank_correlation(values, torch.arange(5.0)) == pytest.approx(0.359092, abs=1e-5)
    with pytest.raises(ValueError, match="constant"):
        rank_correlation(values, torch.ones(5))
    with pytest.raises(ValueError, match=r"\(n,\)"):
        rank_correlation(values, values[:3])
