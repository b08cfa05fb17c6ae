"""`hf-jepa info`: what it says of every kind of release is what they hold, and its lines load them."""

import functools
import json
import shutil

import pytest
from huggingface_hub import HfApi, constants, snapshot_download
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel, LlamaForCausalLM

from hf_jepa import LLMJepaForCausalLM
from hf_jepa.cli import main
from hf_jepa.hub import push_release
from hf_jepa.hub.inspection import describe_facts, inspect_release, loading_lines
from hf_jepa.hub.text_release import save_text_release
from tests import stand_ins
from tests.hub.loopback_hub import loopback_hub
from trainers.worlds import nl_regex


def save_text(folder):
    base = LlamaForCausalLM.from_pretrained(stand_ins.save_llm(folder / "base"))
    tokenizer = nl_regex.build_tokenizer()
    wrapped = LLMJepaForCausalLM.from_decoder(base, tokenizer)
    results = {"licence": "apache-2.0", "model": {"name": "tiny"}}
    return save_text_release(wrapped, folder / "release", tokenizer, results)


RELEASES = {
    "image": (stand_ins.save_ijepa, "I-JEPA", "image", False),
    "video": (stand_ins.save_vjepa2, "V-JEPA 2", "video", False),
    "world model": (stand_ins.save_world_model, "Latent world model", "image", True),
    "VL-JEPA": (stand_ins.save_vl, "VL-JEPA", "vision-language", True),
    "LLM-JEPA": (save_text, "LLM-JEPA", "text", False),
}


@pytest.mark.parametrize("kind", RELEASES)
def test_what_a_release_holds_and_the_lines_that_load_it(kind, tmp_path):
    save, title, modality, needs = RELEASES[kind]
    folder = save(tmp_path / "release")
    facts = inspect_release(folder)
    assert facts["title"].startswith(title.partition(" model")[0])
    assert (facts["modality"], facts["needs_hf_jepa"]) == (modality, needs)
    scope = {}
    exec("\n".join(loading_lines(facts)), scope)
    loaded = scope["model"]
    assert len({"processor", "tokenizer"} & scope.keys()) == 1
    unique = {tensor.data_ptr(): tensor.numel() for tensor in loaded.parameters()}
    said = dict(describe_facts(facts))["holds"]
    if kind != "LLM-JEPA":  # ties its head
        assert f"{sum(unique.values()):,} parameters" in said or kind in ("VL-JEPA", "world model")
    assert facts["model_class"] == type(loaded).__name__


def test_the_command_prints_what_the_results_say(tmp_path, capsys):
    folder = stand_ins.save_ijepa(tmp_path / "release")
    results = json.loads((folder / "results.json").read_text())
    results["training"] = {"steps": 1200, "batch_size": 32}
    entry = {"task": "knn", "metric": "accuracy", "value": 0.5, "dataset": "photos", "split": "test"}
    results["evaluations"] = [entry]
    (folder / "results.json").write_text(json.dumps(results))
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "I-JEPA (IJepaModel)", "noise, 8 examples, 1,200 steps of 32", "pretraining/: the whole model",
        "hidden_size 16", "ViTImageProcessor, 16 x 16 pixels", "predictor (in pretraining/)", "apache-2.0",
        "knn, accuracy: 0.5 (photos, test)", "transformers alone",
        "from transformers import AutoImageProcessor, AutoModel\nmodel = AutoModel.from_pretrained(",
    ):  # fmt: skip
        assert text in shown
    # The whole model, as a training checkpoint is.
    assert main(["info", str(folder / "pretraining")]) == 0
    shown = capsys.readouterr().out
    assert "AutoModelForPreTraining" in shown
    assert "whole model" in shown


def test_a_repository_is_read_without_its_weights(tmp_path, monkeypatch, capsys):
    folder = stand_ins.save_ijepa(tmp_path / "release")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    with loopback_hub() as hub:
        api = HfApi(endpoint=hub.url, token="write")
        download = functools.partial(snapshot_download, endpoint=hub.url, token="write", cache_dir=tmp_path / "cache")
        monkeypatch.setattr("hf_jepa.hub.inspection.snapshot_download", download)
        monkeypatch.setattr("hf_jepa.hub.inspection.get_safetensors_metadata", api.get_safetensors_metadata)
        push_release(folder, "me/tiny", api=api)
        assert main(["info", "me/tiny"]) == 0
        shown = capsys.readouterr().out
        assert "AutoModel.from_pretrained('me/tiny')" in shown
        assert f"target encoder, {inspect_release(folder)['weights']['parameters']['F32']:,} parameters" in shown
        assert list((tmp_path / "cache").rglob("*.json"))
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
        assert main(["info", "me/nothing"]) == 1
        assert "no repository 'me/nothing'" in capsys.readouterr().err


def test_what_is_no_release_is_named(tmp_path, capsys):
    cases = {
        str(tmp_path / "nowhere"): "There is no folder",
        "some/repository": "the Hub cannot be asked",
        str(tmp_path): "holds no model: there is no config.json",
    }
    bert = tmp_path / "bert"
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)).save_pretrained(
        bert
    )
    cases[str(bert)] = "of type 'bert', which is no JEPA"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    cases[str(broken)] = "is no JSON"
    damaged = stand_ins.save_ijepa(tmp_path / "damaged")
    shutil.rmtree(damaged / "pretraining")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    cases[str(damaged)] = "is damaged"
    for name, message in cases.items():
        assert main(["info", name]) == 1
        assert message in capsys.readouterr().err, name


def test_an_adapter_is_loaded_by_peft(tmp_path):
    base = stand_ins.save_llm(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    nl_regex.build_tokenizer().save_pretrained(folder)
    results = {"licence": "mit", "model": {"name": "tiny", "family": "llm_jepa", "modality": "text"}}
    (folder / "results.json").write_text(json.dumps(results))
    facts = inspect_release(folder)
    assert dict(describe_facts(facts))["holds"].startswith("adapter, ")
    scope = {}
    exec("\n".join(loading_lines(facts)), scope)
    for name, value in model.state_dict().items():
        assert (scope["model"].state_dict()[name] == value).all()
