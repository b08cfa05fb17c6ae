"""Regularizers that draw per step, in compiled and exported graphs."""

import copy

import pytest
import torch

from hf_jepa import LLMJepaForCausalLM, VLJepaModel
from hf_jepa.modeling_jepa import JepaPreTrainedModel
from hf_jepa.objectives import RDMReg, SIGReg

KINDS = {
    "sigreg": lambda: SIGReg(num_slices=8),
    "rdmreg": lambda: RDMReg(num_projections=8),
    "rdmreg_gaussian": lambda: RDMReg(p=2.0, num_projections=8, rectify=False),
    "rdmreg_svd": lambda: RDMReg(num_projections=8, projection="svd_random"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_draws_what_eager_draws(kind):
    eager = KINDS[kind]().train()
    eager.global_step.fill_(5)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for step in range(3):
        embeddings = torch.randn(2, 6, 4)
        mine, theirs = (embeddings.clone().requires_grad_() for _ in range(2))
        found, expected = compiled(mine), eager(theirs)
        torch.testing.assert_close(found, expected)
        found.backward()
        expected.backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
        assert module.global_step == eager.global_step == 6 + step
    # Out of the graph it goes on where the graph stopped.
    assert torch.equal(module(embeddings), eager(embeddings))
    module.eval()
    assert torch.equal(module(embeddings), module(embeddings))


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_graph_reads_the_step(kind):
    module, embeddings = KINDS[kind]().eval(), torch.randn(2, 6, 4)
    module.global_step.fill_(3)
    exported = torch.export.export(module, (embeddings,)).module()
    torch.testing.assert_close(exported(embeddings), module(embeddings))
    for part in (exported, module):
        part.load_state_dict({"global_step": torch.tensor(9)})
    torch.testing.assert_close(exported(embeddings), module(embeddings))


def test_models_that_are_no_single_graph_say_so():
    assert JepaPreTrainedModel._can_compile_fullgraph
    assert not LLMJepaForCausalLM._can_compile_fullgraph
    assert not VLJepaModel._can_compile_fullgraph
