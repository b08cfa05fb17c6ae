"""Video classification: an encoder of any V-JEPA generation under its attentive pooler and a linear layer."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

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

    def freeze_unused(self) -> None:
        """Turns gradients off where none will ever come, which DDP would wait for."""
        self.pooler.freeze_unused()

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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, ignore_mismatched_sizes=False, **kwargs):
        """
        As `PreTrainedModel.from_pretrained`. A checkpoint without any of the head, such as an encoder's, gets a new
        one; `facebook/vjepa2-*` classifiers load unchanged.

        Args:
            ignore_mismatched_sizes (`bool`, defaults to `False`): whether parts of the head that have another size in
                the checkpoint, such as a classifier of other classes, are drawn anew.

        Raises:
            `ValueError`: if the encoder or a part of the head is missing, or a size differs.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
        differing = [
            f"{key} is {tuple(theirs)} in the checkpoint and {tuple(ours)} in the model"
            for key, theirs, ours in sorted(info["mismatched_keys"])
            if not ignore_mismatched_sizes or key.startswith("vjepa2.")
        ]
        if differing:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not fit {cls.__name__}: {'; '.join(differing[:3])}"
                f"{' ...' * (len(differing) > 3)}. Set the config's sizes (such as `num_labels`) to the checkpoint's, "
                "or ask for a new head with `ignore_mismatched_sizes=True`."
            )
        missing = set(info["missing_keys"])
        head = {key for key in model.state_dict() if not key.startswith("vjepa2.")}
        # All of the head may be new, or none of it.
        lost = missing if missing & head and not head <= missing else missing - head
        if lost:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not hold a whole {cls.__name__}: missing_keys: "
                f"{', '.join(sorted(lost)[:5])}{' ...' * (len(lost) > 5)}"
            )
        model.freeze_unused()
        return (model, info) if wants_info else model


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
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()
        self.freeze_unused()

    def freeze_unused(self) -> None:
        super().freeze_unused()
        # It is there because released classifiers hold it.
        self.vjepa2.predictor.requires_grad_(False)

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
    """Refuses labels outside the classes; not on a GPU, where looking would wait for the device."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not labels.numel():
        return
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`{name}` must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}: does the "
            "dataset have more classes than the classifier?"
        )
