"""
What a recipe would do, seen without a GPU: everything is built, one batch goes through the model once, and sizes are
counted. Models of more than `MOST_PARAMETERS` are built without weights: the pass then gives shapes and nothing else.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..data import MixedVideoDataset
from ..training import JepaTrainer
from .cost import H100, Work, memory, seconds
from .counting import count_work, enable_checkpointing, fake_mode, map_tensors
from .own_data import load_rows
from .program import Program, RunArguments
from .recipes import given_values, parse_recipe, resolved

MOST_PARAMETERS = 20_000_000
SAMPLES = 2
# What a machine without a GPU refuses, and what would make a batch of two something else.
ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
    "torch_compile": False,
    "fsdp": None,
    "fsdp_config": None,
    "deepspeed": None,
    "push_to_hub": False,
    "report_to": "none",
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": None,
    "dataloader_persistent_workers": False,
    "resume_from_checkpoint": None,
    "start_from_checkpoint": None,
    "latent_cache": None,
}


def dry_run(program: Program, argv: list[str]) -> None:
    """Prints what [`report_on`] finds, as YAML, and writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        report = report_on(program, argv, folder)
    print(yaml.safe_dump(report, sort_keys=False, width=1000), end="")


def report_on(program: Program, argv: list[str], folder: str) -> dict[str, Any]:
    """The resolved recipe, what is not here, sizes, steps, and what one forward pass gave."""
    types = (*program.argument_types, RunArguments)
    given = given_values(types, argv)
    known = {name for cls in program.argument_types for name in cls.__dataclass_fields__}
    forced = {name: value for name, value in ON_CPU.items() if name in known}
    batch_size = given.get("per_device_train_batch_size", TrainingArguments.per_device_train_batch_size)
    forced["output_dir"] = folder
    forced["per_device_train_batch_size"] = min(SAMPLES, batch_size)
    *parts, _ = parse_recipe(types, argv, **forced)
    total = batch_size * given.get("gradient_accumulation_steps", 1) * parts[-1].world_size
    missing = []
    try:
        rows, is_here = load_rows(program, parts, argv), True
    except (ValueError, OSError) as error:
        if all_on_disk(parts):
            raise
        missing.append(f"data, so that made-up rows stand in: {one_line(error)}")
        rows, is_here = program.stand_in_rows(*parts), False
    shown = {name: value for name, value in resolved(*parts).items() if name not in forced}
    shown |= {name: value for name, value in given.items() if name in forced}
    report: dict[str, Any] = {"recipe": shown}
    model = None
    try:
        model = build(program, parts, rows)
        trainer = program.build_trainer(*parts, rows, model)
    except OSError as error:
        missing.append(f"model, of {', '.join(sources_of(parts[0]))}: {one_line(error)}")
    if missing:
        report["not_here"] = missing
    if model is not None:
        report |= sizes(model) | pass_once(trainer, batch_size, bool(given.get("bf16") or given.get("fp16")))
        report |= program.count(trainer, batch_size, *parts) or {}
        report["training_rows"] = count(trainer.train_dataset) if is_here else None
    report |= {"processes": parts[-1].world_size, "global_batch_size": total}
    report["optimizer_steps"] = steps_of(parts[-1], report.get("training_rows"), total)
    if model is not None and report["optimizer_steps"] and isinstance(trainer, JepaTrainer):
        trainer.check_warmup(report["optimizer_steps"])
    return report


def all_on_disk(parts: list[Any]) -> bool:
    """Whether every dataset that a recipe names exists on this machine, so that what fails is the recipe's."""
    named = [getattr(part, "dataset", None) for part in parts]
    names = [name for value in named if value for name in (value if isinstance(value, list) else [value])]
    return bool(names) and all(Path(name).exists() for name in names)


def sources_of(args: Any) -> list[str]:
    """The weights and tokenizers that a recipe names."""
    names = (
        "from_encoder",
        "teacher",
        "checkpoint",
        "model",
        "tokenizer",
        "vision",
        "predictor",
        "y_encoder",
        "y_decoder",
    )
    return [value for name in names if isinstance(value := getattr(args, name, None), str)]


def one_line(error: Exception) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())


def build(program: Program, parts: list[Any], rows: Any) -> PreTrainedModel:
    """The model: without weights if it is large, else as a run would build it."""
    try:
        with torch.device("meta"):
            model = program.build_model(*parts, rows)
    except OSError:
        raise
    except (RuntimeError, NotImplementedError):
        # Weights that are loaded, and a few encoders, cannot be built so.
        return program.build_model(*parts, rows)
    if sum(parameter.numel() for parameter in model.parameters()) <= MOST_PARAMETERS:
        return program.build_model(*parts, rows)
    replace_by_shapes(model)
    # A trainer moves its model to the device; one without weights cannot be moved.
    args = parts[-1]
    args.__class__ = type(type(args).__name__, (type(args),), {"place_model_on_device": False})
    return model


def replace_by_shapes(model: PreTrainedModel) -> None:
    """Parameters and buffers of the meta device become shapes that pass for tensors of the CPU, ties included."""
    mode, shapes = FakeTensorMode(), {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if tensor not in shapes:
                    with mode:
                        shapes[tensor] = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        shapes[tensor] = torch.nn.Parameter(shapes[tensor], tensor.requires_grad)
                table[name] = shapes[tensor]


def sizes(model: PreTrainedModel) -> dict[str, Any]:
    """Parameters by part, and the least memory that they take in float32 with gradients and two moments of Adam."""
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    whole = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "parameters": parts,
        "trainable_parameters": trainable,
        "memory_mib": {"weights_gradients_optimizer": round(4 * (whole + 3 * trainable) / 2**20)},
    }


def first_batch(trainer: Trainer) -> tuple[dict[str, Any], int]:
    """A batch with every size of view, and how many samples it has: of a mixture, one of each length of clip."""
    data = trainer.train_dataset
    if not isinstance(data, MixedVideoDataset):
        return next(iter(trainer.get_train_dataloader())), trainer.args.per_device_train_batch_size
    by_length = {part.clip_sampler.num_frames: part for part in data.datasets if hasattr(part, "clip_sampler")}
    if not by_length:
        return next(iter(trainer.get_train_dataloader())), trainer.args.per_device_train_batch_size
    samples = [{**part[0], "draw": draw} for draw, part in enumerate(by_length.values())]
    return trainer.data_collator(samples), len(samples)


def pass_once(trainer: Trainer, batch_size: int, half: bool) -> dict[str, Any]:
    """
    The forward pass of a training step: the batch's shapes, the loss if computed, and what a step costs.

    Args:
        trainer (`Trainer`): with the model.
        batch_size (`int`): of the recipe, per process.
        half (`bool`): whether the recipe computes in 16 bits, as the pass then does too if nothing is computed.
    """
    model = trainer.model.train()
    is_computed = fake_mode(model) is None
    batch, samples = first_batch(trainer)
    shapes = map_tensors(dict(batch), lambda tensor: "x".join(map(str, tensor.shape)))
    if trainer.args.gradient_checkpointing:
        enable_checkpointing(model)
    half = half and not is_computed
    work, loss = count_work(model, lambda inputs: trainer.compute_loss(model, inputs), batch, samples, half)
    how = "computed on the CPU in float32, with the weights that a run starts from"
    if not is_computed:
        how = f"shapes only, without weights (more than {MOST_PARAMETERS:,} parameters): nothing was computed"
    return {
        "forward_pass": {
            "how": how,
            "batch": shapes,
            "loss": round(loss.item(), 6) if is_computed else None,
            "activations_mib_per_device": round(work.activation_bytes * batch_size / 2**20),
        },
        "cost": {"counted": asdict(work), **cost_table(work, batch_size, half)},
    }


def cost_table(work: Work, batch_size: int, half: bool) -> dict[str, Any]:
    """What [`~hf_jepa.programs.cost`] makes of the counts, for a few numbers of devices, rounded."""
    table = {}
    for devices, sharding in ((1, "ddp"), (8, "ddp"), (8, "fsdp2"), (64, "fsdp2")):
        place = (work, batch_size, devices, sharding)
        table[f"{devices} {sharding}"] = {
            "memory_gib": float(f"{memory(*place, half)['total'] / 2**30:.3g}"),
            "seconds_per_pass": float(f"{seconds(*place, H100, half)['step']:.3g}"),
        }
    return {
        "gflops_per_sample": float(f"{work.step_flops / 1e9:.4g}"),
        "assumes": f"{H100.name}, {H100.utilization:.0%} of its {H100.peak_flops / 1e12:.0f} TFLOP/s, AdamW, data "
        f"always ready; activations in {'bfloat16 where autocast has them' if half else 'float32'}",
        "devices": table,
    }


def count(dataset: Any) -> int | None:
    """Rows, where they can be counted."""
    return len(dataset) if hasattr(dataset, "__len__") else None


def steps_of(args: TrainingArguments, rows: int | None, batch_size: int) -> int | None:
    """Optimizer steps of the run; None where rows are not known."""
    if args.max_steps > 0:
        return args.max_steps
    return None if rows is None else int(rows // batch_size * args.num_train_epochs)
