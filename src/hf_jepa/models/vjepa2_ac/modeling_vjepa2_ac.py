"""V-JEPA 2-AC: what an action does to the latents of a frozen encoder, and plans that follow from it."""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from ...encoders import (
    build_encoder,
    check_frames,
    configured_channels,
    configured_size,
    encode_each_frame,
    normalized_frames,
)
from ...modeling_jepa import JepaOutput, JepaPreTrainedModel
from ...objectives.distances import normalize_targets
from ...objectives.inputs import check_tensor
from ...poses import integrate_pose
from ...world_model import WorldModelMixin
from ..vjepa.objective_vjepa import power_distance
from .configuration_vjepa2_ac import VJepa2ACConfig
from .predictor_vjepa2_ac import KeyValues, VJepa2ACPredictor

_POSE_DIM = 7


class VJepa2ACModel(WorldModelMixin, JepaPreTrainedModel):
    """
    V-JEPA 2-AC (arXiv 2506.09985, released code): on a frozen encoder a predictor learns what actions do to latents,
    so that plans can be imagined. Frames are encoded one by one, since a clip encoded as one lets every frame see
    those after it. Only the predictor trains.

    Example:

    ```python
    >>> from hf_jepa import VJepa2ACConfig, VJepa2ACModel, VJepaConfig
    >>> encoder = VJepaConfig.from_size("tiny", crop_size=64)
    >>> config = VJepa2ACConfig(encoder_config=encoder, hidden_size=48, num_hidden_layers=2, num_attention_heads=3)
    >>> model = VJepa2ACModel(config).eval()
    >>> latents = model.encode(torch.randn(1, 1, 3, 64, 64))
    >>> model.rollout(latents, torch.zeros(5, 2, 7), states=torch.zeros(1, 1, 7)).shape
    torch.Size([5, 2, 16, 192])
    ```
    """

    config: VJepa2ACConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    # The encoder is frozen: it is a release of its own.
    released_whole = True

    def __init__(self, config: VJepa2ACConfig):
        super().__init__(config)
        with init.no_init_weights():
            self.encoder = build_encoder(config.encoder_config)
            self.predictor = VJepa2ACPredictor(config)
        self.post_init()
        self.apply_requires_grad()
        self.encoder.eval()

    def frozen(self) -> Iterator[nn.Module]:
        yield self.encoder
        if not self.config.use_extrinsics:
            # Nothing reads it.
            yield self.predictor.extrinsics_encoder

    def train(self, mode: bool = True) -> "VJepa2ACModel":
        super().train(mode)
        # A frozen encoder has no dropout, whatever the Trainer calls before every step.
        self.encoder.eval()
        return self

    @property
    def max_steps(self) -> int:
        return self.config.max_steps

    @torch.no_grad()
    def encode(self, pixel_values: torch.FloatTensor, proprio: torch.FloatTensor | None = None) -> torch.FloatTensor:
        """
        As [`~hf_jepa.world_model.WorldModelMixin.encode`].

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, time, channels, height, width)`): float frames normalised
                with the config's `image_mean` and `image_std`, of any size that patches divide; or uint8 ones, which
                are normalised here, and squeezed to the encoder's size unless `frame_grid` says another shape.
            proprio: not read; the robot's state enters [`rollout`](VJepa2ACModel.rollout) as `states`.

        Returns:
            `torch.FloatTensor` of shape `(batch, time, tokens, width)`, layer-normed per token (`normalize_latents`).

        Raises:
            `ValueError`: for another number of dimensions or channels, frames that are not normalised, or integer ones
                other than uint8.
        """
        config = self.config
        check_frames(pixel_values, configured_channels(config.encoder_config))
        size = None if config.frame_grid else configured_size(config.encoder_config)
        frames = normalized_frames(pixel_values, config.image_mean, config.image_std, size, self.dtype)
        return self._normalized(encode_each_frame(self.encoder, frames))

    @torch.no_grad()
    def get_features(self, pixel_values_videos: torch.FloatTensor, which: str = "target") -> torch.FloatTensor:
        """
        Latents of all frames of clips.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, time, channels, height, width)`).
            which (`str`): `"target"` or `"context"`, which are one.

        Returns:
            `torch.FloatTensor` of shape `(batch, time * tokens, width)`.
        """
        self._encoder(which)
        return self.encode(pixel_values_videos).flatten(1, 2)

    def _normalized(self, latents: torch.Tensor) -> torch.Tensor:
        return normalize_targets(latents) if self.config.normalize_latents else latents.float()

    @can_return_tuple
    def forward(
        self,
        latents: torch.FloatTensor | None = None,
        actions: torch.FloatTensor | None = None,
        states: torch.FloatTensor | None = None,
        extrinsics: torch.FloatTensor | None = None,
        rollout_steps: int | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        embodiment: str | None = None,
    ) -> JepaOutput:
        """
        The loss of training: every frame but the first is predicted from the true ones before it (teacher forcing),
        and the first `rollout_steps` of them again from the first frame alone, each prediction being fed back. Both
        count the same, as released, so that frame 1 counts twice. Gradients flow through the rollout. True actions and
        states condition both.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, time, tokens, width)`, *optional*): of [`encode`].
            actions (`torch.FloatTensor` of shape `(batch, time - 1, action_dim)`).
            states (`torch.FloatTensor` of shape `(batch, time, state_dim)`): the last is not read and may be missing.
            extrinsics (`torch.FloatTensor` of shape `(batch, time, extrinsics_dim)`, *optional*): as `states`; with
                `use_extrinsics`.
            rollout_steps (`int`, *optional*): defaults to the config's, 2 as released.
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, time, channels, height, width)`, *optional*):
                instead of `latents`.
            embodiment (`str`, *optional*): the robot; by default the first of the config.

        Returns:
            [`JepaOutput`]: `loss_components` are `teacher_forcing` and `rollout`, which make up the loss, and of the
            latter `rollout_error_1`, ... by frame; `predictions` are the teacher-forced latents `(batch, time - 1,
            tokens, width)` and the rolled-out ones `(batch, rollout_steps, tokens, width)`, `targets` the true ones.

        Raises:
            `ValueError`: for input that does not fit, fewer than two frames, or a rollout beyond the clip.
        """
        latents = self._clip(latents, pixel_values_videos)
        time = latents.shape[1]
        steps = self.config.rollout_steps if rollout_steps is None else rollout_steps
        if not 0 <= steps < time:
            raise ValueError(f"A rollout of {steps} steps needs {steps + 1} frames, the clips have {time}.")
        actions, states, extrinsics = self.check_window(latents, actions, **self._conditions(states, extrinsics))
        forced, cache = self._predict(latents[:, :-1], actions, states, extrinsics, None, steps > 1, embodiment)
        predictions, targets = [forced], [latents[:, 1:]]
        if steps:
            # The first frame is the same in both: its keys and values are at hand.
            length = latents.shape[2] + self.config.tokens_per_step
            past = [(k[:, :, :length], v[:, :, :length]) for k, v in cache] if steps > 1 else None
            rolled = [forced[:, :1]]
            for step in range(1, steps):
                here = slice(step, step + 1)
                camera = None if extrinsics is None else extrinsics[:, here]
                following, past = self._predict(
                    rolled[-1], actions[:, here], states[:, here], camera, past, step + 1 < steps, embodiment
                )
                rolled.append(following)
            predictions.append(torch.cat(rolled, dim=1))
            targets.append(latents[:, 1 : steps + 1])
        errors = [
            power_distance(prediction, target, self.config.loss_exponent).mean(dim=(0, 2, 3))
            for prediction, target in zip(predictions, targets, strict=True)
        ]
        losses = dict(zip(("teacher_forcing", "rollout"), (error.mean() for error in errors), strict=False))
        by_horizon = {f"rollout_error_{step}": error.detach() for step, error in enumerate(errors[-1], 1)}
        return JepaOutput(
            loss=sum(losses.values()),
            loss_components={name: loss.detach() for name, loss in losses.items()} | (by_horizon if steps else {}),
            predictions=tuple(predictions),
            targets=tuple(targets),
        )

    def rollout(
        self,
        latents: torch.FloatTensor,
        actions: torch.FloatTensor,
        states: torch.FloatTensor | None = None,
        extrinsics: torch.FloatTensor | None = None,
        use_cache: bool = True,
        past_actions: torch.FloatTensor | None = None,
        embodiment: str | None = None,
    ) -> torch.FloatTensor:
        """
        As [`~hf_jepa.world_model.WorldModelMixin.rollout`]. What candidates share, the context before its last frame,
        is computed once per example. States that are not given follow from the last given one and the actions (see
        [`integrate`](VJepa2ACModel.integrate)); the camera stays where it was.

        With a cache every frame but the last keeps `2 * num_hidden_layers * tokens * hidden_size` numbers per
        candidate; a planner's `max_rollouts` bounds how many candidates do so at a time.

        Args:
            latents, actions, past_actions, use_cache: as there.
            states (`torch.FloatTensor` of shape `(batch, known, state_dim)`): of at least the context frames.
            extrinsics (`torch.FloatTensor` of shape `(batch, known, extrinsics_dim)`, *optional*): with
                `use_extrinsics`.
            embodiment (`str`, *optional*): the robot; by default the first of the config.

        Raises:
            `ValueError`: for input that does not fit.
        """
        self._check_width(latents)
        self.check_rollout(latents, actions, past_actions, **self._conditions(states, extrinsics))
        context, candidates = latents.shape[1], len(actions) // len(latents)

        def spread(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if candidates == 1 else tensor.repeat_interleave(candidates, dim=0)

        cache = None
        if use_cache and context > 1:
            before = slice(0, context - 1)
            camera = None if extrinsics is None else extrinsics[:, before]
            _, cache = self._predict(
                latents[:, before], past_actions, states[:, before], camera, None, True, embodiment
            )
            cache = [(spread(key), spread(value)) for key, value in cache]
        if context > 1:
            actions = torch.cat([spread(past_actions), actions], dim=1)
        states = self._all_states(spread(states), actions, context)
        cameras = None if extrinsics is None else _extended(spread(extrinsics), actions.shape[1])
        frames = spread(latents[:, -1:] if use_cache else latents)
        predicted = []
        for last in range(context - 1, actions.shape[1]):
            seen = slice(last if use_cache else 0, last + 1)
            camera = None if cameras is None else cameras[:, seen]
            more = use_cache and last + 1 < actions.shape[1]
            following, cache = self._predict(
                frames, actions[:, seen], states[:, seen], camera, cache, more, embodiment
            )
            predicted.append(following[:, -1:])
            frames = predicted[-1] if use_cache else torch.cat([frames, predicted[-1]], dim=1)
        return torch.cat(predicted, dim=1)

    def integrate(self, states: torch.FloatTensor, actions: torch.FloatTensor) -> torch.FloatTensor:
        """
        The state that an action leads to: [`~hf_jepa.poses.integrate_pose`], in float32.

        Args:
            states (`torch.FloatTensor` of shape `(batch, state_dim)`).
            actions (`torch.FloatTensor` of shape `(batch, action_dim)`): in the model's units.

        Raises:
            `ValueError`: if states and actions are no poses. A robot of another kind overrides this method.
        """
        actions = self.denormalize_actions(actions.float())
        if states.shape[-1] != _POSE_DIM or actions.shape[-1] != _POSE_DIM:
            raise ValueError(
                f"Only poses of width {_POSE_DIM} can be integrated; states have width {states.shape[-1]}, actions "
                f"{actions.shape[-1]}: give `states` of every frame of the rollout, or override `integrate`."
            )
        return integrate_pose(states.float(), actions)

    @torch.no_grad()
    def energy(
        self,
        pixel_values: torch.FloatTensor | None,
        actions: torch.FloatTensor,
        states: torch.FloatTensor | None = None,
        extrinsics: torch.FloatTensor | None = None,
        latents: torch.FloatTensor | None = None,
        embodiment: str | None = None,
    ) -> torch.FloatTensor:
        """
        The teacher-forced loss before its mean over examples and steps: how badly each next frame is predicted.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, time, channels, height, width)`, or `None` with
                `latents`).
            actions, states, extrinsics, embodiment: as in `forward`.
            latents (`torch.FloatTensor` of shape `(batch, time, tokens, width)`, *optional*): of [`encode`].

        Returns:
            `torch.FloatTensor` of shape `(batch, time - 1)`.

        Raises:
            `ValueError`: for input that does not fit.
        """
        latents = self._clip(latents, pixel_values)
        conditions = self.check_window(latents, actions, **self._conditions(states, extrinsics))
        predictions, _ = self._predict(latents[:, :-1], *conditions, None, False, embodiment)
        return power_distance(predictions, latents[:, 1:], self.config.loss_exponent).mean(dim=(2, 3))

    def _predict(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        states: torch.Tensor,
        extrinsics: torch.Tensor | None,
        past: list[KeyValues] | None,
        use_cache: bool,
        embodiment: str | None,
    ) -> tuple[torch.Tensor, list[KeyValues] | None]:
        """One call of the predictor, layer-normed as every step is."""
        predictions, cache = self.predictor(latents, actions, states, extrinsics, past, use_cache, embodiment)
        return self._normalized(predictions), cache

    def _all_states(self, states: torch.Tensor, actions: torch.Tensor, context: int) -> torch.Tensor:
        """States of as many frames as there are actions."""
        frames = list(states.float().unbind(1))
        for step in range(len(frames), actions.shape[1]):
            frames.append(self.integrate(frames[-1], actions[:, step - 1]))
        return torch.stack(frames[: actions.shape[1]], dim=1)

    def _clip(self, latents: torch.Tensor | None, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Latents, given or encoded."""
        if (latents is None) == (pixel_values is None):
            raise ValueError("Give either `latents` or the clips that they are made of, not both.")
        latents = self.encode(pixel_values) if latents is None else latents
        check_tensor(latents, "latents")
        self._check_width(latents)
        return latents

    def _check_width(self, latents: torch.Tensor) -> None:
        if latents.ndim != 4 or latents.shape[-1] != self.config.latent_size:
            raise ValueError(
                f"`latents` must be (batch, time, tokens, {self.config.latent_size}), got {tuple(latents.shape)}."
            )

    def _conditions(
        self, states: torch.Tensor | None, extrinsics: torch.Tensor | None
    ) -> dict[str, tuple[torch.Tensor | None, int]]:
        """What conditions the predictor beside actions, for the checks of the protocol."""
        if states is None:
            raise ValueError("`states` are missing: the predictor reads the robot's state in every frame.")
        if (extrinsics is None) == self.config.use_extrinsics:
            raise ValueError(
                "This model has `use_extrinsics=True`: give `extrinsics`."
                if extrinsics is None
                else "This model has `use_extrinsics=False`, so `extrinsics` would not be read: leave them out."
            )
        return {"states": (states, self.config.state_dim), "extrinsics": (extrinsics, self.config.extrinsics_dim)}


def _extended(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """`(batch, known, width)` to `(batch, length, width)`: the last entry repeated, or what is too much cut off."""
    missing = max(0, length - tensor.shape[1])
    return torch.cat([tensor, tensor[:, -1:].expand(-1, missing, -1)], dim=1)[:, :length]
