"""
gym-pusht (`pip install gym-pusht`) as a world with goals: an agent pushes a T to where a picture shows it.

    hf-jepa record trainers.worlds.pusht:PushT-v0 pusht/ --episodes 2000 --max-steps 100
    hf-jepa train lewm_pusht --dataset pusht/
    hf-jepa evaluate outputs/lewm_pusht/release --task planning --dataset pusht/ \
        --env trainers.worlds.pusht:PushT-v0 --protocol usual

Frames are 96 x 96 without the marker that gym-pusht draws where the last action aims: it would show what was done.
Actions are steps of the agent, 1 for `STEP` pixels, so that random ones wander. The T counts, the agent does not.
"""

from typing import Any

import gymnasium
import numpy as np
from gym_pusht.envs.pusht import PushTEnv

STEP = 50.0
# What counts as there: 20 of 512 pixels, and 20 degrees. States are in these units, the T first.
NEAR = np.array([20.0, 20.0, np.pi / 9, 20.0, 20.0])
SIDE = 512


class PushT(PushTEnv):
    """gymnasium's API; `reset(options={"state": ..., "goal": ...})` starts at one and measures from the other."""

    success_distance = 1.0

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(obs_type="state", render_mode=render_mode)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32)
        self.goal: np.ndarray | None = None

    def get_obs(self) -> np.ndarray:
        angle = self.block.angle % (2 * np.pi)
        return (np.array([*self.block.position, angle, *self.agent.position]) / NEAR).astype(np.float32)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        self.goal = options.get("goal")
        if "state" in options:
            self._place(np.asarray(options["state"], dtype=np.float64) * NEAR)
        else:
            # Beside the T, or random steps would hardly ever meet it.
            direction = self.np_random.uniform(0, 2 * np.pi)
            away = 110 * np.array([np.cos(direction), np.sin(direction)])
            block = np.array([*self.block.position, self.block.angle])
            self._place(np.concatenate([block, np.clip(block[:2] + away, 30, SIDE - 30)]))
        return self.get_obs(), self._about()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        aim = np.array(self.agent.position) + STEP * np.clip(action, -1, 1)
        observation, reward, _, _, _ = super().step(np.clip(aim, 0, SIDE))
        # An episode goes on after the task of gym-pusht itself is solved: its place is nobody's goal here.
        return observation, float(reward), False, False, self._about()

    def render(self) -> np.ndarray:
        return self._render(visualize=False)

    def _about(self) -> dict[str, Any]:
        return {} if self.goal is None else {"distance": distance(self.get_obs(), np.asarray(self.goal))}

    def _place(self, state: np.ndarray) -> None:
        self.block.angle = float(state[2])
        self.block.position = state[:2].tolist()
        self.agent.position = state[3:].tolist()
        self.agent.velocity = self.block.velocity = (0.0, 0.0)
        self.block.angular_velocity = 0.0
        self.space.reindex_shapes_for_body(self.block)
        self.space.reindex_shapes_for_body(self.agent)


def distance(state: np.ndarray, goal: np.ndarray) -> float:
    """Of the T: below 1 within 20 pixels and within 20 degrees, the short way round."""
    shift = np.linalg.norm(state[:2] - goal[:2])
    turn = ((state[2] - goal[2]) * NEAR[2] + np.pi) % (2 * np.pi) - np.pi
    return float(max(shift, abs(turn) / NEAR[2]))


gymnasium.register("PushT-v0", entry_point=PushT)
