"""What `LLMJepaTrainer.evaluate` measures."""

from copy import copy
from typing import TYPE_CHECKING, Any

import torch

from ...data import TextPairCollator, TextPairDataset
from ...data.chat_views import as_messages
from ...evaluation.generation import exact_match, generate_responses, starts_with
from ...evaluation.pairs import pair_report
from ...objectives.distributed import gather_batch

if TYPE_CHECKING:
    from ..base_trainer import BaseTrainer

_REPORTED_PAIRS = 1024


def pair_index(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The index whose length is a batch's number of pairs, or of displacement pairs."""
    return batch["displacement_index"] if "displacement_index" in batch else batch["code_index"]


@torch.no_grad()
def evaluation_losses(trainer: "BaseTrainer", dataset: Any) -> dict[str, float]:
    """
    Losses of a dataset, per labelled token and per pair, and what its first pairs look like; every process takes a
    share. InfoNCE compares the pairs of one evaluation batch of all processes.

    Args:
        trainer ([`LLMJepaTrainer`]): names model, collator and batch size.
        dataset (`TextPairDataset` or rows): what its collator takes.

    Returns:
        `dict[str, float]`: `lm_loss`, `jepa_loss`, `loss`, and the fields of [`~hf_jepa.evaluation.pair_report`].
    """
    args, device = trainer.args, trainer.args.device
    collator = copy(trainer.data_collator)
    if isinstance(collator, TextPairCollator):
        collator.jepa_dropout, collator.require_pairs = 0.0, False
    own = range(args.process_index, len(dataset), args.world_size)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    kept: list[tuple[torch.Tensor, ...]] = []
    reported = -(-_REPORTED_PAIRS // args.world_size)
    size = args.per_device_eval_batch_size
    for number in range(-(-len(dataset) // (size * args.world_size))):
        indices = own[number * size : (number + 1) * size]
        rows = [dataset[index] if trainer.reads_rows else dataset[index, index] for index in indices or (0,)]
        batch = {name: tensor.to(device) for name, tensor in collator(rows).items()}
        if not indices:
            # Terms that compare pairs wait for every process; this one has no more rows, and counts nothing.
            batch |= {name: tensor[:0] for name, tensor in batch.items() if name.endswith("_index")}
        with trainer.accelerator.autocast():
            outputs = trainer.model(**batch, num_items_in_batch=1, num_pairs_in_batch=1)
        terms = outputs.loss_components
        sizes = sums.new_tensor([len(batch["label_index"]), len(pair_index(batch))])
        jepa = terms.get("jepa_loss", torch.zeros((), device=device))
        sums += torch.cat([torch.stack([terms["lm_loss"], jepa]).double(), sizes])
        if outputs.text_embeddings is not None and sum(len(part[0]) for part in kept) < reported:
            triple = (outputs.text_embeddings, outputs.predicted_embeddings, outputs.code_embeddings)
            kept.append(tuple(part.float() for part in triple))
    lm_sum, jepa_sum, items, pairs = trainer.accelerator.gather(sums[None]).sum(dim=0).tolist()
    found = {"lm_loss": lm_sum / max(items, 1)}
    config = trainer.model.config
    found["loss"] = config.jepa_gamma * found["lm_loss"]
    if pairs:
        found["jepa_loss"] = jepa_sum / pairs
        found["loss"] += config.jepa_lambda * found["jepa_loss"]
    if kept:
        # Of all processes, so that they agree on which checkpoint is the best.
        triple = [gather_batch(torch.cat(part)[:reported]) for part in zip(*kept, strict=True)]
        if len(triple[0]) > 1:
            found |= pair_report(*triple)
    return found


def evaluation_answers(trainer: "BaseTrainer", dataset: Any) -> dict[str, float]:
    """
    Answers by generation, scored against the dataset's; every process takes a share.

    Args:
        trainer ([`LLMJepaTrainer`]): names model, tokenizer and arguments.
        dataset (`TextPairDataset` or rows): chats or two columns.

    Returns:
        `dict[str, float]`: `exact_match` and `startswith`, shares in [0, 1].
    """
    args, fmt = trainer.args, trainer.pair_format
    if isinstance(dataset, TextPairDataset):
        dataset, fmt = dataset.rows, dataset.pair_format
    count = len(dataset) if args.generate_examples < 0 else min(args.generate_examples, len(dataset))
    columns = (fmt.messages_column, fmt.text_column, fmt.code_column, fmt.system_prompt)
    own = [as_messages(dataset[index], *columns) for index in range(args.process_index, count, args.world_size)]
    hits = torch.zeros(2, device=args.device)
    if own:
        answers = generate_responses(
            trainer.model.causal_lm,
            trainer.processing_class,
            [messages[:-1] for messages in own],
            max_new_tokens=args.generate_max_new_tokens,
            batch_size=args.per_device_eval_batch_size,
            chat_template=fmt.chat_template,
            **fmt.template_options,
        )
        truths = [messages[-1]["content"] for messages in own]
        pairs = list(zip(answers, truths, strict=True))
        scores = [sum(scorer(*pair) for pair in pairs) for scorer in (exact_match, starts_with)]
        hits += torch.tensor(scores, device=args.device)
    totals = (trainer.accelerator.gather(hits[None]).sum(dim=0) / count).tolist()
    return {"exact_match": totals[0], "startswith": totals[1]}
