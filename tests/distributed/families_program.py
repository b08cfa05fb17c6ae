"""
One process of tiny runs, one per family; `test_families.py` starts it alone, or as one of several that train together
under DDP or FSDP2. Writes logs, weights and what a release holds.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sharded_program import pretend_gpus
from transformers import (
    Data2VecVisionConfig,
    IJepaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TimmWrapperConfig,
    ViTConfig,
)

import hf_jepa
from hf_jepa.data import MaskCollator, MultiViewCollator, VideoMaskCollator, VisionTextDataset
from hf_jepa.masking import (
    LONG_RANGE,
    SHORT_RANGE,
    BlockwiseMaskGenerator,
    MultiBlock3DMaskGenerator,
    MultiBlockMaskGenerator,
)
from hf_jepa.models.data2vec_vision.configuration_data2vec_vision import ENCODER_DEFAULTS
from tests.vl_jepa_world import build_arguments as vl_arguments
from tests.vl_jepa_world import build_model as build_vl
from tests.vl_jepa_world import build_processor, build_rows
from trainers.worlds import nl_regex

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
BATCH = 8
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 48, "patch_size": 8}
FSDP = {
    "fsdp": True,
    "fsdp_config": {
        "fsdp_version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
    },
}


class Noise:
    """Labelled samples of one shape, the same on every process."""

    def __init__(self, name: str, *shape: int) -> None:
        self.name, self.shape = name, shape

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = torch.randn(self.shape, generator=torch.Generator().manual_seed(index)) + index % 2
        return {self.name: sample, "label": index % 2}


def settings(output: Path, sharded: bool, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "max_steps": 3,
        "per_device_train_batch_size": BATCH // PROCESSES,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **(FSDP if sharded else {}),
        **options,
    }


def image_trainer(model: Any, collator: Any, output: Path, sharded: bool, shape: tuple[int, ...] = (3, 48, 48)) -> Any:
    name = model.main_input_name
    probes = shape[-3:] if name == "pixel_values" else shape
    arguments = {"warmup_steps": 1, "probe_every_steps": 3, "probe_num_neighbors": 3}
    args = hf_jepa.JepaTrainingArguments(**settings(output, sharded, **arguments))
    rows = Noise(name, *probes)
    return hf_jepa.JepaTrainer(model, args, collator, Noise(name, *shape), eval_dataset=rows, probe_train_dataset=rows)


def ijepa(output: Path, sharded: bool, **fields: Any) -> Any:
    config = hf_jepa.IJepaPreTrainingConfig(
        encoder_config=IJepaConfig(**VIT, **IMAGE),
        predictor_hidden_size=16,
        predictor_num_hidden_layers=1,
        initialization="fan_in",
        **fields,
    )
    collator = MaskCollator(MultiBlockMaskGenerator(48, 8, min_keep=2, mode="balanced"))
    return image_trainer(hf_jepa.IJepaForPreTraining(config), collator, output, sharded)


def cjepa(output: Path, sharded: bool) -> Any:
    return ijepa(output, sharded, regularizer="vicreg")


def data2vec(output: Path, sharded: bool) -> Any:
    encoder = Data2VecVisionConfig(**{**ENCODER_DEFAULTS, **VIT, **IMAGE, "drop_path_rate": 0.0})
    config = hf_jepa.Data2VecVisionPreTrainingConfig(encoder_config=encoder, target_layers=1)
    collator = MaskCollator(BlockwiseMaskGenerator(48, 8, min_block=4, mode="balanced"))
    return image_trainer(hf_jepa.Data2VecVisionForPreTraining(config), collator, output, sharded)


def lejepa(output: Path, sharded: bool, encoder: Any = None, **fields: Any) -> Any:
    config = hf_jepa.LeJepaPreTrainingConfig(
        encoder_config=encoder or ViTConfig(**VIT, **IMAGE),
        embedding_size=8,
        projector_hidden_size=16,
        projection_size=4,
        num_slices=16,
        image_size=48,
        **fields,
    )
    model = hf_jepa.LeJepaForPreTraining(config)
    return image_trainer(model, MultiViewCollator(), output, sharded, (2, 3, 48, 48))


def lejepa_timm(output: Path, sharded: bool) -> Any:
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return lejepa(output, sharded, TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=sizes))


def lejepa_averaged(output: Path, sharded: bool) -> Any:
    return lejepa(output, sharded, target="ema", centre="global_views")


def vjepa2(output: Path, sharded: bool) -> Any:
    sizes = {"crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "hidden_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "pred_hidden_size": 24, "pred_num_hidden_layers": 1}
    config = hf_jepa.VJepa2PreTrainingConfig.from_size(
        "tiny", "2", **sizes, pred_num_attention_heads=2, initializer_range=0.2
    )
    masks = [MultiBlock3DMaskGenerator(32, 8, 4, mode="balanced", **recipe) for recipe in (SHORT_RANGE, LONG_RANGE)]
    model = hf_jepa.VJepa2ForPreTraining(config)
    return image_trainer(model, VideoMaskCollator(masks), output, sharded, (4, 3, 32, 32))


def llm_jepa(output: Path, sharded: bool) -> Any:
    rows, tokenizer = nl_regex.make_splits((24,), seed=1)[0], nl_regex.build_tokenizer()
    config = LlamaConfig(**VIT, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model = hf_jepa.LLMJepaForCausalLM.from_decoder(LlamaForCausalLM(config), num_predictor_tokens=1)
    options = {"lr_scheduler_type": "constant", "jepa_dropout": 0.3, "per_device_eval_batch_size": 2}
    args = hf_jepa.LLMJepaTrainingArguments(**settings(output, sharded, **options))
    return hf_jepa.LLMJepaTrainer(model, args, rows, rows[:5], tokenizer)


def vl_jepa(output: Path, sharded: bool) -> Any:
    args = vl_arguments(output, **settings(output, sharded, per_device_eval_batch_size=3))
    datasets = [VisionTextDataset(build_rows(count), query_column="ask", num_frames=4) for count in (24, 7)]
    return hf_jepa.VLJepaTrainer(build_vl(), args, *datasets, build_processor())


FAMILIES: dict[str, Callable[[Path, bool], Any]] = {
    each.__name__: each
    for each in (ijepa, cjepa, data2vec, lejepa, lejepa_timm, lejepa_averaged, vjepa2, llm_jepa, vl_jepa)
}


def run(output: Path, family: str, sharded: bool) -> None:
    torch.manual_seed(0)
    if sharded and family == "vl_jepa":
        with pytest.raises(ValueError, match="Use DDP or DeepSpeed ZeRO-2"):
            vl_jepa(output, sharded)
        return
    trainer = FAMILIES[family](output, sharded)
    assert trainer.is_fsdp_enabled == sharded
    trainer.train()
    trainer.evaluate()
    if sharded:
        check_shards(trainer.model)
    folder = trainer.write_release()
    if trainer.is_world_process_zero():
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))
        weights = {}
        for file in folder.rglob("*.safetensors"):
            weights |= {f"{file.parent.name}/{name}": weight for name, weight in load_file(file).items()}
        save_file(weights, output / "weights.safetensors")


def check_shards(model: torch.nn.Module) -> None:
    """Layers are cut up, and a target exactly as its encoder."""
    cut = {name for name, weight in model.named_parameters() if hasattr(weight, "full_tensor")}
    assert cut
    of_target = {name.removeprefix("target_") for name in cut if name.startswith("target_encoder")}
    if model.has_target_encoder:
        assert of_target == {name for name in cut if name.startswith("encoder")} != set()


if __name__ == "__main__":
    sharded = sys.argv[2] == "fsdp2"
    if sharded:
        pretend_gpus()
    for name in sys.argv[3:] or FAMILIES:
        run(Path(sys.argv[1]) / name, name, sharded)
    if PROCESSES > 1:
        torch.distributed.barrier()
        # What holds the group has to go first, else a process may abort as it exits (pytorch issue 190489).
        gc.collect()
        torch.distributed.destroy_process_group()
