"""Training VL-JEPA's Y-decoder, apart from the rest and on texts alone."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ...models.vl_jepa import VLJepaModel, VLJepaProcessor
from ..base_metrics import RunningTerms, has_finite_weights
from ..callbacks import NonFiniteLossError


def train_y_decoder(
    model: VLJepaModel,
    processor: VLJepaProcessor,
    texts: Sequence[str],
    args: TrainingArguments,
    noise: float = 0.0,
    embeds: torch.Tensor | None = None,
) -> TrainOutput:
    """
    Trains `model.y_decoder` to say texts given their target embeddings, which are made once. Noise bridges the gap to
    predicted embeddings; or give those. The paper says no more than that the Y-decoder is trained apart: this recipe
    is ours. The rest of the model stays as it is.

    Args:
        model ([`~hf_jepa.VLJepaModel`]): with a `y_decoder`.
        processor ([`~hf_jepa.VLJepaProcessor`]): with a `decoder_tokenizer`.
        texts (`Sequence[str]`).
        args (`TrainingArguments`): with `save_strategy="no"`; the composite is what there is to save.
        noise (`float`): norm, on average, of the Gaussian noise added to embeddings of norm 1.
        embeds (`torch.FloatTensor` of shape `(texts, projection_dim)`, *optional*): instead of the texts' own.

    Returns:
        `TrainOutput`.

    Raises:
        ValueError: without a Y-decoder, its tokenizer or texts, for embeddings of another shape, or checkpoints.
        NonFiniteLossError: if the loss becomes NaN or infinite; the Y-decoder is then as it was.
    """
    if model.y_decoder is None or processor.decoder_tokenizer is None:
        raise ValueError("Training the Y-decoder needs a model with `y_decoder` and a processor with its tokenizer.")
    if not len(texts) or noise < 0:
        raise ValueError(f"Give at least one text, and noise of 0 or more; got {len(texts)} texts and {noise}.")
    if args.save_strategy != "no":
        raise ValueError('Checkpoints of the Y-decoder alone are of no use: set `save_strategy="no"`.')
    if embeds is None:
        embeds = target_embeds(model, processor, texts, args.per_device_eval_batch_size)
    if embeds.shape != (len(texts), model.config.projection_dim):
        raise ValueError(
            f"`embeds` must have shape ({len(texts)}, {model.config.projection_dim}), got {tuple(embeds.shape)}."
        )
    embeds = F.normalize(embeds.detach().float().cpu(), dim=1)
    rows = [
        {"embeds": embed, "input_ids": ids}
        for embed, ids in zip(embeds, decoder_tokens(processor, texts), strict=True)
    ]
    decoder = model.y_decoder
    decoder.requires_grad_(True)
    decoder.freeze_language_model()
    args.remove_unused_columns, args.label_names = False, []
    before = {name: value.detach().clone() for name, value in decoder.state_dict().items()}
    try:
        return _DecoderTrainer(decoder, args, _Collator(processor.decoder_tokenizer.pad_token_id, noise), rows).train()
    except NonFiniteLossError:
        decoder.load_state_dict(before)
        raise
    finally:
        model.apply_requires_grad()
        model.eval()


@torch.no_grad()
def target_embeds(
    model: VLJepaModel, processor: VLJepaProcessor, texts: Sequence[str], batch_size: int = 64
) -> torch.Tensor:
    """The Y-encoder's embeddings of texts, in eval mode: float32 of shape `(texts, projection_dim)`, on the CPU."""
    was_training, parts = model.training, []
    model.eval()
    for start in range(0, len(texts), batch_size):
        batch = processor(target=list(texts[start : start + batch_size]), truncation=True).to(model.device)
        parts.append(model.get_target_embeds(**batch).float().cpu())
    model.train(was_training)
    return torch.cat(parts)


def decoder_tokens(processor: VLJepaProcessor, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts for the Y-decoder, each ended by its end-of-text token, at most `max_target_length` of them."""
    tokenizer, limit = processor.decoder_tokenizer, processor.max_target_length
    if tokenizer.eos_token_id is None:
        raise ValueError("The Y-decoder's tokenizer has no end-of-text token, so that its texts would never end.")
    # Without its own ends, of which some tokenizers have a beginning and some none.
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[*row[: limit - 1], tokenizer.eos_token_id] for row in ids]


class _DecoderTrainer(Trainer):
    """Stops at the first log, or at the end, if a loss was not finite: the stock trainer logs NaN as 0 and goes on."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.metrics = RunningTerms()

    def compute_loss(self, *args: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(*args, return_outputs=True, **kwargs)
        self.metrics.add({}, loss, self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        step = self.metrics.first_non_finite_step(self.accelerator)
        if step is None and not has_finite_weights(self.model):
            step = max(self.state.global_step - 1, 0)
        if step is not None:
            raise NonFiniteLossError(step, float("nan"))
        super().log(logs, start_time)


class _Collator:
    def __init__(self, pad_token_id: int, noise: float) -> None:
        self.pad_token_id, self.noise = pad_token_id, noise

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        embeds = torch.stack([row["embeds"] for row in rows])
        if self.noise:
            embeds = embeds + torch.randn_like(embeds) * self.noise / embeds.shape[1] ** 0.5
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        masks = [torch.ones_like(row) for row in ids]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "embeds": embeds,
            "input_ids": pad(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad(masks, batch_first=True),
        }
