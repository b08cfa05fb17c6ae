"""Action anticipation (EPIC-KITCHENS-100) on V-JEPA 2: verb, noun and action of what will happen after a clip."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_vjepa import VJepaConfig
from .encoder_vjepa import grid_of
from .modeling_vjepa_classification import VJepaHeadModel, check_labels


@strict
class VJepaActionAnticipationConfig(VJepaConfig):
    r"""
    Configuration of [`VJepaForActionAnticipation`]: the fields of [`VJepaConfig`] and

    Args:
        num_verbs, num_nouns, num_actions (`int`, default to 97, 300 and 3806): classes of EPIC-KITCHENS-100. The
            released probes count those that occur in its train and validation annotations.
        frames_per_second (`float`, defaults to 8.0): of the clips.

    Raises:
        `ValueError`: as [`VJepaConfig`], and for numbers that are not positive, or sine-cosine positions, which end
            with the clip.
    """

    model_type = "vjepa_action_anticipation"

    num_verbs: int = 97
    num_nouns: int = 300
    num_actions: int = 3806
    frames_per_second: float | int = 8.0

    def validate_anticipation(self) -> None:
        """Refuses what nothing can be anticipated with; runs whenever a config is made."""
        for name in ("num_verbs", "num_nouns", "num_actions", "frames_per_second"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if self.position_embedding_type == "sincos":
            raise ValueError("Sine-cosine positions end with the clip: anticipation needs rotary ones (V-JEPA 2).")


@dataclass
class VJepaAnticipationOutput(ModelOutput):
    """
    What [`VJepaForActionAnticipation`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): sum of the three focal losses, with labels.
        verb_logits (`torch.FloatTensor` of shape `(batch, num_verbs)`).
        noun_logits (`torch.FloatTensor` of shape `(batch, num_nouns)`).
        action_logits (`torch.FloatTensor` of shape `(batch, num_actions)`).
        pooler_output (`torch.FloatTensor` of shape `(batch, 3, width)`): what the three classifiers read.
    """

    loss: torch.FloatTensor | None = None
    verb_logits: torch.FloatTensor | None = None
    noun_logits: torch.FloatTensor | None = None
    action_logits: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None


def sigmoid_focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> torch.Tensor:
    """
    Focal loss of independent sigmoids (arXiv 1708.02002, equation 5), summed over rows and classes as the released
    anticipation probes do.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, classes)`).
        labels (`torch.LongTensor` of shape `(batch,)`): the one class of each row; rows of -100 do not count.
        alpha (`float`): weight of the true class; the others weigh `1 - alpha`.
        gamma (`float`): how much well-classified ones count less.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    targets = F.one_hot(labels.clamp(min=0), logits.shape[-1]).to(logits.dtype)
    # log p_t and 1 - p_t from the logit of the right side, without the rounding of `1 - sigmoid`.
    right = logits * (2 * targets - 1)
    weights = alpha * targets + (1 - alpha) * (1 - targets)
    losses = -(weights * (-right).sigmoid() ** gamma * F.logsigmoid(right))
    return (losses * (labels != -100)[:, None]).sum()


class VJepaForActionAnticipation(VJepaHeadModel):
    """
    V-JEPA 2's action anticipation probe (arXiv 2506.09985, released code): the encoder's tokens of a clip and the
    predictor's guess at one time slot after it are read by three queries, for verb, noun and action.

    The released probes train the head alone: `model.vjepa2.requires_grad_(False)`.

    Example:

    ```python
    >>> from hf_jepa import VJepaActionAnticipationConfig, VJepaForActionAnticipation
    >>> config = VJepaActionAnticipationConfig.from_size("tiny", frames_per_clip=8, crop_size=64)
    >>> model = VJepaForActionAnticipation(config).eval()
    >>> model(torch.randn(2, 8, 3, 64, 64), anticipation_time=1.0).action_logits.shape
    torch.Size([2, 3806])
    ```
    """

    config: VJepaActionAnticipationConfig

    def __init__(self, config: VJepaActionAnticipationConfig):
        super().__init__(config, num_queries=3)

    def build_head(self, config: VJepaActionAnticipationConfig) -> None:
        self.verb_classifier = nn.Linear(config.hidden_size, config.num_verbs)
        self.noun_classifier = nn.Linear(config.hidden_size, config.num_nouns)
        self.action_classifier = nn.Linear(config.hidden_size, config.num_actions)

    def anticipated_tokens(
        self, pixel_values_videos: torch.Tensor, anticipation_time: float | torch.Tensor
    ) -> torch.Tensor:
        """
        Which tokens lie `anticipation_time` after the clip, in its (time, row, column) order.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).
            anticipation_time (`float` or `torch.FloatTensor` of shape `(batch,)`): seconds, not negative.

        Returns:
            int64 tensor of shape `(batch, rows * columns)`: those of one time slot.

        Raises:
            `ValueError`: for a time that is not a number, or is negative (looked at on the CPU only).
        """
        slots, rows, columns = grid_of(self.config, pixel_values_videos)
        device = pixel_values_videos.device
        time = torch.as_tensor(anticipation_time, dtype=torch.float64)
        if time.device.type == "cpu" and not torch.compiler.is_compiling() and not (time >= 0).all():
            raise ValueError(f"`anticipation_time` must be seconds after the clip, got {anticipation_time}.")
        later = (time * self.config.frames_per_second / self.config.tubelet_size).floor().long().to(device)
        first = (slots + later).expand(pixel_values_videos.shape[0]) * (rows * columns)
        return first[:, None] + torch.arange(rows * columns, device=device)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        anticipation_time: float | torch.FloatTensor = 1.0,
        verb_labels: torch.LongTensor | None = None,
        noun_labels: torch.LongTensor | None = None,
        action_labels: torch.LongTensor | None = None,
        mask_token_index: int = 1,
    ) -> VJepaAnticipationOutput:
        """
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).
            anticipation_time (`float` or `torch.FloatTensor` of shape `(batch,)`): seconds from the end of the clip to
                the action. The released probes draw it from 0.25 to 1.75 in training and take 1 to evaluate.
            verb_labels, noun_labels, action_labels (`torch.LongTensor` of shape `(batch,)`, *optional*): all or none.
            mask_token_index (`int`): of the predictor, see [`VJepaModel`].

        Raises:
            `ValueError`: for clips or times that do not fit, or labels that are incomplete or outside the classes.
        """
        names = ("verb", "noun", "action")
        labels = (verb_labels, noun_labels, action_labels)
        given = [name for name, label in zip(names, labels, strict=True) if label is not None]
        if 0 < len(given) < 3:
            raise ValueError(f"The loss needs labels of verb, noun and action, got only {' and '.join(given)}.")
        target = self.anticipated_tokens(pixel_values_videos, anticipation_time)
        outputs = self.vjepa2(pixel_values_videos, target_mask=[target], mask_token_index=mask_token_index)
        # Of several supervised levels (V-JEPA 2.1) the probe reads the last.
        predicted = outputs.predictor_output.last_hidden_state[..., -self.config.hidden_size :]
        pooled = self.pooler(torch.cat([outputs.last_hidden_state, predicted], dim=1))
        classifiers = (self.verb_classifier, self.noun_classifier, self.action_classifier)
        logits = [classifier(pooled[:, query]) for query, classifier in enumerate(classifiers)]
        loss = None
        if given:
            for name, label, scores in zip(names, labels, logits, strict=True):
                check_labels(f"{name}_labels", label, scores.shape[-1])
            loss = sum(sigmoid_focal_loss(scores, label) for scores, label in zip(logits, labels, strict=True))
        return VJepaAnticipationOutput(loss, *logits, pooler_output=pooled)
