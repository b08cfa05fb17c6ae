"""Tiny video runs, of one process or one of two; see `test_vjepa_ddp.py`. Writes weights and logs.

Once a run is over it is made again from its second-last checkpoint.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_jepa import JepaTrainingArguments, VJepa2ForPreTraining, VJepa2PreTrainingConfig
from hf_jepa.data import VideoMaskCollator
from hf_jepa.masking import IMAGE_BLOCKS, LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator
from tests.distributed.training_runs import Counted
from tests.tiny_models import TINY_VJEPA

# Frames of the clips of one optimizer step, in order. "clips": all alike. "mixed": V-JEPA 2.1, each of two processes
# has a clip and an image. "split": one has the images and the other the clips, as the released code divides them.
CASES = {"clips": [4, 4, 4, 4], "mixed": [1, 4, 4, 1], "split": [1, 1, 4, 4]}


class Clips:
    """Noise with a random shift, so that augmentation depends on the draw."""

    def __init__(self, frames: list[int]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return 4 * 5

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        frames = self.frames[index % len(self.frames)]
        clip = torch.randn(frames, 3, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"pixel_values_videos": clip + torch.rand(())}


def train(output: Path, case: str, resume: bool) -> None:
    # Another start, which the checkpoint has to replace.
    torch.manual_seed(int(resume))
    sizes = {**TINY_VJEPA, "initializer_range": 0.2}
    generation, levels = ("2", {}) if case == "clips" else ("2.1", {"hierarchical_layers": [0, 1]})
    model = VJepa2ForPreTraining(VJepa2PreTrainingConfig.from_size("tiny", generation, **sizes, **levels))
    masks = [MultiBlock3DMaskGenerator(32, 8, 4, mode="balanced", **recipe) for recipe in (SHORT_RANGE, LONG_RANGE)]
    if case != "clips":
        masks = {4: masks, 1: [MultiBlock3DMaskGenerator(32, 8, mode="balanced", **IMAGE_BLOCKS)]}
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = processes if case == "clips" else 1
    args = JepaTrainingArguments(
        output_dir=str(output),
        max_steps=5,
        per_device_train_batch_size=4 // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        warmup_steps=1,
        context_loss_full_step=3,
        max_grad_norm=1.0,
        clip_separately=True,
        clip_after_steps=2,
        logging_steps=1,
        save_strategy="steps",
        save_steps=4,
        save_total_limit=2,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Counted(model=model, args=args, data_collator=VideoMaskCollator(masks), train_dataset=Clips(CASES[case]))
    trainer.train(resume_from_checkpoint=str(output / "checkpoint-4") if resume else None)
    name = f"{'resumed' if resume else 'whole'}-{args.process_index}"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, output / f"{name}.safetensors")
    save_file(trainer.gradients, output / f"{name}-gradients.safetensors")
    (output / f"{name}.json").write_text(json.dumps(trainer.state.log_history))


def run_all(output: Path) -> None:
    for name in CASES:
        for again in (False, True):
            train(output / name, name, resume=again)
