"""A tiny world for VL-JEPA, and runs in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    VJEPA2Config,
    VJEPA2Model,
    VJEPA2VideoProcessor,
)

from hf_jepa import VLJepaModel, VLJepaProcessor, VLJepaTrainer, VLJepaTrainingArguments
from hf_jepa.data import VisionTextDataset


def build_processor() -> VLJepaProcessor:
    words = {"[PAD]": 0, "[EOS]": 1, **{f"w{number}": number + 2 for number in range(28)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]")
    size = {"height": 8, "width": 8}
    video = VJEPA2VideoProcessor(size={"shortest_edge": 8}, crop_size=size)
    return VLJepaProcessor(None, video, tokenizer, tokenizer, tokenizer, num_frames=4)


def build_model(dropout: float = 0.0, **options: Any) -> VLJepaModel:
    torch.manual_seed(0)
    vision = VJEPA2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=4,
        crop_size=8,
        frames_per_clip=4,
        mlp_ratio=2.0,
        initializer_range=0.3,
        pred_hidden_size=8,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
    )
    decoder = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
    )
    text = BertConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    parts = [VJEPA2Model(vision), LlamaModel(decoder), BertModel(text)]
    return VLJepaModel.from_components(*parts, **{"num_layers": 1, "projection_dim": 12, **options})


def build_rows(count: int = 24, kinds: int = 8) -> list[dict[str, Any]]:
    """Images and clips of as many colours as there are texts, so that texts occur more than once."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        kind = number % kinds
        shape = (4, 8, 8, 3) if number % 3 == 0 else (8, 8, 3)
        noise = generator.integers(0, 30, shape) + np.array([kind % 2, kind // 2 % 2, kind // 4]) * 200
        media = noise.astype(np.uint8)
        rows.append({"image": None, "video": media} if media.ndim == 4 else {"image": media, "video": None})
        rows[-1] |= {"text": f"w{kind} w{kind + 9}", "ask": f"w20{' w21' * (number % 3)}"}
    return rows


def build_arguments(output: Path, **options: Any) -> VLJepaTrainingArguments:
    return VLJepaTrainingArguments(
        **{
            "output_dir": str(output),
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 3,
            "learning_rate": 0.005,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **options,
        }
    )


CASES = {
    "infonce": {},
    "ema_vicreg": {"target": "ema", "regularizer": "vicreg", "regularizer_weight": 0.1},
}


class Counted(VLJepaTrainer):
    """Counts what DDP averages in each step, bucket by bucket."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.averaged: list[int] = []

    def training_step(self, model: torch.nn.Module, *args: Any) -> torch.Tensor:
        if not self.averaged and isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, self._average)
        self.averaged.append(0)
        return super().training_step(model, *args)

    def _average(self, _: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.averaged[-1] += bucket.buffer().numel()
        return allreduce_hook(None, bucket)


def run(output: Path, case: str, batch_size: int, micro_batch: int | None) -> None:
    """Trains and evaluates, and writes weights and logs."""
    args = build_arguments(
        output,
        per_device_train_batch_size=batch_size,
        gradient_cache_micro_batch=micro_batch,
        y_encoder_lr_multiplier=0.5,
    )
    model = build_model(**CASES[case])
    dataset = VisionTextDataset(build_rows(), query_column="ask", num_frames=4)
    held_out = VisionTextDataset(build_rows(7), query_column="ask", num_frames=4)
    trainer = Counted(model, args, dataset, held_out, build_processor())
    trainer.train()
    if args.world_size > 1:
        # Each gradient once, however many parts the batch is cut into.
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trainer.averaged == [trained] * 3, (trainer.averaged, trained)
    trainer.evaluate()
    if args.process_index == 0:
        output.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, output / "weights.safetensors")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))


def score(output: Path) -> None:
    """Evaluates a loss that is a mean over a process's own rows, of which processes hold unequally many."""
    args = build_arguments(output)
    held_out = VisionTextDataset(build_rows(5), query_column="ask", num_frames=4)
    metrics = VLJepaTrainer(build_model(loss="l2"), args, held_out, held_out, build_processor()).evaluate()
    output.mkdir(parents=True, exist_ok=True)
    (output / f"scores-{args.process_index}.json").write_text(json.dumps(metrics))


def run_both_ways(output: Path) -> None:
    """What one of two processes does."""
    score(output)
    for case in CASES:
        run(output / case / "plain", case, 4, None)
        run(output / case / "cached", case, 4, 3)
