"""A tiny training run, of one process or one of two; see `test_ddp.py`. Writes weights and logs.

Once the run is over it is made again from its second-last checkpoint.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_jepa import JepaTrainer, JepaTrainingArguments
from hf_jepa.data import MaskCollator
from hf_jepa.masking import MultiBlockMaskGenerator
from tests.tiny_models import tiny_ijepa


class Pictures:
    """Labelled noise; with a random shift for training, so that augmentation depends on the draw."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def __len__(self) -> int:
        return 26

    def __getitem__(self, index: int) -> dict[str, object]:
        image = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(index)) + index % 2
        return {"pixel_values": image + self.shift * torch.rand(()), "label": index % 2}


class Counted(JepaTrainer):
    """Keeps the gradients of the first update."""

    gradients: dict[str, torch.Tensor] | None = None

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: object = None) -> object:
        if self.gradients is None:
            named = self.model.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        return super()._get_grad_norm(model, grad_norm)


def train(output: Path, batch_size: int, accumulation: int, name: str, checkpoint: Path | None) -> None:
    # Another start, which the checkpoint has to replace.
    torch.manual_seed(int(checkpoint is not None))
    model = tiny_ijepa({"num_hidden_layers": 2, "image_size": 48}, initialization="fan_in")
    args = JepaTrainingArguments(
        output_dir=str(output),
        max_steps=5,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        warmup_steps=1,
        logging_steps=1,
        probe_every_steps=5,
        probe_num_neighbors=3,
        # Inside the second epoch of three updates.
        save_strategy="steps",
        save_steps=4,
        save_total_limit=2,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    pictures = Pictures(shift=0.0)
    trainer = Counted(
        model=model,
        args=args,
        data_collator=MaskCollator(MultiBlockMaskGenerator(48, 8, min_keep=2, mode="balanced")),
        train_dataset=Pictures(shift=1.0),
        # An odd number, which two processes cannot share evenly.
        eval_dataset=torch.utils.data.Subset(pictures, range(9)),
        probe_train_dataset=pictures,
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    name = f"{name}-{args.process_index}"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, output / f"{name}.safetensors")
    save_file(trainer.gradients, output / f"{name}-gradients.safetensors")
    (output / f"{name}.json").write_text(json.dumps(trainer.state.log_history))


def train_and_resume(output: Path, batch_size: int, accumulation: int, *others: Path) -> None:
    """Checkpoints of runs on other numbers of processes may follow."""
    runs = {"whole": None, "resumed": output / "checkpoint-4", **{f"from-{path.parent.name}": path for path in others}}
    for name, checkpoint in runs.items():
        train(output, batch_size, accumulation, name, checkpoint)
