"""
FSDP2 over two gloo processes: the sharded model's loss and gradients equal one process on the joint batch, and it is
gathered for a release.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from hf_jepa import LLMJepaForCausalLM
from hf_jepa.masking import pack_examples
from hf_jepa.training.checkpoints import gather_whole_model
from tests.processes import run_in_two_processes

FAMILIES = {
    "llama": {"model_type": "llama"},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "adapted": {"model_type": "llama", "tie_word_embeddings": True},
    # Masks by kind of layer.
    "gemma3": {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
}


def build(family: str) -> LLMJepaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 5, "pad_token_id": 0}
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes, **FAMILIES[family]))
    model = LLMJepaForCausalLM.from_decoder(decoder, num_predictor_tokens=2, predictor_head="linear")
    if family == "adapted":
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model.add_decoder_adapter(lora)
    return model


def examples() -> list[dict]:
    generator = torch.Generator().manual_seed(7)
    made = []
    # The second process has one pair for the first's two.
    for text, response, code in ((4, 8, 7), (9, 3, 5), (7, 4, None), (5, 5, 4)):
        ids = torch.randint(3, 60, (text + response,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * text + ids[text:], "text_length": text})
        if code is not None:
            made[-1]["code_ids"] = torch.randint(3, 60, (code,), generator=generator).tolist()
    return made


def worker(folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank = dist.get_rank()
    whole = pack_examples(examples(), 2, "shared")
    own = pack_examples(examples()[2 * rank : 2 * rank + 2], 2, "shared")
    for family in FAMILIES:
        model, mesh = build(family), init_device_mesh("cpu", (2,))
        for layer in model.encoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        counts = {"num_items_in_batch": len(whole["label_index"]), "num_pairs_in_batch": len(whole["code_index"])}
        loss = model(**own, **counts).loss
        # FSDP averages gradients, as DDP does; the trainer scales by the processes' number for that.
        (2 * loss).backward()
        trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        gradients = {name: weight.grad.full_tensor() for name, weight in trained}
        torch.save((loss.detach(), gradients), folder / f"{family}-{rank}.pt")
        model.causal_lm.generation_config.eos_token_id = 7
        gathered = gather_whole_model(model, rank == 0)
        assert (gathered is None) == (rank == 1)
        if gathered is not None:
            gathered.save_pretrained(folder / family)
            # Where the published model stops is in no state dict.
            assert gathered.causal_lm.generation_config.eos_token_id == 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_in_two_processes(worker, folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_gradients_are_those_of_one_process(folder, family):
    model = build(family)
    expected = model(**pack_examples(examples(), 2, "shared")).loss
    expected.backward()
    parts = [torch.load(folder / f"{family}-{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], expected.detach(), rtol=1e-6, atol=0)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(weights) == set(parts[0][1])
    for name, found in parts[0][1].items():
        assert (found - weights[name].grad).abs().max() <= 1e-5 * weights[name].grad.abs().max(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_model_is_gathered_whole(folder, family):
    expected = build(family).state_dict()
    whole = LLMJepaForCausalLM.from_pretrained(folder / family)
    assert whole.state_dict().keys() == expected.keys()
    assert all(torch.equal(expected[name], value) for name, value in whole.state_dict().items())
