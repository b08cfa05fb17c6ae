"""The package as a whole: what importing it does, and that it minds its own business."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, IJepaModel

import hf_jepa
from hf_jepa.methods import METHODS, register_method
from hf_jepa.positions import sincos_2d


def test_import_is_light():
    heavy = ("torchvision", "peft", "timm", "matplotlib", "datasets", "sklearn", "hf_jepa.training")
    program = f"import sys, hf_jepa; print([name for name in {heavy} if name in sys.modules])"
    baseline = "import sys, transformers, torch; from transformers import PreTrainedModel; " + program.split("; ")[1]
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    plain = subprocess.run(
        [sys.executable, "-c", baseline.replace("hf_jepa.training", "none")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert set(eval(loaded)) <= set(eval(plain))


def test_public_names_resolve():
    for name in hf_jepa.__all__:
        assert getattr(hf_jepa, name) is not None
    with pytest.raises(AttributeError, match="NoSuchModel"):
        _ = hf_jepa.NoSuchModel


def test_in_tree_types_are_not_hijacked():
    for method in METHODS.values():
        register_method(method)
    assert type(AutoModel.from_config(AutoConfig.for_model("ijepa", num_hidden_layers=1))) is IJepaModel


def test_position_table_by_hand():
    table = sincos_2d((3, 3), 8)
    expected = torch.tensor([0.841471, 0.01, 0.540302, 0.99995, 0, 0, 1, 1])
    assert torch.allclose(table[1], expected, atol=1e-5)
    assert torch.allclose(table[3], expected.roll(4), atol=1e-5)
    # Row-major on any grid: moving one row down in a 2 x 5 grid changes the second half only.
    wide = sincos_2d((2, 5), 8)
    assert torch.equal(wide[2, :4], wide[7, :4])
    assert not torch.equal(wide[2, 4:], wide[7, 4:])
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos_2d((2, 2), 6)
