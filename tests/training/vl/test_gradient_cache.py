"""Gradient caching: the gradient of one large batch, in parts, with dropout drawn once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from hf_jepa import VLJepaModel
from hf_jepa.data import VisionTextCollator, VisionTextDataset
from hf_jepa.training.vl.gradient_cache import gradient_cached_step, split_batch
from tests import vl_jepa_world


def make_batch(count: int = 10, **options: Any) -> dict[str, torch.Tensor]:
    dataset = VisionTextDataset(vl_jepa_world.build_rows(count), query_column="ask", num_frames=4, **options)
    return VisionTextCollator(vl_jepa_world.build_processor())([dataset[index] for index in range(count)])


def gradients(model: VLJepaModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in found.items():
        assert (value - expected[name]).abs().max() <= 1e-6 * largest, name


@pytest.mark.parametrize("micro_batch", [1, 3, 10, 64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "ema", "loss": "cosine", "regularizer": "sigreg"},
        {"target": "frozen", "y_projection": "none", "projection_dim": 16, "learnable_temperature": False},
        {"target": "frozen", "loss": "l2", "regularizer": "vicreg"},
        {"freeze_vision": False},
    ],
    ids=["infonce", "ema", "frozen", "projected", "vision"],
)
def test_parts_have_the_gradient_of_the_whole(options, micro_batch):
    model = vl_jepa_world.build_model(**options).train()
    expected = model(**make_batch())
    expected.loss.backward()
    whole = gradients(model)
    if model.regularizer is not None:
        model.regularizer.global_step.zero_()
    output = gradient_cached_step(model, model, make_batch(), micro_batch, torch.Tensor.backward)
    assert_same(gradients(model), whole)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.pred_embeds, expected.pred_embeds, rtol=1e-4, atol=1e-5)
    assert torch.equal(output.target_hash, expected.target_hash)
    for name, value in expected.counts.items():
        assert output.counts[name] == value, name
    assert not output.loss.requires_grad
    assert not output.pred_embeds.requires_grad


def test_dropout_is_the_same_in_both_passes():
    model = vl_jepa_world.build_model(dropout=0.3).train()
    batch = make_batch()
    torch.manual_seed(5)
    # The same parts with one graph: what caching must not change.
    outputs = [model(**part, return_loss=False) for part in split_batch(batch, 4)]
    joined = [torch.cat([getattr(o, name) for o in outputs]) for name in ("pred_embeds", "target_embeds")]
    loss = model.compute_loss(*joined, target_hash=torch.cat([o.target_hash for o in outputs]))[0]
    loss.backward()
    expected = gradients(model)
    after = torch.rand(())
    torch.manual_seed(5)
    found = gradient_cached_step(model, model, make_batch(), 4, torch.Tensor.backward)
    assert_same(gradients(model), expected)
    torch.testing.assert_close(found.loss, loss.detach())
    # And the run goes on from where one pass would have left it.
    assert torch.equal(torch.rand(()), after)
    torch.manual_seed(6)
    gradient_cached_step(model, model, make_batch(), 4, torch.Tensor.backward)
    other = gradients(model)
    assert any((other[name] - value).abs().max() > 1e-3 for name, value in expected.items())


def test_gradients_are_scaled_and_accumulate():
    model = vl_jepa_world.build_model().train()
    gradient_cached_step(model, model, make_batch(), 4, torch.Tensor.backward)
    once = gradients(model)
    for _ in range(2):
        gradient_cached_step(model, model, make_batch(), 4, torch.Tensor.backward, scale=0.5)
    assert_same(gradients(model), once)


def test_targets_may_be_given_as_embeddings():
    model, batch = vl_jepa_world.build_model().train(), make_batch()
    embeds = torch.randn(10, 12)
    given = {name: value for name, value in batch.items() if not name.startswith("target")} | {"target_embeds": embeds}
    model(**given).loss.backward()
    expected = gradients(model)
    gradient_cached_step(model, model, dict(given), 4, torch.Tensor.backward)
    assert_same(gradients(model), expected)


def test_frozen_vision_runs_once_and_graphs_are_of_one_part(monkeypatch):
    model, batch = vl_jepa_world.build_model().train(), make_batch()
    seen: dict[str, list[int]] = {"vision": [], "graph": []}
    encode = VLJepaModel.encode_vision

    def counted(self, images=None, clips=None):
        embeds, mask = encode(self, images, clips)
        seen["vision"].append(len(embeds))
        return embeds, mask

    def note(module: LlamaDecoderLayer, args: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            seen["graph"].append(len(output))

    monkeypatch.setattr(VLJepaModel, "encode_vision", counted)
    model.predictor.layers[0].register_forward_hook(note)
    gradient_cached_step(model, model, batch, 4, torch.Tensor.backward)
    assert seen == {"vision": [4, 4, 2], "graph": [4, 4, 2]}
    assert "pixel_values" not in batch


def test_a_mixed_batch_is_cut_in_its_order():
    batch = make_batch(8)
    images, clips = batch["pixel_values"], batch["pixel_values_videos"]
    assert (len(images), len(clips)) == (5, 3)
    parts = split_batch(batch, 3)
    assert [len(part.get("pixel_values", ())) for part in parts] == [3, 2, 0]
    assert [len(part.get("pixel_values_videos", ())) for part in parts] == [0, 1, 2]
    assert torch.equal(torch.cat([part["pixel_values"] for part in parts[:2]]), images)
    assert torch.equal(torch.cat([part["pixel_values_videos"] for part in parts[1:]]), clips)
    for name in ("query_input_ids", "target_attention_mask"):
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])


@pytest.fixture
def peak_bytes(monkeypatch) -> Callable[[int], int]:
    """The most bytes that autograd keeps for backward at one time, in one cached step."""

    def measure(count: int) -> int:
        model = vl_jepa_world.build_model().train()
        tokens, width = 4, model.config.vision_hidden_size
        batch = {
            "vision_embeds": torch.randn(count, tokens, width),
            "query_input_ids": torch.randint(2, 30, (count, 3)),
            "target_input_ids": torch.randint(2, 30, (count, 3)),
        }
        parameters = {p.data_ptr() for p in model.parameters()}
        state = {"now": 0, "peak": 0}

        class Kept:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor = tensor
                self.bytes = 0 if tensor.data_ptr() in parameters else tensor.numel() * tensor.element_size()
                state["now"] += self.bytes
                state["peak"] = max(state["peak"], state["now"])

            def __del__(self) -> None:
                state["now"] -= self.bytes

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            gradient_cached_step(model, model, batch, 16, torch.Tensor.backward)
        return state["peak"]

    return measure


def test_memory_of_graphs_does_not_grow_with_the_batch(peak_bytes):
    small, large = peak_bytes(32), peak_bytes(512)
    # What grows are embeddings: a row of the loss keeps some hundred bytes, a row of the model forty thousand.
    assert (large - small) / (512 - 32) < 0.05 * small / 16
