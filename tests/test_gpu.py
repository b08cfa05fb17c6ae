"""What a GPU computes: the same as a CPU, without waiting for it, in half precision too. Run by `pytest -m gpu`."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, IJepaConfig, ViTConfig

import hf_jepa
from hf_jepa import JepaTrainer, JepaTrainingArguments
from hf_jepa.data import VideoMaskCollator
from hf_jepa.masking import LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator, pack_examples
from hf_jepa.objectives import info_nce, rdmreg, sigreg, vicreg

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

IMAGE_FAMILIES = ("IJepa", "CJepa")
VIDEO_FAMILIES = {"VJepa": "1", "VJepa2": "2", "VJepa2.1": "2.1"}
VIEW_FAMILIES = ("LeJepa", "RectifiedLpJepa", "VICReg")
FAMILIES = (*IMAGE_FAMILIES, *VIDEO_FAMILIES, *VIEW_FAMILIES, "LLMJepa")


def split(tokens: int, *sizes: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
    orders = [torch.stack([torch.randperm(tokens) for _ in range(4)]) for _ in sizes]
    pairs = list(zip(orders, sizes, strict=True))
    return {
        "context_mask": [order[:, :kept].sort().values for order, (kept, _) in pairs],
        "target_mask": [order[:, tokens - hidden :].sort().values for order, (_, hidden) in pairs],
    }


def image_world(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    encoder = IJepaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32, patch_size=4
    )
    config = getattr(hf_jepa, f"{name}PreTrainingConfig")(
        encoder_config=encoder, predictor_hidden_size=32, predictor_num_hidden_layers=1
    )
    masks = split(64, (20, 10), (20, 10))
    return getattr(hf_jepa, f"{name}ForPreTraining")(config), {"pixel_values": torch.randn(4, 3, 32, 32), **masks}


def video_world(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    generation = VIDEO_FAMILIES[name]
    family = hf_jepa.VJepaForPreTraining if generation == "1" else hf_jepa.VJepa2ForPreTraining
    levels = {"hierarchical_layers": [0, 1]} if generation == "2.1" else {}
    config = family.config_class.from_size(
        "tiny",
        generation,
        crop_size=16,
        patch_size=4,
        frames_per_clip=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        pred_hidden_size=36,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=2,
        initializer_range=0.1,
        **levels,
    )
    return family(config), {"pixel_values_videos": torch.randn(4, 8, 3, 16, 16), **split(64, (20, 40), (9, 50))}


def view_world(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    encoder = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    config = getattr(hf_jepa, f"{name}PreTrainingConfig")(encoder_config=encoder, image_size=32)
    return getattr(hf_jepa, f"{name}ForPreTraining")(config), {"pixel_values": torch.randn(4, 2, 3, 32, 32)}


def language_world(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=60,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = hf_jepa.LLMJepaForCausalLM.from_decoder(AutoModelForCausalLM.from_config(config), num_predictor_tokens=1)
    examples = []
    for text, response, code in ((4, 8, 7), (9, 3, 5), (7, 4, 6)):
        ids = torch.randint(3, 60, (text + response,)).tolist()
        labels = [-100] * (text + 1) + ids[text + 1 :]
        code_ids = torch.randint(3, 60, (code,)).tolist()
        examples.append({"input_ids": ids, "labels": labels, "text_length": text, "code_ids": code_ids})
    return model, dict(pack_examples(examples, 1, "shared", row_length=64, pad_to_multiple_of=128))


def world(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    kinds = ((IMAGE_FAMILIES, image_world), (VIDEO_FAMILIES, video_world), (VIEW_FAMILIES, view_world))
    model, batch = next((build for names, build in kinds if name in names), language_world)(name)
    return model.train(), batch


def on_gpu(value: Any) -> Any:
    if isinstance(value, list):
        return [on_gpu(part) for part in value]
    return value.cuda() if isinstance(value, torch.Tensor) else value


def value_and_gradients(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model(**batch).loss
    loss.backward()
    return loss.detach().cpu(), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


# Rectified LpJEPA draws its samples on the device; the objective on given samples is compared below.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "RectifiedLpJepa"])
def test_loss_and_gradients_are_those_of_a_cpu(name):
    model, batch = world(name)
    loss, gradients = value_and_gradients(model, batch)
    model, _ = world(name)
    found, found_gradients = value_and_gradients(model.cuda(), {key: on_gpu(value) for key, value in batch.items()})
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    assert found_gradients.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        assert float((found_gradients[key] - gradient).abs().max()) <= 3e-4 * largest, key


@pytest.mark.parametrize("name", FAMILIES)
def test_no_step_waits_for_the_gpu(name):
    model, batch = world(name)
    model, batch = model.cuda(), {key: on_gpu(value) for key, value in batch.items()}
    for number in range(3):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            if hasattr(model, "target_encoder"):
                model.update_target(0.99)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["IJepa", "VJepa2", "LLMJepa"])
def test_flex_attention_trains_to_the_same_gradients(name):
    found = {}
    for implementation in ("sdpa", "flex_attention"):
        model, batch = world(name)
        model.set_attn_implementation(implementation)
        batch = {key: on_gpu(value) for key, value in batch.items()}
        found[implementation] = value_and_gradients(model.cuda(), batch)
    torch.testing.assert_close(found["flex_attention"][0], found["sdpa"][0], rtol=2e-3, atol=1e-4)
    ours, expected = (torch.cat([g.flatten() for g in gradients.values()]) for _, gradients in found.values())
    assert float((ours - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.parametrize("name", ["sigreg", "rdmreg", "vicreg", "info_nce"])
def test_objectives_are_those_of_a_cpu(name):
    first, second, samples = torch.randn(3, 64, 32)
    directions = F.normalize(torch.randn(16, 32), dim=1)
    objectives = {
        "sigreg": lambda a, b, samples, directions: sigreg(torch.stack([a, b]), directions),
        "rdmreg": lambda a, b, samples, directions: rdmreg(a + b, samples, directions),
        "vicreg": lambda a, b, samples, directions: vicreg(a, b).loss,
        "info_nce": lambda a, b, samples, directions: info_nce(a, b),
    }
    found = []
    for device in ("cpu", "cuda"):
        pair = [part.to(device).detach().requires_grad_() for part in (first, second)]
        value = objectives[name](*pair, samples.to(device), directions.to(device))
        value.backward()
        found.append((value.detach().cpu(), pair[0].grad.cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_trainer_runs_and_resumes_in_half_precision(precision, tmp_path: Path):
    class Clips(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            clip = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(index))
            return {"pixel_values_videos": clip}

    def trainer() -> JepaTrainer:
        torch.manual_seed(0)
        sizes = {"crop_size": 32, "patch_size": 4, "frames_per_clip": 8, "hidden_size": 48, "pred_hidden_size": 24}
        heads = {"num_attention_heads": 2, "pred_num_attention_heads": 2}
        depth = {"num_hidden_layers": 2, "pred_num_hidden_layers": 2}
        config = hf_jepa.VJepa2PreTrainingConfig.from_size("tiny", "2", **sizes, **heads, **depth)
        arguments = JepaTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=4,
            save_steps=2,
            logging_steps=1,
            report_to="none",
            **{precision: True},
        )
        generators = [MultiBlock3DMaskGenerator(32, 4, 8, 2, mode="balanced", **r) for r in (SHORT_RANGE, LONG_RANGE)]
        masks = VideoMaskCollator(generators)
        return JepaTrainer(hf_jepa.VJepa2ForPreTraining(config), arguments, data_collator=masks, train_dataset=Clips())

    first, resumed = trainer(), trainer()
    first.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    losses, again = (
        torch.tensor([entry["loss"] for entry in run.state.log_history if "loss" in entry]) for run in (first, resumed)
    )
    assert len(losses) == len(again) == 6
    assert losses[-1] < losses[0]
    torch.testing.assert_close(again, losses, rtol=1e-3, atol=0)


def test_a_step_compiles_whole():
    model, batch = world("VJepa2")
    batch = {key: on_gpu(value) for key, value in batch.items()}
    expected = model.cuda()(**batch).loss
    compiled = torch.compile(model, fullgraph=True)(**batch).loss
    compiled.backward()
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
