"""The cost model of `--dry_run`: counts against torch's own counter, memory against what training holds."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import IJepaConfig, LlamaConfig, LlamaForCausalLM

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, LLMJepaForCausalLM
from hf_jepa.programs.cost import H100, Device, Work, memory, seconds, traffic
from hf_jepa.programs.counting import CheckpointedLayers, ForwardCounter, KeptTensors, gathered_parameters

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}


def ijepa() -> torch.nn.Module:
    torch.manual_seed(0)
    encoder = IJepaConfig(**SIZES, image_size=64, patch_size=8)
    config = IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=32, predictor_num_hidden_layers=2)
    return IJepaForPreTraining(config).train()


def llm_jepa() -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, vocab_size=100)
    return LLMJepaForCausalLM.from_decoder(LlamaForCausalLM(config), num_predictor_tokens=0).train()


def pictures(count: int) -> dict:
    masks = {
        "context_mask": [torch.arange(30)],
        "target_mask": [torch.arange(40 + 5 * k, 45 + 5 * k) for k in range(4)],
    }
    masks = {name: [mask.expand(count, -1) for mask in group] for name, group in masks.items()}
    return {"pixel_values": torch.randn(count, 3, 64, 64), **masks}


def texts(count: int) -> dict:
    ids = torch.arange(3, 67).expand(count, -1)
    return {"input_ids": ids, "labels": ids}


FAMILIES = {"ijepa": (ijepa, pictures), "llm": (lambda: llm_jepa().causal_lm, texts)}


def count(model: torch.nn.Module, batch: dict) -> tuple[ForwardCounter, KeptTensors, CheckpointedLayers]:
    counter = ForwardCounter(model.parameters())
    kept = KeptTensors(counter.weights)
    checkpointed = CheckpointedLayers(model, counter)
    with kept, counter:
        loss = model(**batch).loss
    assert loss.requires_grad
    return counter, kept, checkpointed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_torchs_own_count(family, checkpointing):
    build, make_batch = FAMILIES[family]
    model, batch = build(), make_batch(2)
    if checkpointing:
        model.gradient_checkpointing_enable()
    counter, _, checkpointed = count(model, batch)
    # torch does not count the kernel that CPUs take; written out, attention is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as reference:
        loss = model(**batch).loss
        assert counter.flops == reference.get_total_flops()
        loss.backward()
    work = Work(0, 0, counter.flops, counter.tracked, 0.0, recomputed_flops=checkpointed.flops)
    assert (checkpointed.flops > 0.5 * counter.tracked) == checkpointing
    # A backward pass has no gradient of pixels to make, and a checkpoint's second pass stops before its last product.
    assert 1 <= work.step_flops / reference.get_total_flops() < (1.1 if checkpointing else 1.05)


def test_a_target_is_not_differentiated():
    counter, _, _ = count(ijepa(), pictures(2))
    of_target = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), of_target, torch.no_grad():
        ijepa().target_encoder(pictures(2)["pixel_values"])
    assert counter.flops - counter.tracked == of_target.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("half", [False, True])
def test_activations_grow_with_the_batch(family, half):
    build, make_batch = FAMILIES[family]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        few, many = (count(build(), make_batch(size))[1].nbytes / size for size in (2, 8))
    assert many == pytest.approx(few, rel=0.02)


def test_activations_of_a_layer_are_the_known_sum():
    model, batch = FAMILIES["ijepa"][0]().encoder, torch.randn(4, 3, 64, 64)
    found = []
    for layers in (2, 4):
        model.layers = model.layers[:layers] if layers < len(model.layers) else ijepa().encoder.layers
        counter = ForwardCounter(model.parameters())
        kept = KeptTensors(counter.weights)
        with kept, counter:
            model(batch)
        found.append(kept.nbytes)
    # float32, per token and width: norm inputs and outputs 4, queries, keys and values 3, attention 1, the wide layer
    # before and after its activation 2 * 4; besides, the log-sums of attention and the norms' statistics.
    known = 2 * 4 * 64 * 32 * 4 * (4 + 3 + 1 + 2 * 4)
    assert found[1] - found[0] == pytest.approx(known, rel=0.05)


def test_model_states_are_what_a_step_holds():
    model = ijepa()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(**pictures(2)).loss.backward()
    optimizer.step()
    held = {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "gradients": sum(parameter.grad.nbytes for parameter in trained),
        "optimizer": sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim),
    }
    count = sum(parameter.numel() for parameter in trained)
    work = Work(count, sum(parameter.numel() for parameter in model.parameters()) - count, 0, 0, 10.0)
    found = memory(work, 3, 1, "ddp", half=False)
    assert {name: found[name] for name in held} == held
    assert found["total"] == sum(held.values()) + 30
    # The wide layers of encoder and predictor are gathered one after another.
    assert gathered_parameters(model) < sum(parameter.numel() for parameter in model.parameters()) / 1.5


def test_what_is_cut_up():
    work = Work(1000, 500, 0, 0, 0.0, gathered=100)
    assert memory(work, 1, 8, "fsdp2") == {
        "weights": 750,
        "gradients": 500,
        "optimizer": 1000,
        "buffers": 200,
        "half_copies": 0,
        "activations": 0,
        "total": 2450,
    }
    assert memory(work, 1, 8, "zero2")["weights"] == memory(work, 1, 8, "ddp")["weights"] == 6000
    assert memory(work, 1, 8, "zero2")["optimizer"] == 1000
    with pytest.raises(ValueError, match="'zero3'; choose one of ddp, zero2, fsdp2"):
        memory(work, 1, 8, "zero3")


def test_time_is_the_longer_of_compute_and_communication():
    work = Work(int(1e9), 0, 1e12, 1e12, 0.0)
    assert traffic(work, 1, "ddp") == 0
    alone, many = (seconds(work, 1, devices, "ddp", H100) for devices in (1, 16))
    assert alone["step"] == alone["compute"] == pytest.approx(3e12 / (989e12 * 0.4))
    assert many["step"] == many["communication"] == pytest.approx(15 / 16 * 8e9 / 50e9)


def test_time_follows_samples_passes_and_links():
    work = Work(int(1e9), int(5e8), 2e12, 1e12, 0.0, recomputed_flops=5e11)
    device = Device("plain", 1e9, 1e12, 0.5, per_node=8, node_link=1e10, network_link=1e9)
    one = seconds(work, 1, 1, "ddp", device)
    # Forward once, twice as much backward for what is differentiated, and what is done again.
    assert one == {"compute": pytest.approx(4.5e12 / 5e11), "communication": 0, "step": one["compute"]}
    assert seconds(work, 6, 1, "ddp", device, passes=2)["compute"] == pytest.approx(12 * one["compute"])
    inside, across = (seconds(work, 1, devices, "ddp", device)["communication"] for devices in (8, 9))
    assert inside == pytest.approx(7 / 8 * 8e9 / 1e10)
    assert across == pytest.approx(8 / 9 * 8e9 / 1e9)
    # Weights are gathered in every pass, gradients under DDP averaged once; in 16 bits half of it is sent.
    sharded, full = (traffic(work, 8, "fsdp2", half=half, passes=3) for half in (True, False))
    assert full == 2 * sharded == 3 * traffic(work, 8, "fsdp2", half=False)
    assert traffic(work, 8, "ddp", passes=3) == traffic(work, 8, "ddp")
