"""What planners, evaluation and pictures see of a world model: encode, roll out, cost and energy, on checked input."""

from collections.abc import Callable
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict

from .objectives.inputs import check_finite, check_tensor
from .parts import CompositeConfig

Norm = Literal["l1", "l2"]
Over = Literal["last", "path"]
# A latent frame `(batch or 1, tokens, width)`, or what a path of latents `(n, horizon, tokens, width)` costs, `(n,)`.
Goal = torch.Tensor | Callable[[torch.Tensor], torch.Tensor]

_STATISTICS = ("action_mean", "action_std", "action_low", "action_high")
# Bounds are compared after a division by `action_std`, in float32.
_ROUNDING = 1e-4


@strict
class WorldModelConfig(CompositeConfig):
    r"""
    What every world model's config says of its actions: without it a checkpoint cannot be planned with.

    One step of the model takes `frameskip` actions of the environment, side by side (step-major), so that `action_dim`
    is `frameskip` times the environment's. Statistics are the environment's: one number per raw action column.

    Args:
        action_dim (`int`): width of what the model takes per step.
        frameskip (`int`, defaults to 1): environment steps per model step.
        action_mean, action_std (`list[float]`, *optional*): of the training data, in the environment's units. The
            model takes `(action - action_mean) / action_std`.
        action_low, action_high (`list[float]`, *optional*): bounds in the environment's units.
        image_mean, image_std (`list[float]`, *optional*): per channel, of pixels in [0, 1]. uint8 frames are
            normalised by the model; float frames are taken as they are.

    Raises:
        `ValueError`: for statistics of another width or that are not finite, a `action_std` that is not positive,
            bounds that are crossed, or an `action_dim` that `frameskip` does not divide.
    """

    action_dim: int = 1
    frameskip: int = 1
    action_mean: list[float | int] | None = None
    action_std: list[float | int] | None = None
    action_low: list[float | int] | None = None
    action_high: list[float | int] | None = None
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None

    @property
    def raw_action_dim(self) -> int:
        """Width of one action of the environment."""
        return self.action_dim // self.frameskip

    def validate_actions(self) -> None:
        """Refuses statistics that make no sense; runs whenever a config is made."""
        check_statistics("image", self.image_mean, self.image_std, len(self.image_mean or ()))
        if self.frameskip < 1 or self.action_dim < 1 or self.action_dim % self.frameskip:
            raise ValueError(
                f"`action_dim` ({self.action_dim}) must be a positive multiple of `frameskip` ({self.frameskip})."
            )
        for name in _STATISTICS:
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != self.raw_action_dim or not all(abs(value) < float("inf") for value in values):
                raise ValueError(f"`{name}` must hold {self.raw_action_dim} finite numbers, got {values}.")
        if self.action_std is not None and min(self.action_std) <= 0:
            raise ValueError(f"`action_std` must be positive, got {self.action_std}: leave constant columns out.")
        if (self.action_low is None) != (self.action_high is None):
            raise ValueError("`action_low` and `action_high` go together.")
        if self.action_low is not None and any(
            low >= high for low, high in zip(self.action_low, self.action_high, strict=True)
        ):
            raise ValueError(f"`action_low` {self.action_low} must lie below `action_high` {self.action_high}.")


def check_statistics(name: str, mean: list[float] | None, std: list[float] | None, size: int) -> None:
    """
    Raises:
        `ValueError`: for a mean without a deviation, another number of them than `size`, a deviation that is not
            positive.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"`{name}_mean` and `{name}_std` go together.")
    if mean is not None and (len(mean) != size or len(std) != size or min(std) <= 0):
        raise ValueError(f"`{name}_mean` {mean} and `{name}_std` {std} must hold {size} numbers, std > 0.")


class WorldModelMixin:
    """
    The protocol of world models, for a `PreTrainedModel` whose config is a [`WorldModelConfig`].

    Latents are `(batch, time, tokens, width)`, one token where a frame is one vector. Actions in the model's units are
    `(batch, time, action_dim)`; `actions[:, t]` leads from frame `t` to frame `t + 1`.
    """

    config: WorldModelConfig

    @property
    def max_steps(self) -> int | None:
        """Most frames that the model can look at in one rollout, predicted ones included; `None` for no limit."""
        return None

    def encode(self, pixel_values: torch.Tensor, proprio: torch.Tensor | None = None) -> torch.Tensor:
        """
        Latents of frames, each encoded by itself.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, time, channels, height, width)`): normalised.
            proprio (`torch.FloatTensor` of shape `(batch, time, proprio_dim)`, *optional*).

        Returns:
            `torch.FloatTensor` of shape `(batch, time, tokens, width)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `encode`.")

    def rollout(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        states: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        use_cache: bool = True,
        past_actions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Imagines what actions lead to. Differentiable in `latents` and `actions`.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, context, tokens, width)`): of [`encode`], oldest first.
            actions (`torch.FloatTensor` of shape `(batch * candidates, horizon, action_dim)`): in the model's units,
                from the last context frame on; the candidates of one example follow one another.
            states (`torch.FloatTensor` of shape `(batch, known, state_dim)`, *optional*): of the frames from the first
                on, at least those of the context.
            extrinsics (`torch.FloatTensor` of shape `(batch, known, extrinsics_dim)`, *optional*).
            use_cache (`bool`): whether a transformer keeps keys and values instead of reading the past again.
            past_actions (`torch.FloatTensor` of shape `(batch, context - 1, action_dim)`, *optional*): that led from
                each context frame to the next; needed with more than one.

        Returns:
            `torch.FloatTensor` of shape `(batch * candidates, horizon, tokens, width)`: the predicted frames.

        Raises:
            `ValueError`: for input that does not fit (values are looked at on CPU only).
        """
        raise NotImplementedError(f"{type(self).__name__} must define `rollout`.")

    def energy(self, pixel_values: torch.Tensor, actions: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """
        How badly each next frame is predicted from the frames and actions before it.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, time, channels, height, width)`).
            actions (`torch.FloatTensor` of shape `(batch, time - 1, action_dim)`): in the model's units.
            kwargs: states and what else the model conditions on.

        Returns:
            `torch.FloatTensor` of shape `(batch, time - 1)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `energy`.")

    def encode_goal(self, pixel_values: torch.Tensor, proprio: torch.Tensor | None = None) -> torch.Tensor:
        """
        The latent of an image, or of the last frame of a clip, as a goal of [`cost`].

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)` or `(batch, time, channels,
                height, width)`).
            proprio (`torch.FloatTensor` of shape `(batch, proprio_dim)` or `(batch, time, proprio_dim)`, *optional*).

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, width)`.

        Raises:
            `ValueError`: for another number of dimensions.
        """
        if pixel_values.ndim not in (4, 5):
            raise ValueError(f"A goal is an image or a clip per example, got shape {tuple(pixel_values.shape)}.")
        if pixel_values.ndim == 4:
            pixel_values, proprio = pixel_values[:, None], None if proprio is None else proprio[:, None]
        return self.encode(pixel_values[:, -1:], None if proprio is None else proprio[:, -1:])[:, 0]

    def cost(self, latents: torch.Tensor, goal: Goal, norm: Norm = "l1", over: Over = "last") -> torch.Tensor:
        """
        How far imagined frames are from a goal.

        Args:
            latents (`torch.FloatTensor` of shape `(batch * candidates, horizon, tokens, width)`): of [`rollout`].
            goal (`torch.FloatTensor` of shape `(batch, tokens, width)`, or `Callable`): of [`encode_goal`]; or a
                function of `latents` that returns a cost for each, which the other arguments do not touch.
            norm (`str`): `"l1"`: the mean absolute difference over tokens and channels (V-JEPA 2-AC, released code).
                `"l2"`: the squared Euclidean distance, averaged over tokens (LeWM, released code).
            over (`str`): `"last"`: of the last frame. `"path"`: the average over all frames.

        Returns:
            `torch.FloatTensor` of shape `(batch * candidates,)`.

        Raises:
            `ValueError`: for a goal of another size, or one that gives no cost per candidate.
        """
        if latents.ndim != 4:
            raise ValueError(f"`latents` must be (batch, horizon, tokens, width), got shape {tuple(latents.shape)}.")
        if callable(goal):
            costs = goal(latents)
            if costs.shape != latents.shape[:1]:
                raise ValueError(f"`goal` must return {len(latents)} costs, got shape {tuple(costs.shape)}.")
            return costs
        if norm not in ("l1", "l2") or over not in ("last", "path"):
            raise ValueError(f'`norm` is "l1" or "l2", `over` is "last" or "path"; got {norm!r} and {over!r}.')
        if goal.ndim != 3 or goal.shape[1:] != latents.shape[2:] or len(latents) % len(goal):
            raise ValueError(
                f"`goal` has shape {tuple(goal.shape)}; latents of shape {tuple(latents.shape)} need (batch, "
                f"{latents.shape[2]}, {latents.shape[3]}): encode it with this model, from frames of the same size."
            )
        frames = latents[:, -1:] if over == "last" else latents
        difference = frames.unflatten(0, (len(goal), -1)) - goal[:, None, None]
        errors = difference.abs().mean(dim=-1) if norm == "l1" else difference.square().sum(dim=-1)
        return errors.mean(dim=(2, 3)).flatten()

    # ---- Actions, in the environment's units and in the model's ----

    def require_statistics(self) -> None:
        """
        Raises:
            `ValueError`: if the checkpoint does not say what its actions mean.
        """
        absent = [name for name in ("action_mean", "action_std") if getattr(self.config, name) is None]
        if absent:
            raise ValueError(
                f"This {type(self).__name__} has no {' and '.join(absent)}, so its actions cannot be told in the "
                "environment's units: set them in the config, from the data that it was trained on."
            )

    def normalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """
        Args:
            actions (`torch.FloatTensor` of shape `(..., raw_action_dim * n)`): `n` actions of the environment side by
                side, in its units.

        Returns:
            `torch.FloatTensor` of the same shape, in the model's units.
        """
        mean, std = self._action_statistics(actions)
        return (actions - mean) / std

    def denormalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """The way back of [`normalize_actions`]."""
        mean, std = self._action_statistics(actions)
        return actions * std + mean

    def action_bounds(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """
        The lowest and the highest action, each of shape `(action_dim,)`, in the model's units; `None` where the config
        has none. In the dtype of `like` if that is a floating one, else in float32: bounds are no integers.
        """
        if self.config.action_low is None:
            return None
        like = like if like.is_floating_point() else like.float()
        low, high = (
            like.new_tensor(bound).repeat(self.config.frameskip)
            for bound in (self.config.action_low, self.config.action_high)
        )
        if self.config.action_mean is None:
            return low, high
        return self.normalize_actions(low), self.normalize_actions(high)

    def _action_statistics(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.require_statistics()
        check_tensor(actions, "actions")
        if not actions.is_floating_point():
            actions = actions.float()
        raw = self.config.raw_action_dim
        if actions.shape[-1] % raw:
            raise ValueError(f"Actions of width {actions.shape[-1]} are no whole number of actions of width {raw}.")
        count = actions.shape[-1] // raw
        statistics = (self.config.action_mean, self.config.action_std)
        return tuple(actions.new_tensor(values).repeat(count) for values in statistics)

    # ---- Checks ----

    def check_rollout(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        past_actions: torch.Tensor | None = None,
        **conditions: tuple[torch.Tensor | None, int],
    ) -> None:
        """
        Checks the arguments of [`rollout`].

        Args:
            latents, actions, past_actions: as there.
            conditions: argument name -> (tensor of shape `(batch, known, width)` or `None`, its width).

        Raises:
            `ValueError`: for actions of the wrong width or beyond their bounds, lengths that do not go together, a
                horizon beyond the model's positions, NaN or infinite values. Values are looked at on CPU only: on
                other devices that would stall every step.
        """
        if latents.ndim != 4 or not latents.shape[1]:
            raise ValueError(f"`latents` must be (batch, context, tokens, width), got shape {tuple(latents.shape)}.")
        batch, context = latents.shape[:2]
        self.check_actions("actions", actions)
        if len(actions) % batch:
            raise ValueError(
                f"`actions` has {len(actions)} rows for {batch} examples: give every example equally many candidates."
            )
        if context > 1 or past_actions is not None:
            given = None if past_actions is None else tuple(past_actions.shape)
            if given != (batch, context - 1, self.config.action_dim):
                raise ValueError(
                    f"{context} context frames need `past_actions`, the actions between them, of shape "
                    f"{(batch, context - 1, self.config.action_dim)}; got {given}."
                )
            if context > 1:
                self.check_actions("past_actions", past_actions)
        self._check_length(context, actions)
        check_finite(latents, "`latents`", "look at the frames that they were made of")
        for name, (tensor, width) in conditions.items():
            self._check_condition(name, tensor, (batch, context, width))

    def check_window(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        **conditions: tuple[torch.Tensor | None, int],
    ) -> list[torch.Tensor | None]:
        """
        Checks a window of training data: true frames and what led from each to the next. Actions may lie beyond the
        bounds, which are a planner's.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, time, tokens, width)`).
            actions (`torch.FloatTensor` of shape `(batch, time - 1, action_dim)`).
            conditions: argument name -> (tensor of shape `(batch, time or time - 1, width)` or `None`, its width).

        Returns:
            `actions` and the conditions in their order, of all frames but the last.

        Raises:
            `ValueError`: as [`check_rollout`], but for bounds.
        """
        if latents.ndim != 4 or latents.shape[1] < 2:
            raise ValueError(f"A window needs at least two frames, got latents of shape {tuple(latents.shape)}.")
        batch, time = latents.shape[:2]
        if actions is not None:
            check_tensor(actions, "actions")
        if actions is None or tuple(actions.shape) != (batch, time - 1, self.config.action_dim):
            given = None if actions is None else tuple(actions.shape)
            raise ValueError(
                f"Windows of {time} frames need `actions` of shape {(batch, time - 1, self.config.action_dim)}, got "
                f"{given}."
            )
        self.check_actions("actions", actions, bounded=False)
        self._check_length(1, actions)
        for name, (tensor, width) in conditions.items():
            self._check_condition(name, tensor, (batch, time - 1, width))
            if tensor is not None and tensor.shape[1] > time:
                raise ValueError(
                    f"`{name}` tells of {tensor.shape[1]} frames, but the window has {time}: cut it to those frames."
                )
        return [actions, *(None if tensor is None else tensor[:, : time - 1] for tensor, _ in conditions.values())]

    def _check_length(self, context: int, actions: torch.Tensor) -> None:
        steps = context + actions.shape[1] - 1
        if self.max_steps is not None and steps > self.max_steps:
            raise ValueError(
                f"A horizon of {actions.shape[1]} after {context} context frames looks at {steps} frames, but the "
                f"model has positions for {self.max_steps}: shorten the horizon or the context."
            )

    def _check_condition(self, name: str, tensor: torch.Tensor | None, least: tuple[int, int, int]) -> None:
        if tensor is None:
            return
        check_tensor(tensor, name)
        batch, frames, width = least
        if tensor.ndim != 3 or tensor.shape[0] != batch or tensor.shape[1] < frames or tensor.shape[2] != width:
            raise ValueError(
                f"`{name}` must be ({batch}, at least {frames} frames, {width}), got shape {tuple(tensor.shape)}; the "
                "width is the config's."
            )
        check_finite(tensor, f"`{name}`", "repair or leave out the frames that they come from")

    def check_actions(self, name: str, actions: torch.Tensor, bounded: bool = True) -> None:
        """
        Refuses actions that are not `(n, at least one, action_dim)`, and on CPU those that are not finite or, with
        `bounded`, lie beyond the bounds.
        """
        width = self.config.action_dim
        check_tensor(actions, name)
        if actions.ndim != 3 or actions.shape[-1] != width or 0 in actions.shape:
            raise ValueError(
                f"`{name}` must be (batch, at least one step, {width}), got shape {tuple(actions.shape)}"
                + (
                    f" ({self.config.frameskip} actions of the environment per step)."
                    if self.config.frameskip > 1
                    else "."
                )
            )
        check_finite(actions, f"`{name}`", "padding has to be cut off or set to zero")
        bounds = self.action_bounds(actions) if bounded else None
        if bounds is None or actions.device.type != "cpu" or torch.compiler.is_compiling():
            return
        low, high = bounds
        if (actions < low - _ROUNDING).any() or (actions > high + _ROUNDING).any():
            raise ValueError(
                f"`{name}` reach from {actions.amin((0, 1)).tolist()} to {actions.amax((0, 1)).tolist()}, beyond the "
                f"bounds {low.tolist()} to {high.tolist()} (in the model's units): clip them."
            )
