"""VL-JEPA: from what is seen and what is asked, predict the embedding of the answer (arXiv 2512.10942)."""

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import local_torch_dtype
from transformers.utils.generic import can_return_tuple

from ...adapters import adapter_of, plain_adapter_config, restore_original_rows, trained_names, with_adapter
from ...encoders import (
    encode_frames,
    example_images,
    is_video_encoder,
    join_tokens,
    vision_width,
    without_predictor,
)
from ...objectives import InfoNCE
from ...objectives.inputs import at_least_float32
from ...parts import build_part, refuse_unknown_fields, unread_parameters
from ...regularized import build_regularizer
from .components_vl_jepa import bidirectional, load_components
from .configuration_vl_jepa import VLJepaConfig
from .decoder_vl_jepa import VLJepaTextDecoder
from .objective_vl_jepa import VLJepaOutput, embedding_distance, vl_jepa_loss
from .references_vl_jepa import VLJepaReferencingModel
from .sequence_vl_jepa import check_lengths, join_sequence
from .text_encoder_vl_jepa import VLJepaTextEncoder, hash_tokens, pool_tokens


class VLJepaModel(VLJepaReferencingModel):
    """
    VL-JEPA: `vision` (X-encoder, frozen), `vision_projection`, `predictor` (decoder layers, bidirectional),
    `predictor_projection`, `y_encoder` ([`VLJepaTextEncoder`]) and, where text is wanted, `y_decoder`
    ([`VLJepaTextDecoder`]). Readings of what the paper leaves open are named in [`VLJepaConfig`].

    Example:

    ```python
    >>> from hf_jepa import VLJepaModel
    >>> model = VLJepaModel.from_components(
    ...     "facebook/vjepa2-vitl-fpc64-256", "meta-llama/Llama-3.2-1B", "google/embeddinggemma-300m"
    ... )
    >>> embeds = model.get_pred_embeds(pixel_values_videos=clips, query_input_ids=ids, query_attention_mask=mask)
    ```
    """

    main_input_name = "query_input_ids"
    accepts_loss_kwargs = False
    # One tensor may be given twice to the function that computes the gradient of InfoNCE, which no graph takes.
    _can_compile_fullgraph = False
    # Steps of a learned temperature are lost in half precision.
    _keep_in_fp32_modules_strict = {"contrast"}

    def __init__(
        self,
        config: VLJepaConfig,
        vision: PreTrainedModel | None = None,
        predictor: PreTrainedModel | None = None,
        y_encoder: PreTrainedModel | None = None,
        y_decoder: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        for part in (vision, predictor, y_encoder, y_decoder):
            for module in part.modules() if part is not None else ():
                module._is_hf_initialized = True
        self.vision = without_predictor(build_part(config.vision_config) if vision is None else vision)
        self.predictor = build_part(config.predictor_config) if predictor is None else bidirectional(predictor)
        self.y_encoder = VLJepaTextEncoder(config, y_encoder)
        has_decoder = y_decoder is not None or config.y_decoder_config is not None
        self.y_decoder = VLJepaTextDecoder(config, y_decoder) if has_decoder else None
        config.vision_config, config.predictor_config = self.vision.config, self.predictor.config
        config.y_encoder_config = self.y_encoder.model.config
        if has_decoder:
            config.y_decoder_config = self.y_decoder.language_model.config
        if config.vision_hidden_size is None:
            config.vision_hidden_size = vision_width(self.vision)
        width = self.predictor.config.get_text_config().hidden_size
        self.vision_projection = nn.Linear(config.vision_hidden_size, width)
        self.predictor_projection = nn.Linear(width, config.projection_dim)
        self.contrast = None
        if config.loss == "infonce":
            self.contrast = InfoNCE(config.temperature, learnable=config.learnable_temperature).float()
        self.regularizer = build_regularizer(config)
        # All ranks count alike. DDP's broadcast would rewrite the count, which then has to be read from the device.
        self._ddp_params_and_buffers_to_ignore = [n for n, _ in self.named_buffers() if n.endswith("global_step")]
        if config.target == "ema":
            self.target_encoder = copy.deepcopy(self.y_encoder)
        if config.predictor_adapter is not None:
            self._set_adapter(config.predictor_adapter)
        self.post_init()
        if not config.save_frozen:
            self._keys_to_ignore_on_load_missing.update(f"^{prefix}" for prefix in self._frozen_prefixes().values())
        self.apply_requires_grad()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.contrast:
            init.constant_(module.logit_scale, -torch.tensor(self.config.temperature).log().item())

    @classmethod
    def from_components(
        cls,
        vision: str | PreTrainedModel,
        predictor: str | PreTrainedModel,
        y_encoder: str | PreTrainedModel,
        y_decoder: str | PreTrainedModel | None = None,
        num_layers: int = 8,
        predictor_layers: tuple[int, int] | None = None,
        y_heads: Literal["st", "none"] = "st",
        revisions: dict[str, str] | None = None,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str | None = None,
        **config_kwargs: Any,
    ) -> "VLJepaModel":
        """
        Puts pretrained parts together; the maps between them are new.

        Args:
            vision (`str` or `PreTrainedModel`): X-encoder: a model id, a folder, or a loaded model, used as it is.
            predictor (`str` or `PreTrainedModel`): a causal language model, or its backbone, to take layers from.
            y_encoder (`str` or `PreTrainedModel`): a text encoder; of a sentence-transformers folder also pooling and
                dense heads.
            y_decoder (`str` or `PreTrainedModel`, *optional*): a causal language model.
            num_layers (`int`, defaults to 8): how many of the predictor's last layers are copied.
            predictor_layers (`tuple[int, int]`, *optional*): which ones instead, from start to before end; (0, 16) of
                Llama-3.2-1B helps VQA (table 5).
            y_heads (`"st"` or `"none"`): with the dense heads of a sentence-transformers folder, or without.
            revisions (`dict[str, str]`, *optional*): of model ids, by part.
            dtype (`torch.dtype`): of what is loaded and what is new; the learned temperature stays float32.
            attn_implementation (`str`, *optional*): for loading.
            config_kwargs: fields of [`VLJepaConfig`].

        Raises:
            `ValueError`: for layers that do not exist, a predictor that stays causal, and what [`VLJepaConfig`] and
                [`~hf_jepa.models.vl_jepa.load_text_tower`] refuse.
        """
        options: dict[str, Any] = {"dtype": dtype}
        if attn_implementation is not None:
            options["attn_implementation"] = attn_implementation
        given = {"vision": vision, "predictor": predictor, "y_encoder": y_encoder, "y_decoder": y_decoder}
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1, got {num_layers}.")
        layers = (-num_layers, None) if predictor_layers is None else predictor_layers
        components = load_components(given, layers, y_heads, revisions or {}, options)
        refuse_unknown_fields(cls.config_class, config_kwargs, components.config)
        config = cls.config_class(**{**components.config, **config_kwargs})
        with local_torch_dtype(dtype, cls.__name__):
            model = cls(config, **components.parts)
        if components.dense_weights:
            for linear, weights in zip(model.y_encoder.dense, components.dense_weights, strict=True):
                linear.load_state_dict(weights)
        model.sync_target()
        return model.eval()

    # ---- Frozen parts, and parts kept by reference ----

    @property
    def encoder(self) -> VLJepaTextEncoder:
        """The trained Y-encoder, which `target_encoder` follows with `target="ema"`."""
        return self.y_encoder

    def frozen(self) -> Iterator[nn.Module | nn.Parameter]:
        yield from super().frozen()
        yield from self._frozen_modules()
        if self.config.predictor_adapter is not None:
            named = self.predictor.named_parameters()
            yield from (parameter for name, parameter in named if name not in self._trained_by_adapter)
        if self.config.freeze_token_embeddings:
            yield self.get_input_embeddings()

    def unread(self) -> set[str]:
        if self.config.freeze_vision:
            return set()
        images = example_images(self.vision.config)
        unread = unread_parameters(self.vision, lambda: encode_frames(self.vision, images))
        if is_video_encoder(self.vision):
            frames = getattr(self.vision.config, "num_frames", None) or self.vision.config.tubelet_size
            clips = images[:, None].expand(-1, frames, -1, -1, -1)
            unread &= unread_parameters(self.vision, lambda: encode_frames(self.vision, pixel_values_videos=clips))
        return {f"vision.{name}" for name in unread}

    def _frozen_modules(self) -> list[nn.Module]:
        modules = [self.vision] if self.config.freeze_vision else []
        if self.config.target == "frozen":
            modules += [self.y_encoder.model, self.y_encoder.dense]
        # Trained on its own, on embeddings that are done.
        return [*modules, self.y_decoder] if self.y_decoder is not None else modules

    def train(self, mode: bool = True) -> "VLJepaModel":
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    # ---- LoRA on the predictor ----

    def add_predictor_adapter(self, peft_config: Any) -> None:
        """
        Puts a LoRA adapter (a `peft.LoraConfig`) into the predictor and freezes the rest of it. `predictor_adapter` of
        the config says so, so that checkpoints load as they are.

        Raises:
            `ValueError`: for another kind of adapter.
        """
        from peft import LoraConfig

        if not isinstance(peft_config, LoraConfig):
            raise ValueError(f"The predictor's adapter must be a peft.LoraConfig, got {type(peft_config).__name__}.")
        self._set_adapter(plain_adapter_config(peft_config))
        self.apply_requires_grad()
        self.all_tied_weights_keys = self.tied_names()

    def _set_adapter(self, adapter: dict[str, Any]) -> None:
        self.predictor = with_adapter(self.predictor, adapter)
        # As peft has completed it: with the layers that it found.
        self.config.predictor_adapter = adapter_of(self.predictor)
        self._trained_by_adapter = trained_names(self.predictor)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        restore_original_rows(self.predictor)

    def merge_predictor_adapter(self) -> None:
        """Merges a LoRA adapter into the predictor's weights, in place."""
        if self.config.predictor_adapter is not None:
            self.predictor = self.predictor.merge_and_unload().requires_grad_(True)
            self.config.predictor_adapter = None
            self.apply_requires_grad()
            self.all_tied_weights_keys = self.tied_names()

    # ---- Embeddings ----

    def get_input_embeddings(self) -> nn.Module:
        """The predictor's token embeddings."""
        return self.predictor.get_input_embeddings()

    def encode_vision(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
    ) -> tuple[torch.FloatTensor, torch.LongTensor]:
        """
        The X-encoder's tokens S_V; without gradient while it is frozen. They may be kept and given to `forward` as
        `vision_embeds` and `vision_attention_mask`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`, *optional*).
            pixel_values_videos (`torch.FloatTensor` of shape `(clips, frames, channels, height, width)`, *optional*):
                of a mixed batch, its rows follow the images'.

        Returns:
            `torch.FloatTensor` of shape `(images + clips, tokens, vision_hidden_size)`, zero where images have fewer
            tokens than clips, and `torch.LongTensor` of shape `(images + clips, tokens)`, 0 there.

        Raises:
            `ValueError`: without either, or for tensors of another number of dimensions.
        """
        parts = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_vision):
            for name, pixels in (("pixel_values", pixel_values), ("pixel_values_videos", pixel_values_videos)):
                if pixels is not None:
                    pixels = pixels.to(self.vision.dtype)
                    frames = self.config.image_num_frames
                    parts.append(encode_frames(self.vision, **{name: pixels}, image_num_frames=frames))
        if not parts:
            raise ValueError("Pass `pixel_values`, `pixel_values_videos`, or `vision_embeds`.")
        return join_tokens(parts)

    def get_pred_embeds(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        vision_embeds: torch.FloatTensor | None = None,
        vision_attention_mask: torch.LongTensor | None = None,
        query_input_ids: torch.LongTensor | None = None,
        query_attention_mask: torch.LongTensor | None = None,
    ) -> torch.FloatTensor:
        """
        Predicted embeddings, one per row; arguments and errors as in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch, projection_dim)`, not normalised.
        """
        if vision_embeds is None:
            vision_embeds, vision_attention_mask = self.encode_vision(pixel_values, pixel_values_videos)
        elif pixel_values is not None or pixel_values_videos is not None:
            raise ValueError("Pass either pixels or `vision_embeds`, which are made of them.")
        check_lengths(vision_embeds, query_input_ids, self.config)
        if vision_attention_mask is None:
            vision_attention_mask = vision_embeds.new_ones(vision_embeds.shape[:2], dtype=torch.int64)
        words = None
        if query_input_ids is not None:
            words = self.get_input_embeddings()(query_input_ids)
            if query_attention_mask is None:
                query_attention_mask = torch.ones_like(query_input_ids)
        embeds, mask, position_ids = join_sequence(
            self.vision_projection(vision_embeds.to(self.vision_projection.weight.dtype)),
            vision_attention_mask,
            words,
            query_attention_mask,
            self.config.vision_positions,
        )
        table = self.get_input_embeddings().weight
        if words is None and table.requires_grad:
            # DDP waits for a gradient of every parameter.
            embeds = embeds + 0 * table[0].sum()
        states = self.predictor(
            inputs_embeds=embeds.to(self.predictor.dtype),
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        if self.config.pool_tokens == "query":
            states, mask = states[:, vision_embeds.shape[1] :], query_attention_mask
        pooled = pool_tokens(states, mask)
        return self.predictor_projection(pooled.to(self.predictor_projection.weight.dtype))

    def get_target_embeds(
        self,
        target_input_ids: torch.LongTensor,
        target_attention_mask: torch.LongTensor | None = None,
        which: Literal["target", "online"] = "target",
    ) -> torch.FloatTensor:
        """
        The Y-encoder's embeddings of texts.

        Args:
            target_input_ids, target_attention_mask (`torch.LongTensor` of shape `(batch, length)`).
            which (`str`): `"target"`, what predictions are compared with, or `"online"`, the trained Y-encoder; they
                differ with `target="ema"` alone.

        Returns:
            `torch.FloatTensor` of shape `(batch, projection_dim)`, not normalised.
        """
        if which == "target" and self.has_target_encoder:
            with torch.no_grad():
                return self.target_encoder(target_input_ids, target_attention_mask)
        return self.y_encoder(target_input_ids, target_attention_mask)

    # ---- Training ----

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        vision_embeds: torch.FloatTensor | None = None,
        vision_attention_mask: torch.LongTensor | None = None,
        query_input_ids: torch.LongTensor | None = None,
        query_attention_mask: torch.LongTensor | None = None,
        target_input_ids: torch.LongTensor | None = None,
        target_attention_mask: torch.LongTensor | None = None,
        target_embeds: torch.FloatTensor | None = None,
        target_hash: torch.LongTensor | None = None,
        return_loss: bool = True,
        return_logits: bool = False,
    ) -> VLJepaOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`, *optional*).
            pixel_values_videos (`torch.FloatTensor` of shape `(clips, frames, channels, height, width)`, *optional*):
                in a mixed batch queries and targets of images stand before those of clips.
            vision_embeds (`torch.FloatTensor` of shape `(batch, tokens, vision_hidden_size)`, *optional*): instead of
                pixels, what `encode_vision` made of them.
            vision_attention_mask (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): 0 for padding.
            query_input_ids, query_attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): of the
                predictor's tokenizer, padded to the longest of the batch on either side. Without them the predictor
                sees vision tokens alone (query-free).
            target_input_ids, target_attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): of the
                Y-encoder's tokenizer.
            target_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*): instead of tokens.
            target_hash (`torch.LongTensor` of shape `(batch,)`, *optional*): one number per target text; made of the
                tokens when missing. Without either no duplicates are masked.
            return_loss (`bool`): compute the loss where there are targets.
            return_logits (`bool`): also give `logits_per_pair`.

        Returns:
            [`VLJepaOutput`].

        Raises:
            `ValueError`: for pixels and `vision_embeds` together or neither, rows that do not match, more tokens than
                the predictor has positions, embeddings of another width, InfoNCE with one pair in all.
        """
        predicted = self.get_pred_embeds(
            pixel_values,
            pixel_values_videos,
            vision_embeds,
            vision_attention_mask,
            query_input_ids,
            query_attention_mask,
        )
        online = None
        if target_input_ids is not None:
            if target_embeds is not None:
                raise ValueError("Pass either `target_input_ids` or `target_embeds`, which are made of them.")
            target_embeds = self.get_target_embeds(target_input_ids, target_attention_mask)
            if self.has_target_encoder and self.training:
                online = self.get_target_embeds(target_input_ids, target_attention_mask, "online")
            if target_hash is None:
                target_hash = hash_tokens(target_input_ids, target_attention_mask)
        output = VLJepaOutput(
            pred_embeds=predicted,
            target_embeds=target_embeds,
            online_target_embeds=online,
            target_hash=target_hash,
            logit_scale=None if self.contrast is None else self.contrast.logit_scale.exp(),
        )
        if target_embeds is None:
            return output
        if return_loss:
            output.loss, output.loss_components, output.counts = self.compute_loss(
                predicted, target_embeds, online, target_hash
            )
        if return_logits:
            scale = 1 / self.config.temperature if output.logit_scale is None else output.logit_scale
            first, second = (F.normalize(at_least_float32(part), dim=1) for part in (predicted, target_embeds))
            output.logits_per_pair = scale * first @ second.T
        return output

    def compute_loss(
        self,
        pred_embeds: torch.FloatTensor,
        target_embeds: torch.FloatTensor,
        online_target_embeds: torch.FloatTensor | None = None,
        target_hash: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """[`~hf_jepa.models.vl_jepa.vl_jepa_loss`] of embeddings that `forward` made, perhaps in several calls."""
        settings = self.config, self.contrast, self.regularizer
        return vl_jepa_loss(pred_embeds, target_embeds, *settings, online_target_embeds, target_hash)

    @property
    def trains_target(self) -> bool:
        """Whether a gradient reaches `target_embeds` that are made of tokens."""
        trained = self.config.target == "frozen" and self.y_encoder.projection is not None
        return self.config.target == "shared" or trained

    @torch.no_grad()
    def energy(self, **batch: Any) -> torch.FloatTensor:
        """
        How far each prediction lies from its target, by the config's distance (cosine for InfoNCE).

        Args:
            batch: as in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.
        """
        output = self(**batch, return_loss=False)
        distance = "cosine" if self.config.loss == "infonce" else self.config.loss
        return embedding_distance(output.pred_embeds, output.target_embeds, distance)

    @torch.no_grad()
    def get_features(self, pixel_values: torch.FloatTensor, which: str = "target") -> torch.FloatTensor:
        """The X-encoder's tokens of images, `(batch, tokens, vision_hidden_size)`, or of clips (5 dimensions)."""
        name = "pixel_values" if pixel_values.ndim == 4 else "pixel_values_videos"
        return self.encode_vision(**{name: pixel_values})[0]

    @torch.no_grad()
    def generate_text(self, embeds: torch.FloatTensor, **options: Any) -> torch.LongTensor:
        """Tokens of the text of embeddings; see [`VLJepaTextDecoder.generate`]. `ValueError` without a Y-decoder."""
        if self.y_decoder is None:
            raise ValueError("This model has no Y-decoder; give `y_decoder` to `from_components`, and train it.")
        return self.y_decoder.generate(embeds, **options)
