"""The package as a whole: what importing it does, and that it minds its own business."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, IJepaModel

import hf_jepa
from hf_jepa.methods import METHODS, register_method
from hf_jepa.positions import sincos_2d
from tests.processes import run_script


def run(program: str) -> str:
    """What a fresh Python prints."""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_importing_the_package_or_its_command_imports_no_torch():
    heavy = "[name for name in ('torch', 'transformers', 'numpy', 'yaml', 'datasets') if name in sys.modules]"
    assert run(f"import sys, hf_jepa; print({heavy})") == "[]"
    shown = run(
        "import sys, contextlib, hf_jepa.cli\n"
        "with contextlib.suppress(SystemExit):\n    hf_jepa.cli.main(['evaluate', '--help'])\n"
        f"print({heavy})"
    )
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.parametrize("first", ["hf_jepa", "transformers"])
def test_types_are_known_in_whatever_order_the_packages_are_imported(first):
    program = """import hf_jepa
from transformers import AutoModelForPreTraining, AutoConfig
import sys
assert "hf_jepa.models" not in sys.modules
from transformers.models.auto.processing_auto import processor_class_from_name
print(processor_class_from_name("VLJepaProcessor").__name__)
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)
config = AutoConfig.for_model("cjepa_pretraining", encoder_config=sizes, predictor_hidden_size=8)
print(type(AutoModelForPreTraining.from_config(config)).__name__)
"""
    # The process that scripts fork from has imported transformers.
    found = run(program) if first == "hf_jepa" else run_script(program).stdout
    assert found.split() == ["VLJepaProcessor", "CJepaForPreTraining"]


def test_a_configuration_imported_from_its_room_builds_its_model():
    program = """from hf_jepa.models.ijepa import IJepaPreTrainingConfig
from transformers import AutoModelForPreTraining
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)
config = IJepaPreTrainingConfig(encoder_config=sizes, predictor_hidden_size=8)
print(type(AutoModelForPreTraining.from_config(config)).__name__)
"""
    assert run(program) == "IJepaForPreTraining"


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
