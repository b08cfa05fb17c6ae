"""A world model from pixels: an encoder, a predictor of the next latent frame, and terms that forbid collapse."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from ...modeling_jepa import JepaOutput
from ...objectives import SIGReg
from ...objectives.inputs import at_least_float32, check_tensor
from .configuration_latent_world_model import LatentWorldModelConfig
from .encoding_latent_world_model import FrameEncodingModel, projector
from .latent_variable import LatentCodes, build_latent_variable
from .objective_latent_world_model import InverseModel, inverse_dynamics, regularizers
from .predictors_latent_world_model import GRUPredictor, MLPPredictor, TransformerPredictor

# Of the search for a continuous latent variable.
_SEARCH_STEPS, _SEARCH_RATE = 20, 0.05


class LatentWorldModel(FrameEncodingModel):
    """
    Predicts the latent of the next frame from the latents of frames and the actions between them, and learns both
    latents and prediction at once: the prediction error reaches the encoder through the target too, without
    stop-gradient and without an EMA target. What forbids the constant encoder is a matter of the config: SIGReg,
    inverse dynamics, variance and covariance, or a frozen encoder. Its presets are LeWM, SMWM, PLDM, EB-JEPA, DINO-WM.

    Actions are in the model's units, `(action - action_mean) / action_std`; see
    [`~hf_jepa.world_model.WorldModelMixin.normalize_actions`].

    Example:

    ```python
    >>> from hf_jepa import LatentWorldModel, LatentWorldModelConfig
    >>> model = LatentWorldModel(LatentWorldModelConfig(action_dim=2, sigreg_weight=0.09, rollout_steps=4))
    >>> frames, actions = torch.randn(8, 5, 3, 64, 64), torch.randn(8, 4, 2)
    >>> model(frames, actions).loss.backward()
    >>> imagined = model.rollout(model.encode(frames[:, :1]), actions)
    ```
    """

    config: LatentWorldModelConfig

    def __init__(self, config: LatentWorldModelConfig):
        super().__init__(config)
        width = self._latent_width()
        self.predictor = self._build_predictor(width)
        self.prediction_projector = None
        if config.projector_hidden_size is not None:
            self.prediction_projector = projector((width, config.projector_hidden_size, width))
        self.inverse_model = None
        if config.inverse_dynamics_weight:
            self.inverse_model = InverseModel(width, config.inverse_hidden_size, config.action_dim)
        self.latent_variable = build_latent_variable(config, width)
        self.sigreg = SIGReg(config.num_slices) if config.sigreg_weight else None
        # All ranks count alike. DDP's broadcast would rewrite the count, which then has to be read from the device.
        counters = [name for name, _ in self.named_buffers() if name.endswith("global_step")]
        self._ddp_params_and_buffers_to_ignore = counters
        self.post_init()
        self.apply_requires_grad()

    def _build_predictor(self, width: int) -> nn.Module:
        config = self.config
        if config.predictor_type == "gru":
            return GRUPredictor(width, config.condition_size)
        if config.predictor_type != "transformer":
            residual = config.predictor_type == "residual_mlp"
            return MLPPredictor(width, config.condition_size, config.predictor_hidden_size, residual)
        return TransformerPredictor(
            width,
            config.condition_size,
            config.num_tokens,
            config.context_frames,
            config.predictor_num_hidden_layers,
            config.predictor_num_attention_heads,
            config.predictor_head_dim,
            config.predictor_intermediate_size,
            config.predictor_dropout,
            config.action_embedding_size,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # torch's own default, which all the originals have.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.GRUCell):
            for parameter in module.parameters():
                init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, TransformerPredictor):
            init.normal_(module.position_embeddings)
        elif isinstance(module, LatentCodes):
            init.normal_(module.codes)
        if getattr(module, "modulation", None) is not None:
            init.zeros_(module.modulation.weight)
            init.zeros_(module.modulation.bias)

    # ---- Latents to the next ones ----

    def _finish(self, predictions: torch.Tensor) -> torch.Tensor:
        if self.prediction_projector is not None:
            predictions = self.prediction_projector(predictions.flatten(0, 2)).unflatten(0, predictions.shape[:3])
        return self._into_space(predictions)

    def _predict(self, latents: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """Every frame's next one, from it and those before it: `(batch, frames, tokens, width)`."""
        if self.predictor.is_markov:
            return self._finish(self.predictor(latents, conditions))
        if latents.shape[1] > self.config.context_frames:
            raise ValueError(
                f"A window of {latents.shape[1]} frames to predict from is longer than the predictor sees, "
                f"{self.config.context_frames}: cut it, or build the model with a larger `context_frames`."
            )
        return self._finish(self.predictor(latents, conditions)[0])

    def _imagine(
        self, latents: torch.Tensor, past: torch.Tensor, conditions: torch.Tensor, use_cache: bool
    ) -> torch.Tensor:
        """
        Autoregressive: `latents` `(batch, context, tokens, width)`, `past` conditions `(batch, context - 1, size)`,
        `conditions` `(batch * candidates, horizon, size)` to `(batch * candidates, horizon, tokens, width)`.
        """
        candidates, horizon = len(conditions) // len(latents), conditions.shape[1]
        if self.predictor.is_markov:
            state, predictions = latents[:, -1:].repeat_interleave(candidates, dim=0), []
            for step in range(horizon):
                state = self._predict(state, conditions[:, step : step + 1])
                predictions.append(state)
            return torch.cat(predictions, dim=1)
        window = self.config.context_frames
        latents = latents[:, -window:]
        context = latents.shape[1]
        past = past[:, past.shape[1] - (context - 1) :]
        cache = None
        if use_cache and context > 1:
            # The candidates of an example share its past.
            _, cache = self.predictor(latents[:, :-1], past)
            cache = [tuple(part.repeat_interleave(candidates, dim=0) for part in layer) for layer in cache]
        frames = latents.repeat_interleave(candidates, dim=0)
        conditions = torch.cat([past.repeat_interleave(candidates, dim=0), conditions], dim=1)
        for end in range(context, context + horizon):
            if use_cache and end <= window:
                output, cache = self.predictor(frames[:, end - 1 :], conditions[:, end - 1 : end], cache)
            else:
                # Positions are those in the window: once it slides, every key changes.
                start = max(0, end - window)
                output, _ = self.predictor(frames[:, start:], conditions[:, start:end])
            frames = torch.cat([frames, self._finish(output[:, -1:])], dim=1)
        return frames[:, context:]

    def rollout(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        states: None = None,
        extrinsics: None = None,
        use_cache: bool = True,
        past_actions: torch.Tensor | None = None,
        z: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Imagines what actions lead to. Differentiable in `latents`, `actions` and `z`.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, context, tokens, width)`): of [`encode`], oldest first; a
                predictor that sees one frame reads the last one.
            actions (`torch.FloatTensor` of shape `(batch * candidates, horizon, action_dim)`): in the model's units,
                from the last context frame on; the candidates of one example follow one another.
            states, extrinsics (`None`): other world models'.
            use_cache (`bool`): whether the transformer keeps keys and values while its window of `context_frames`
                fills; once the window slides, positions change and it is read anew.
            past_actions (`torch.FloatTensor` of shape `(batch, context - 1, action_dim)`, *optional*): that led from
                each context frame to the next; needed with more than one.
            z (`torch.Tensor` of shape `(batch * candidates, horizon)`, int64 codes, or `(batch * candidates, horizon,
                latent_variable_size)`, *optional*): the latent variable; a continuous one is 0 by default.

        Returns:
            `torch.FloatTensor` of shape `(batch * candidates, horizon, tokens, width)`.

        Raises:
            `ValueError`: for input that does not fit, and a discrete latent variable that is not given.
        """
        if states is not None or extrinsics is not None:
            raise ValueError("LatentWorldModel takes no `states` or `extrinsics`: proprioception is in the latents.")
        self.check_rollout(latents, actions, past_actions)
        latents = latents.to(self.dtype)
        width = self._latent_width()
        if latents.shape[2:] != (self.config.num_tokens, width):
            raise ValueError(
                f"`latents` must be (batch, context, {self.config.num_tokens}, {width}), got {tuple(latents.shape)}."
            )
        if past_actions is None:
            past_actions = actions.new_zeros(len(latents), 0, self.config.action_dim)
        past_z = None
        if self.latent_variable is not None and latents.shape[1] > 1:
            past_z = self.infer_latent_variable(latents, past_actions)
        past = self._conditions(past_actions, past_z)
        return self._imagine(latents, past, self._conditions(actions, z), use_cache)

    def _conditions(self, actions: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        """Actions with the latent variable, given as codes or vectors, beside them."""
        variable = self.latent_variable
        if variable is None:
            if z is not None:
                raise ValueError("This model has no latent variable: leave `z` out.")
            return actions
        size = self.config.latent_variable_size
        if z is None:
            if isinstance(variable, LatentCodes) and actions.shape[1]:
                raise ValueError(
                    f"Give `z`, one of {len(variable.codes)} codes per step: none of them stands for the others."
                )
            z = actions.new_zeros(*actions.shape[:2], size)
        if not z.is_floating_point() and isinstance(variable, LatentCodes):
            z = variable.codes[z]
        if z.shape != (*actions.shape[:2], size):
            raise ValueError(f"`z` must be {(*actions.shape[:2], size)} or codes, got {tuple(z.shape)}.")
        return torch.cat([actions, z.to(actions.dtype)], dim=-1)

    # ---- Energy and the latent variable ----

    def _errors(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean squared error per frame, over its tokens and channels, in float32."""
        return (at_least_float32(predictions) - at_least_float32(targets)).square().mean(dim=(-2, -1))

    def _predict_by_code(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """`(codes, batch, frames, tokens, width)`: the next frames under every code."""
        codes = self.latent_variable.codes
        count = len(codes)
        z = codes[:, None, None].expand(-1, *actions.shape[:2], -1).flatten(0, 1)
        conditions = torch.cat([actions.repeat(count, 1, 1), z.to(actions.dtype)], dim=-1)
        return self._predict(latents.repeat(count, 1, 1, 1), conditions).unflatten(0, (count, -1))

    @torch.no_grad()
    def infer_latent_variable(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """
        The latent variable of transitions: of codes, the one that predicts best; else the inverse model's answer.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, time, tokens, width)`).
            actions (`torch.FloatTensor` of shape `(batch, time - 1, action_dim)`).

        Returns:
            `torch.Tensor` of shape `(batch, time - 1)`, int64 codes, or `(batch, time - 1, latent_variable_size)`.

        Raises:
            `ValueError`: without a latent variable.
        """
        if self.latent_variable is None:
            raise ValueError("This model has no latent variable.")
        if not isinstance(self.latent_variable, LatentCodes):
            return self.latent_variable.infer(latents[:, :-1], latents[:, 1:])
        return self._errors(self._predict_by_code(latents[:, :-1], actions), latents[:, 1:]).argmin(dim=0)

    @torch.enable_grad()
    def _search_variable(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """From the inverse model's answer down the gradient of error and limit; the best on the way, by transition."""
        variable, weight = self.latent_variable, self.config.latent_variable_weight
        z = variable.infer(latents[:, :-1], latents[:, 1:]).detach().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=_SEARCH_RATE)
        best, least = z.detach().clone(), None
        for step in range(_SEARCH_STEPS + 1):
            predictions = self._predict(latents[:, :-1], self._conditions(actions, z))
            value = self._errors(predictions, latents[:, 1:]) + weight * variable.limit(z)
            if least is None:
                least = value.detach()
            better = value.detach() < least
            best = torch.where(better[..., None], z.detach(), best)
            least = torch.where(better, value.detach(), least)
            if step < _SEARCH_STEPS:
                (z.grad,) = torch.autograd.grad(value.sum(), z)
                optimizer.step()
        return best

    def transition_energy(
        self, latents: torch.Tensor, actions: torch.Tensor, z: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        [`energy`] of frames that are encoded already.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, time, tokens, width)`).
            actions (`torch.FloatTensor` of shape `(batch, time - 1, action_dim)`).
            z (`torch.Tensor`, *optional*): as for [`rollout`], of every transition.

        Returns:
            `torch.FloatTensor` of shape `(batch, time - 1)`.
        """
        self.check_actions("actions", actions)
        if latents.ndim != 4 or actions.shape[:2] != (len(latents), latents.shape[1] - 1):
            raise ValueError(
                f"Latents (batch, time, tokens, width) have time - 1 actions between them, got {tuple(latents.shape)} "
                f"and {tuple(actions.shape)}."
            )
        if self.latent_variable is not None and z is None:
            if isinstance(self.latent_variable, LatentCodes):
                return self._errors(self._predict_by_code(latents[:, :-1], actions), latents[:, 1:]).amin(dim=0)
            z = self._search_variable(latents.detach(), actions.detach())
        predictions = self._predict(latents[:, :-1], self._conditions(actions, z))
        return self._errors(predictions, latents[:, 1:])

    @torch.no_grad()
    def energy(
        self,
        pixel_values: torch.Tensor,
        actions: torch.Tensor,
        proprio: torch.Tensor | None = None,
        z: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        How badly each next frame is predicted from the frames and actions before it: the mean squared error of its
        latent. With a latent variable and without `z`, the least over `z`: exactly, of codes; a continuous one is
        searched by gradient descent from the inverse model's answer, on the error and what limits it.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, time, channels, height, width)`): as for [`encode`].
            actions (`torch.FloatTensor` of shape `(batch, time - 1, action_dim)`): in the model's units.
            proprio (`torch.FloatTensor` of shape `(batch, time, proprio_dim)`, *optional*).
            z (`torch.Tensor`, *optional*): as for [`rollout`].

        Returns:
            `torch.FloatTensor` of shape `(batch, time - 1)`.

        Raises:
            `ValueError`: for input that does not fit.
        """
        return self.transition_energy(self.encode(pixel_values, proprio), actions, z)

    # ---- Training ----

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        actions: torch.Tensor,
        proprio: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        directions: torch.Tensor | None = None,
    ) -> JepaOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, time, channels, height, width)`): as for [`encode`].
            actions (`torch.FloatTensor` of shape `(batch, time or time - 1, action_dim)`): in the model's units;
                `actions[:, t]` leads from frame t to frame t + 1, one behind the last frame is not used. NaN, which
                pads the end of an episode, becomes 0, the mean action.
            proprio (`torch.FloatTensor` of shape `(batch, time, proprio_dim)`, *optional*): normalised.
            action_mask (`torch.BoolTensor` of shape `(batch, time or time - 1)`, *optional*): False where an action is
                padding, which the inverse model is then not trained on.
            directions (`torch.FloatTensor` of shape `(slices, width)`, *optional*): unit rows for SIGReg, by default
                drawn from the training step.

        Returns:
            [`JepaOutput`]: `loss`; `loss_components`, unweighted: `prediction`, of more than one step also
            `rollout_error_1` and so on, what it is the mean of, and the terms of the config; `predictions` and
            `targets`, one tensor `(batch, steps, tokens, width)` each; `context_features` `(batch, time * tokens,
            width)`, the latents.

        Raises:
            `ValueError`: for shapes that do not fit, and fewer frames than `rollout_steps + 1`.
        """
        config = self.config
        check_tensor(pixel_values, "pixel_values")
        check_tensor(actions, "actions")
        time, steps = pixel_values.shape[1], config.rollout_steps
        if time < steps + 1:
            raise ValueError(
                f"`rollout_steps` is {steps}, which takes windows of at least {steps + 1} frames, got {time}."
            )
        wanted = [(len(pixel_values), length, config.action_dim) for length in (time - 1, time)]
        if tuple(actions.shape) not in wanted:
            raise ValueError(f"`actions` must be {wanted[0]} between {time} frames, got {tuple(actions.shape)}.")
        actions = actions[:, : time - 1].to(self.dtype)
        actions = torch.where(actions.isnan(), torch.zeros_like(actions), actions)
        latents = self.encode(pixel_values, proprio)
        terms: dict[str, torch.Tensor] = {}
        if self.latent_variable is not None:
            predictions, errors, terms["latent_variable"] = self._predict_with_variable(latents, actions)
        elif steps == 1:
            predictions = self._predict(latents[:, :-1], actions)
            errors = self._errors(predictions, self._targets(latents))
        else:
            predictions = self._imagine(latents[:, :1], actions[:, :0], actions[:, :steps], use_cache=False)
            errors = self._errors(predictions, self._targets(latents[:, : steps + 1]))
        terms |= regularizers(at_least_float32(latents), config, self.sigreg, directions)
        if self.inverse_model is not None:
            predicted = self.inverse_model(latents[:, :-1], latents[:, 1:])
            mask = None if action_mask is None else action_mask[:, : time - 1]
            terms["inverse_dynamics"] = inverse_dynamics(predicted, actions, mask)
        loss = errors.mean() + sum(getattr(config, f"{name}_weight") * term for name, term in terms.items())
        components = {"prediction": errors.mean(), **terms}
        if steps > 1:
            components |= {f"rollout_error_{step + 1}": error for step, error in enumerate(errors.mean(dim=0))}
        return JepaOutput(
            loss=loss,
            loss_components={name: term.detach() for name, term in components.items()},
            predictions=(predictions,),
            targets=(self._targets(latents)[:, : predictions.shape[1]],),
            context_features=latents.flatten(1, 2),
        )

    def _targets(self, latents: torch.Tensor) -> torch.Tensor:
        """The next frames; under a frozen encoder without gradient, which would only shrink the proprioception."""
        return latents[:, 1:].detach() if self.config.freeze_encoder else latents[:, 1:]

    def _predict_with_variable(
        self, latents: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predictions, their errors as they count in the loss, and what limits the variable."""
        variable, targets = self.latent_variable, self._targets(latents)
        if not isinstance(variable, LatentCodes):
            z, penalty = variable.draw(latents[:, :-1], latents[:, 1:])
            predictions = self._predict(latents[:, :-1], self._conditions(actions, z))
            return predictions, self._errors(predictions, targets), penalty
        step = variable.start_step()
        by_code = self._predict_by_code(latents[:, :-1], actions)
        errors = self._errors(by_code, targets)
        weights, penalty = variable.assign(errors, step)
        best = errors.argmin(dim=0)[None, ..., None, None].expand(1, *by_code.shape[1:])
        return by_code.gather(0, best)[0], (weights * errors).sum(dim=0), penalty
