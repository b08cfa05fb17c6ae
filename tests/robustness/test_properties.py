"""What holds for any grid, mask, config, text and actions: of each 15 examples by default, 1,000 in the slow suite."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.data import ArrayTrajectories, ClipSampler, TrajectoryWindows, action_statistics
from hf_jepa.data.text_pairs import encode_pair
from hf_jepa.hub.card import render_card
from hf_jepa.masking import BlockwiseMaskGenerator, MultiBlock3DMaskGenerator, MultiBlockMaskGenerator, pack_examples
from hf_jepa.planning.actions import ActionSpace
from hf_jepa.poses import integrate_pose, pose_differences
from trainers.worlds import nl_regex

EXAMPLES = [15, pytest.param(1000, marks=pytest.mark.slow)]
REFUSALS = (ValueError, StrictDataclassError)
small = st.integers(-2, 12)
share = st.floats(0.0, 1.1, allow_nan=False)


def holds(check: Callable[..., None], examples: int, **strategies: st.SearchStrategy) -> None:
    """The same examples in every run."""
    settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )(given(**strategies)(check))()


def check_indices(mask: torch.Tensor, batch_size: int, tokens: int) -> None:
    assert mask.dtype == torch.int64
    assert mask.shape[0] == batch_size
    assert mask.shape[1] > 0
    assert mask.min() >= 0
    assert mask.max() < tokens


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("mode", ["balanced", "reference"])
def test_image_masks_are_made_or_refused(examples: int, mode: str) -> None:
    def check(rows: int, columns: int, patch: int, scale: float, target: float, keep: int, draw: int) -> None:
        try:
            generator = MultiBlockMaskGenerator(
                (rows * patch, columns * patch),
                patch,
                context_scale=(scale, 1.0),
                target_scale=(target, min(1.0, target * 1.2)),
                num_target_masks=2,
                min_keep=keep,
                mode=mode,
            )
        except ValueError:
            return
        contexts, targets = generator.at(torch.arange(draw, draw + 3), step=draw)
        again = generator.at(torch.arange(draw, draw + 3), step=draw)
        for mask, same in zip([*contexts, *targets], [*again[0], *again[1]], strict=True):
            check_indices(mask, 3, rows * columns)
            assert torch.equal(mask, same)
            assert mask.shape[1] > keep
            assert (mask.diff(dim=1) > 0).all()
        hidden = torch.zeros(3, rows * columns, dtype=torch.bool)
        for mask in targets:
            hidden.scatter_(1, mask, True)
        assert mode == "reference" or not hidden.gather(1, contexts[0]).any()

    sizes = {"rows": st.integers(0, 9), "columns": st.integers(0, 9), "patch": st.integers(0, 4)}
    holds(check, examples, **sizes, scale=share, target=share, keep=small, draw=st.integers(0, 2**31))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_block_wise_masks_hide_exactly_as_many_as_asked(examples: int) -> None:
    def check(rows: int, columns: int, masked: int, block: int, draw: int) -> None:
        try:
            generator = BlockwiseMaskGenerator(
                (rows * 2, columns * 2), 2, num_masked=masked, min_block=block, mode="balanced"
            )
        except ValueError:
            return
        (mask,) = generator.at(torch.tensor([draw, draw + 1]), step=0)
        check_indices(mask, 2, rows * columns)
        assert mask.shape == (2, masked)
        assert all(len(row.unique()) == masked for row in mask)

    sizes = {"rows": st.integers(0, 9), "columns": st.integers(0, 9)}
    holds(check, examples, **sizes, masked=st.integers(-1, 40), block=small, draw=st.integers(0, 2**31))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_clip_masks_part_every_token_once(examples: int) -> None:
    def check(frames: int, side: int, blocks: int, scale: float, draw: int) -> None:
        try:
            generator = MultiBlock3DMaskGenerator(
                side * 2, frames * 2, 2, 2, spatial_scale=(scale, scale), num_blocks=blocks, mode="balanced"
            )
        except ValueError:
            return
        context, target = generator.at(torch.tensor([draw, draw + 1]), step=0)
        for mask in (context, target):
            check_indices(mask, 2, frames * side * side)
        for seen, hidden in zip(context, target, strict=True):
            assert not set(seen.tolist()) & set(hidden.tolist())

    numbers = {"frames": st.integers(0, 4), "side": st.integers(0, 6), "blocks": st.integers(-1, 4)}
    holds(check, examples, **numbers, scale=share, draw=st.integers(0, 2**31))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_configs_are_refused_or_build_and_round_trip(examples: int) -> None:
    def check(encoder: dict[str, int], predictor: dict[str, Any]) -> None:
        try:
            config = IJepaPreTrainingConfig(encoder_config=IJepaConfig(**encoder), **predictor)
        except REFUSALS:
            return
        assert IJepaPreTrainingConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
        with torch.device("meta"):
            IJepaForPreTraining(config)

    size = st.sampled_from([1, 2, 4, 8, 16]) | st.integers(-4, 24)
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size", "num_channels")
    encoder = st.fixed_dictionaries(dict.fromkeys(names, size) | {"num_hidden_layers": st.integers(-1, 2)})
    predictor = st.fixed_dictionaries(
        {"predictor_hidden_size": size, "predictor_num_hidden_layers": st.integers(-1, 2)},
        optional={
            "predictor_num_attention_heads": size,
            "predictor_mlp_ratio": st.floats(-1, 8),
            "loss_type": st.sampled_from(["l1", "l2", "l3"]),
        },
    )
    holds(check, examples, encoder=encoder, predictor=predictor)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_texts_become_tokens_of_their_own_or_are_refused(examples: int) -> None:
    tokenizer = nl_regex.build_tokenizer()

    def check(text: str, code: str) -> None:
        try:
            encoded = encode_pair({"text": text, "code": code}, tokenizer)
        except ValueError:
            return
        assert len(encoded["input_ids"]) == len(encoded["labels"])
        assert any(label != -100 for label in encoded["labels"])
        packed = pack_examples([encoded, encoded], num_predictor_tokens=0, row_length=512)
        assert (packed["input_ids"] >= 0).all()

    text = st.text(max_size=30) | st.text("ab01.*<|>{}\n\u202e\U0001f600", max_size=30)
    holds(check, examples, text=text, code=text)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_text_is_text_on_a_card(examples: int) -> None:
    def check(name: str, limit: str) -> None:
        results = {"model": {"name": name, "family": "ijepa"}, "licence": "mit", "limits": [limit]}
        try:
            card = render_card(results)
        except ValueError:
            return
        # The front matter stays one mapping, whatever the name holds.
        assert card.startswith("---\n")
        assert card.count("\n---\n") >= 1

    text = st.text(max_size=40) | st.sampled_from(["{{ 7 * 7 }}", "{% raw %}", "a\n---\nb: c", "__class__", "'\"`"])
    holds(check, examples, name=text, limit=text)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_windows_hold_rows_of_one_episode_and_every_start_once(examples: int) -> None:
    def check(lengths: list[int], steps: int, skip: int, width: int) -> None:
        frames = [
            np.stack([np.full((2, 2, 1), 16 * n + row, np.uint8) for row in range(k)]) for n, k in enumerate(lengths)
        ]
        actions = [np.arange(k * width, dtype=np.float32).reshape(k, width) for k in lengths]
        try:
            source = ArrayTrajectories(actions, frames)
            windows = TrajectoryWindows(source, steps, skip, mean=[0.0] * width, std=[1.0] * width)
        except ValueError:
            assert not lengths or steps < 1 or skip < 1 or max(lengths) < steps * skip
            return
        seen = [windows[index]["pixel_values"][:, 0, 0, 0].tolist() for index in range(len(windows))]
        expected = [
            [16 * n + row + skip * step for step in range(steps)]
            for n, k in enumerate(lengths)
            for row in range(k - steps * skip + 1)
        ]
        assert seen == expected

    lengths = st.lists(st.integers(1, 9), max_size=4)
    holds(check, examples, lengths=lengths, steps=st.integers(0, 4), skip=st.integers(0, 3), width=st.integers(1, 3))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_statistics_of_actions_are_finite_or_refused(examples: int) -> None:
    def check(rows: list[list[float]]) -> None:
        frames = [np.zeros((len(rows), 2, 2, 1), np.uint8)]
        try:
            found = action_statistics(ArrayTrajectories([np.array(rows, dtype=np.float32).reshape(-1, 2)], frames))
        except ValueError:
            return
        assert np.isfinite([found.mean, found.std, found.low, found.high]).all()
        assert min(found.std) > 0

    number = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, 3e38])
    holds(check, examples, rows=st.lists(st.lists(number, min_size=2, max_size=2), max_size=6))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_actions_lead_from_each_pose_to_the_next(examples: int) -> None:
    def check(values: list[list[float]]) -> None:
        poses = torch.tensor(values, dtype=torch.float64)
        reached = integrate_pose(poses[:-1], pose_differences(poses))
        assert torch.isfinite(reached).all()
        torch.testing.assert_close(reached[:, :3], poses[1:, :3], atol=1e-6, rtol=1e-9)
        torch.testing.assert_close(reached[:, 6], poses[1:, 6], atol=1e-9, rtol=0)

    number = st.floats(-50, 50)
    pose = st.tuples(*[number] * 6, st.floats(0, 1)).map(list)
    holds(check, examples, values=st.lists(pose, min_size=2, max_size=4))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_plans_never_leave_the_bounds_of_the_environment(examples: int) -> None:
    class Model:
        """A world model's statistics alone."""

        def __init__(self, mean: float, std: float, bounds: list[float], skip: int) -> None:
            known = {"raw_action_dim": 1, "frameskip": skip, "action_dim": skip}
            self.config = type("Config", (), known | {"action_low": [bounds[0]], "action_high": [bounds[1]]})
            self.mean, self.std = mean, std

        def require_statistics(self) -> None: ...

        def normalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
            return (actions - self.mean) / self.std

        def denormalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
            return actions * self.std + self.mean

    def check(mean: float, std: float, bounds: list[float], skip: int, asked: list[float], limit: float) -> None:
        low, high = sorted(bounds)
        space = ActionSpace.of(Model(mean, std, [low, high], skip), limit, torch.device("cpu"))
        plan = space.to_environment(space.clip(torch.tensor(asked[:1]).repeat(skip)))
        assert (plan >= torch.tensor(low)).all()
        assert (plan <= torch.tensor(high)).all()

    number = st.floats(-100, 100, width=32)
    holds(
        check,
        examples,
        mean=number,
        std=st.floats(0.125, 100, width=32),
        bounds=st.lists(number, min_size=2, max_size=2),
        skip=st.integers(1, 3),
        asked=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=1),
        limit=st.floats(0, 200, width=32),
    )


@pytest.mark.parametrize("examples", EXAMPLES)
def test_clips_lie_within_their_video(examples: int) -> None:
    def check(length: int, fps: float, options: dict[str, Any], seed: int) -> None:
        try:
            sampler = ClipSampler(**options)
        except ValueError:
            return
        found = sampler.indices(length, fps, np.random.default_rng(seed))
        assert found.shape == (sampler.num_clips, sampler.num_frames)
        assert found.min() >= 0
        assert found.max() < length

    options = st.fixed_dictionaries(
        {"num_frames": small, "num_clips": st.integers(0, 4), "allow_overlap": st.booleans()},
        optional={"frame_step": small, "fps": small},
    )
    holds(
        check,
        examples,
        length=st.integers(1, 60),
        fps=st.floats(0, 240),
        options=options,
        seed=st.integers(0, 9),
    )
