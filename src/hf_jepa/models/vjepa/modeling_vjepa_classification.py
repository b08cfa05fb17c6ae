"""Video classification: an encoder of any V-JEPA generation under its attentive pooler and a linear layer."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ...parts import cut, unread_parameters
from .configuration_vjepa import VJepaConfig
from .layers_vjepa import VJepaPreTrainedModel
from .modeling_vjepa import VJepaModel
from .pooler_vjepa import VJepaAttentivePooler, init_attentive_pooler


@dataclass
class VJepaClassifierOutput(ModelOutput):
    """
    What [`VJepaForVideoClassification`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): mean cross entropy, with `labels`.
        logits (`torch.FloatTensor` of shape `(batch, num_labels)`): with several views the logarithm of the mean of
            their softmax.
        pooler_output (`torch.FloatTensor` of shape `(batch, width)`, with several views `(batch, views, width)`):
            what the classifier reads.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(batch * segments * views, tokens, width)`): the
            encoder's, with `output_hidden_states`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class VJepaHeadModel(VJepaPreTrainedModel):
    """
    Base of the models that put an attentive pooler and linear layers on a [`VJepaModel`]: how the head is drawn, and
    loading that never leaves a part of it as it was drawn.

    Args:
        config ([`VJepaConfig`]): its `num_pooler_layers` self-attention blocks act on the tokens (V-JEPA 2), or, with
            sine-cosine positions, on the query (V-JEPA 1).
        num_queries (`int`): of the pooler.
    """

    def __init__(self, config: VJepaConfig, num_queries: int):
        super().__init__(config)
        # post_init draws the weights of the whole; drawing them in each part first would be work done twice.
        with init.no_init_weights():
            self.vjepa2 = VJepaModel(config)
        self.pooler = VJepaAttentivePooler(
            config.hidden_size,
            config.pooler_num_attention_heads,
            config.num_pooler_layers,
            "query" if config.position_embedding_type == "sincos" else "tokens",
            num_queries,
            layer_norm_eps=config.pooler_layer_norm_eps,
            attention_dropout=config.attention_dropout,
        )
        self.build_head(config)
        self.post_init()
        self.apply_requires_grad()

    def build_head(self, config: VJepaConfig) -> None:
        """Makes the linear layers, before the weights are drawn; each model has its own."""

    def unread(self) -> set[str]:
        config = self.config
        clips = (1, config.frames_per_clip, config.in_chans, config.crop_size, config.crop_size)

        def run() -> torch.Tensor:
            outputs = self(torch.empty(clips, device="meta"))
            return sum(value.sum() for name, value in outputs.items() if name.endswith("logits"))

        return unread_parameters(self, run)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and any(module is child for child in self.children()):
            # torch's default, as the released code leaves it: uniform in +-1 / sqrt(fan-in), the bias too.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
            return
        super()._init_weights(module)
        if isinstance(module, VJepaAttentivePooler):
            init_attentive_pooler(module, self.config.initializer_range)

    def check_loaded(self, source: Any, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
        """
        Refuses what is not restored whole. A checkpoint without any of the head, such as an encoder's, gets a new one;
        `facebook/vjepa2-*` classifiers load unchanged.

        Args:
            source, info: as in [`~hf_jepa.parts.StrictLoading.check_loaded`].
            ignore_mismatched_sizes (`bool`, defaults to `False`): whether parts of the head that have another size in
                the checkpoint, such as a classifier of other classes, are drawn anew.

        Raises:
            `ValueError`: if the encoder or a part of the head is missing, or a size differs.
        """
        differing = [
            f"{key} is {tuple(theirs)} in the checkpoint and {tuple(ours)} in the model"
            for key, theirs, ours in sorted(info["mismatched_keys"])
            if not ignore_mismatched_sizes or key.startswith("vjepa2.")
        ]
        if differing:
            raise ValueError(
                f"{source} does not fit {type(self).__name__}: {'; '.join(differing[:3])}"
                f"{' ...' * (len(differing) > 3)}. Set the config's sizes (such as `num_labels`) to the checkpoint's, "
                "or ask for a new head with `ignore_mismatched_sizes=True`."
            )
        missing = set(info["missing_keys"])
        head = {key for key in self.state_dict() if not key.startswith("vjepa2.")}
        # All of the head may be new, or none of it.
        lost = missing if missing & head and not head <= missing else missing - head
        if lost:
            raise ValueError(
                f"{source} does not hold a whole {type(self).__name__}: missing_keys: {cut(sorted(lost))}"
            )


class VJepaForVideoClassification(VJepaHeadModel):
    """
    A V-JEPA encoder, its attentive pooler and a linear layer. Parameters have the names of in-tree
    `VJEPA2ForVideoClassification`, whose folders load unchanged; unlike there the pooler has 16 heads and an epsilon
    of 1e-5 at every width, as the released probes, and clips may come in several segments and views.

    Example:

    ```python
    >>> from hf_jepa import VJepaConfig, VJepaForVideoClassification
    >>> config = VJepaConfig.from_size("tiny", frames_per_clip=8, crop_size=64, num_labels=5)
    >>> model = VJepaForVideoClassification(config).eval()
    >>> model(torch.randn(2, 8, 3, 64, 64)).logits.shape
    torch.Size([2, 5])
    ```
    """

    def __init__(self, config: VJepaConfig):
        super().__init__(config, num_queries=1)

    def build_head(self, config: VJepaConfig) -> None:
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> VJepaClassifierOutput:
        """
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): or with
                segments `(batch, segments, frames, ...)`, or with segments and views
                `(batch, segments, views, frames, ...)`. The tokens of all segments of a view are pooled together; the
                softmax is averaged over views, as in the released evaluation.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*).
            output_hidden_states (`bool`, *optional*): defaults to the config's.

        Raises:
            `ValueError`: for clips that do not fit, or labels outside the classes (looked at on the CPU only).
        """
        clips = pixel_values_videos
        if not 5 <= clips.ndim <= 7:
            raise ValueError(
                "`pixel_values_videos` must have shape (batch, frames, channels, height, width), (batch, segments, "
                f"frames, ...) or (batch, segments, views, frames, ...), got {tuple(clips.shape)}."
            )
        segments = clips.shape[1] if clips.ndim >= 6 else 1
        views = clips.shape[2] if clips.ndim == 7 else 1
        outputs = self.vjepa2(clips.reshape(-1, *clips.shape[-4:]), output_hidden_states=output_hidden_states)
        tokens = outputs.last_hidden_state.unflatten(0, (-1, segments, views))
        # (batch, views, segments, ...), then views as rows and segments as one row of tokens.
        tokens = tokens.transpose(1, 2).flatten(0, 1).flatten(1, 2)
        pooled = self.pooler(tokens)[:, 0]
        logits = self.classifier(pooled)
        if views > 1:
            pooled = pooled.unflatten(0, (-1, views))
            logits = logits.log_softmax(-1).unflatten(0, (-1, views))
            logits = logits.logsumexp(1) - math.log(views)
        loss = None
        if labels is not None:
            check_labels("labels", labels, self.config.num_labels)
            loss = F.cross_entropy(logits, labels)
        return VJepaClassifierOutput(
            loss=loss, logits=logits, pooler_output=pooled, hidden_states=outputs.hidden_states
        )


def check_labels(name: str, labels: torch.Tensor, num_classes: int) -> None:
    """Refuses labels outside the classes but -100, none; not on a GPU, where looking would wait for the device."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    labels = labels[labels != -100]
    if not labels.numel():
        return
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`{name}` must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}: does the "
            "dataset have more classes than the classifier?"
        )
