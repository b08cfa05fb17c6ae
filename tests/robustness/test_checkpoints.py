"""Files that must not be loaded, and folders that were not written to the end."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from transformers import IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.conversion.ijepa import convert_ijepa_checkpoint
from hf_jepa.conversion.original_files import UnsafeCheckpointError, load_original_checkpoint
from hf_jepa.hub import load_pretraining


class RunsACommand:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def composite(tmp_path):
    encoder = IJepaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    config = IJepaPreTrainingConfig(
        encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1, predictor_mlp_ratio=1
    )
    IJepaForPreTraining(config).save_pretrained(tmp_path / "composite")
    return tmp_path / "composite"


@pytest.mark.parametrize("zip_format", [True, False])
def test_malicious_pickle_is_refused_and_does_not_run(tmp_path, zip_format):
    trace, path = tmp_path / "it-ran", tmp_path / "evil.pth.tar"
    torch.save(
        {"encoder": {"module.x": torch.zeros(1)}, "epoch": RunsACommand(f"touch {trace}")},
        path,
        _use_new_zipfile_serialization=zip_format,
    )
    with pytest.raises(UnsafeCheckpointError, match="can run code"):
        convert_ijepa_checkpoint(path, tmp_path / "out")
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


def test_malicious_plain_pickle_is_refused_and_does_not_run(tmp_path):
    trace, path = tmp_path / "it-ran", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(RunsACommand(f"touch {trace}"), protocol=2))
    with pytest.raises(ValueError, match="evil.pkl"):
        load_original_checkpoint(path)
    assert not trace.exists()


def test_numpy_scalars_are_allowed(tmp_path):
    torch.save({"loss": np.float64(0.5), "epoch": np.int64(3), "lr": np.float32(0.25)}, tmp_path / "x.pth")
    assert load_original_checkpoint(tmp_path / "x.pth") == {"loss": 0.5, "epoch": 3, "lr": 0.25}


def test_object_arrays_are_not_allowed(tmp_path):
    torch.save({"loss": np.array([{}], dtype=object)}, tmp_path / "x.pth")
    with pytest.raises(UnsafeCheckpointError):
        load_original_checkpoint(tmp_path / "x.pth")


def test_loading_is_always_safe_and_memory_mapped(tmp_path, monkeypatch):
    seen = {}
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: seen.update(kwargs) or load(*args, **kwargs))
    torch.save({"encoder": {"module.x": torch.arange(9.0)}}, tmp_path / "x.pth")
    assert torch.equal(load_original_checkpoint(tmp_path / "x.pth")["encoder"]["module.x"], torch.arange(9.0))
    assert seen["weights_only"] is True
    assert seen["mmap"] is True


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_file_is_an_error(tmp_path, share):
    path = tmp_path / "x.pth"
    torch.save({"encoder": {"module.x": torch.zeros(4000)}}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="x.pth"):
        load_original_checkpoint(path)


def test_other_files_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_original_checkpoint(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello\n")
    with pytest.raises(ValueError, match=r"text\.pth"):
        load_original_checkpoint(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(ValueError, match=r"zip\.pth"):
        load_original_checkpoint(tmp_path / "zip.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor"):
        load_original_checkpoint(tmp_path / "tensor.pth")


def rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_whole_composite_loads(composite):
    assert isinstance(load_pretraining(composite), IJepaForPreTraining)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda w: w.pop("predictor.proj.bias"), "predictor.proj.bias"),
        (lambda w: w.update({"predictor.stray": torch.zeros(1)}), "predictor.stray"),
        (lambda w: w.update({"predictor.proj.bias": torch.zeros(3)}), "predictor.proj.bias"),
        (lambda w: w.pop("target_encoder.embeddings.position_embeddings"), "position_embeddings"),
    ],
)
def test_missing_extra_and_misshaped_keys_are_refused(composite, change, key):
    rewrite(composite, change)
    with pytest.raises(ValueError, match=key):
        load_pretraining(composite)


def test_half_written_folders_are_refused(composite, tmp_path):
    for name in ("config.json", "model.safetensors"):
        folder = shutil.copytree(composite, tmp_path / f"without-{name}")
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            load_pretraining(folder)
    weights = composite / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_pretraining(composite)
