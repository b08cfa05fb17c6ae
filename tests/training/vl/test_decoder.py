"""The Y-decoder's training: it learns to say texts, leaves the rest alone, and names its faults."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from hf_jepa import VLJepaModel
from hf_jepa.training import NonFiniteLossError, train_y_decoder
from hf_jepa.training.vl.decoder import decoder_tokens, target_embeds
from tests import vl_jepa_world

TEXTS = [f"w{number} w{number + 3} w{2 * number}" for number in range(8)]


@pytest.fixture
def model():
    return build()


def build(tied: bool = False):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = LlamaForCausalLM(
        LlamaConfig(vocab_size=30, eos_token_id=1, pad_token_id=0, tie_word_embeddings=tied, **sizes)
    )
    return vl_jepa_world.build_model(y_decoder=decoder, y_decoder_prefix_length=2, freeze_y_decoder=False)


@pytest.fixture
def make_args(tmp_path):
    def make(**options):
        defaults = {"max_steps": 150, "learning_rate": 0.01, "per_device_train_batch_size": 8, "report_to": "none"}
        defaults |= {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 50}
        return TrainingArguments(output_dir=str(tmp_path), **{**defaults, **options})

    return make


def test_it_says_what_it_was_taught(model, make_args):
    processor = vl_jepa_world.build_processor()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    train_y_decoder(model, processor, TEXTS, make_args(), noise=0.1)
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"y_decoder"}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tokens = model.generate_text(target_embeds(model, processor, TEXTS), max_new_tokens=6)
    assert processor.decoder_tokenizer.batch_decode(tokens, skip_special_tokens=True) == TEXTS


def test_given_embeddings_and_a_frozen_language_model(model, make_args):
    model.config.freeze_y_decoder = True
    model.apply_requires_grad()
    weights = {name: value.clone() for name, value in model.y_decoder.state_dict().items()}
    train_y_decoder(model, vl_jepa_world.build_processor(), TEXTS, make_args(max_steps=3), embeds=torch.randn(8, 12))
    moved = {name for name, value in model.y_decoder.state_dict().items() if not torch.equal(value, weights[name])}
    assert moved == {"prefix.weight", "prefix.bias"}


@pytest.mark.parametrize("logging_steps", [1, 50])
def test_a_loss_that_is_not_finite_leaves_the_decoder_as_it_was(model, make_args, logging_steps):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteLossError):
        train_y_decoder(
            model,
            vl_jepa_world.build_processor(),
            TEXTS,
            make_args(learning_rate=1e30, max_grad_norm=0.0, optim="sgd", max_steps=5, logging_steps=logging_steps),
        )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # The last update may spoil what no loss has seen.
    args = make_args(learning_rate=1e38, max_grad_norm=0.0, optim="sgd", max_steps=1, weight_decay=1e38)
    with pytest.raises(NonFiniteLossError):
        train_y_decoder(model, vl_jepa_world.build_processor(), TEXTS, args)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_a_decoder_trains_resumes_and_is_released(make_vl_trainer, make_args, tmp_path, tied):
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = make_vl_trainer(build(tied), **settings)
    whole.train()
    resumed = make_vl_trainer(build(tied), output_dir=str(tmp_path / "resumed"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.model.state_dict().items())

    processor = vl_jepa_world.build_processor()
    train_y_decoder(resumed.model, processor, TEXTS, make_args(max_steps=20))
    again = VLJepaModel.from_pretrained(resumed.write_release())
    for each in (resumed.model, again):
        decoder = each.y_decoder.language_model
        assert (decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight) == tied
    expected = resumed.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in again.state_dict().items())


def test_texts_end(model):
    processor = vl_jepa_world.build_processor()
    assert decoder_tokens(processor, ["w0 w1", "w2"]) == [[2, 3, 1], [4, 1]]
    processor.max_target_length = 2
    assert decoder_tokens(processor, ["w0 w1", "w2"]) == [[2, 1], [4, 1]]
    processor.decoder_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="would never end"):
        decoder_tokens(processor, ["w0"])


def test_faults_are_named(model, make_args):
    processor = vl_jepa_world.build_processor()
    with pytest.raises(ValueError, match="a model with `y_decoder`"):
        train_y_decoder(vl_jepa_world.build_model(), processor, TEXTS, make_args())
    with pytest.raises(ValueError, match="at least one text"):
        train_y_decoder(model, processor, [], make_args())
    with pytest.raises(ValueError, match=r"shape \(8, 12\), got \(7, 12\)"):
        train_y_decoder(model, processor, TEXTS, make_args(), embeds=torch.ones(7, 12))
    with pytest.raises(ValueError, match='save_strategy="no"'):
        train_y_decoder(model, processor, TEXTS, make_args(save_strategy="steps"))
