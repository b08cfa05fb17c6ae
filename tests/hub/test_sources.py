"""What a release is made from is named, its licence carried on, and nobody's folders are published."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, IJepaConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, LLMJepaForCausalLM
from hf_jepa.hub import render_card, save_release
from hf_jepa.hub.sources import carry_sources
from hf_jepa.hub.text_release import save_text_release

WORDS = ["[UNK]", "<s>", "</s>", "a", "b", "lines", "with", "the", "word", "of", "and", "c"]


def ijepa() -> IJepaForPreTraining:
    encoder = IJepaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    config = IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    return IJepaForPreTraining(config)


def front_matter(folder) -> dict:
    return ModelCard((folder / "README.md").read_text()).data.to_dict()


def continued(folder) -> IJepaForPreTraining:
    return IJepaForPreTraining.from_encoder(str(folder), predictor_hidden_size=8, predictor_num_hidden_layers=1)


def test_the_licence_of_the_source_goes_on(tmp_path):
    first = save_release(
        ijepa(), tmp_path / "first", results={"licence": "cc-by-nc-4.0", "model": {"name": "x", "repo_id": "me/first"}}
    )
    # Nobody has said a licence, as when a bare trainer writes its release.
    second = save_release(
        continued(first), tmp_path / "second", results={"licence": "unknown", "model": {"name": "y"}}
    )
    data = front_matter(second)
    assert data["license"] == "cc-by-nc-4.0"
    assert data["base_model"] == "me/first"
    assert data["base_model_relation"] == "finetune"
    assert "Its source is under `cc-by-nc-4.0`" in (second / "README.md").read_text()
    # And over a checkpoint, whose config remembers where the run began.
    continued(first).save_pretrained(tmp_path / "checkpoint")
    again = IJepaForPreTraining.from_pretrained(tmp_path / "checkpoint")
    third = save_release(again, tmp_path / "third", results={"licence": "mit", "model": {"name": "z"}})
    assert front_matter(third)["license"] == "mit"
    assert json.loads((third / "results.json").read_text())["source_licence"] == "cc-by-nc-4.0"


def test_folders_of_this_machine_are_not_published(tmp_path):
    first = save_release(ijepa(), tmp_path / "first", results={"licence": "mit", "model": {"name": "x"}})
    second = save_release(continued(first), tmp_path / "second", results={"licence": "mit", "model": {"name": "y"}})
    for file in second.rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes()
    assert "base_model" not in front_matter(second)


def test_what_is_said_stays():
    results = {"licence": "mit", "source_licence": "apache-2.0", "base_model": "me/base", "model": {}}
    assert carry_sources(results, ["other/repository"]) == results


@pytest.mark.parametrize(
    ("facts", "library"),
    [
        ({}, "transformers"),
        ({"is_adapter": True, "modality": "text"}, "peft"),
        ({"needs_hf_jepa": True, "modality": "video"}, "hf_jepa"),
        ({"num_labels": 3, "modality": "video"}, "hf_jepa"),
        ({"modality": "vision-language"}, "hf_jepa"),
        ({"modality": "text"}, "transformers"),
    ],
)
def test_the_library_is_what_loads_the_root(facts, library):
    model = {"name": "x", "family": "ijepa", "num_parameters": 1, "num_parameters_trained": 1, **facts}
    results = {"licence": "mit", "model": model}
    assert ModelCard(render_card(results)).data.to_dict()["library_name"] == library


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="[UNK]"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return tokenizer


def adapted(tmp_path, tokenizer, keep: bool, **options) -> tuple[LLMJepaForCausalLM, PreTrainedTokenizerFast]:
    """A decoder with a LoRA that does something, and with `keep` rows for predictor tokens."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, bos_token_id=1, eos_token_id=2, **sizes)
    )
    decoder.save_pretrained(tmp_path / "base")
    model = LLMJepaForCausalLM.from_decoder(str(tmp_path / "base"), tokenizer, num_predictor_tokens=1, **options)
    model.decoder = get_peft_model(model.decoder, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("mode", ["soft", "vocab"])
def test_the_code_of_an_adapters_card_is_the_code_that_loads_it(tmp_path, tokenizer, mode):
    model = adapted(tmp_path, tokenizer, mode == "vocab", predictor_mode=mode)
    results = {"licence": "mit", "model": {"name": "x", "example": 'lines with "the" word\nof a'}}
    folder = save_text_release(model, tmp_path / "release", tokenizer, results, keep_predictor_tokens=mode == "vocab")
    results = json.loads((folder / "results.json").read_text())
    results["model"]["repo_id"] = str(folder)
    card = render_card(results)
    code = card.split("```python\n")[1].split("```")[0]
    assert ("base.resize_token_embeddings(13)" in code) == (mode == "vocab")
    found = {}
    exec(code.replace("print(", "str("), found)  # noqa: S102 -- that a reader can run it is what is tested
    assert found["messages"] == [{"role": "user", "content": 'lines with "the" word\nof a'}]
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(found["model"](ids).logits, model.decoder(ids).logits)


def test_a_merged_model_is_no_adapter(tmp_path, tokenizer):
    model = adapted(tmp_path, tokenizer, keep=False)
    results = {"licence": "mit", "base_model": "me/base", "model": {"name": "x"}}
    folder = save_text_release(model, tmp_path / "release", tokenizer, results, merge_adapter=True)
    data = front_matter(folder)
    assert (data["library_name"], data["base_model"], data["base_model_relation"]) == (
        "transformers", "me/base", "finetune",
    )  # fmt: skip
    folder = save_text_release(model, folder, tokenizer, results)
    data = front_matter(folder)
    assert (data["library_name"], data["base_model_relation"]) == ("peft", "adapter")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base") is not None
