"""I-JEPA that predicts another encoder, which stays as it is (SALT)."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoModelForPreTraining, BertConfig, BertModel, IJepaConfig, ViTConfig, ViTModel

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, JepaTrainer, JepaTrainingArguments
from hf_jepa.hub.release import save_release
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.objectives.distances import distance, normalize_targets
from hf_jepa.predictor import gather_tokens

SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32, "patch_size": 8}


@pytest.fixture
def teacher() -> ViTModel:
    torch.manual_seed(7)
    # Another type, width and prefix than the student's; dropout, which a frozen teacher must not feel.
    config = ViTConfig(hidden_size=24, hidden_dropout_prob=0.5, **SIZES)
    return ViTModel(config, add_pooling_layer=False).eval()


def student(teacher: ViTModel, seed: int = 0, **fields) -> IJepaForPreTraining:
    torch.manual_seed(seed)
    encoder = IJepaConfig(hidden_size=32, layer_norm_eps=1e-6, **SIZES)
    small = {"predictor_hidden_size": 16, "predictor_num_hidden_layers": 1, "initialization": "fan_in"}
    fields = {"target": "frozen", "teacher_config": teacher.config, **small, **fields}
    model = IJepaForPreTraining(IJepaPreTrainingConfig(encoder_config=encoder, **fields))
    model.load_teacher(teacher)
    return model


@pytest.fixture
def inputs() -> dict:
    context_mask, target_mask = MultiBlockMaskGenerator(32, 8, min_keep=0, seed=0)(batch_size=3)
    return {"pixel_values": torch.randn(3, 3, 32, 32), "context_mask": context_mask, "target_mask": target_mask}


def test_targets_are_the_teachers_patch_tokens(teacher, inputs):
    output = student(teacher).train()(**inputs)
    tokens = normalize_targets(teacher(inputs["pixel_values"]).last_hidden_state[:, 1:])
    expected = [gather_tokens(tokens, mask) for mask in inputs["target_mask"]]
    torch.testing.assert_close(list(output.targets), expected)
    assert output.predictions[0].shape == output.targets[0].shape
    loss = distance(torch.cat(output.predictions), torch.cat(expected), "smooth_l1").mean()
    torch.testing.assert_close(output.loss, loss)


def test_the_teacher_neither_learns_nor_follows(teacher, inputs):
    model = student(teacher).train()
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    assert not model.has_target_encoder
    model(**inputs).loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert model.encoder.layers[0].mlp.fc1.weight.grad.abs().max() > 0
    model.update_target(0.0)
    model.sync_target()
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())


def test_features_and_release_are_the_students(teacher, inputs, tmp_path):
    model = student(teacher).eval()
    images = inputs["pixel_values"]
    expected = model.encoder(images).last_hidden_state
    torch.testing.assert_close(model.get_features(images), expected)
    model.save_pretrained(tmp_path / "whole")
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(loaded(**inputs).loss, model(**inputs).loss)
    results = {"model": {"name": "tiny"}, "licence": "apache-2.0"}
    folder = save_release(model, tmp_path / "release", results=results)
    assert "another encoder, which does not learn, makes the targets" in (folder / "README.md").read_text()
    released = AutoModel.from_pretrained(folder)
    torch.testing.assert_close(released(images).last_hidden_state, expected)


def test_the_trainer_leaves_the_teacher_alone(teacher, tmp_path):
    model = student(teacher)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = JepaTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, warmup_steps=0, per_device_train_batch_size=2, report_to="none",
        save_strategy="no", use_cpu=True,
    )  # fmt: skip
    rows = [{"pixel_values": torch.randn(3, 32, 32), "draw": index} for index in range(4)]
    JepaTrainer(model=model, args=arguments, train_dataset=rows).train()
    changed = {
        name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"encoder", "predictor"}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda teacher: student(teacher, teacher_config=None), "belong together"),
        (lambda teacher: student(teacher, target="ema"), "belong together"),
        (lambda teacher: student(teacher, regularizer="cjepa"), "frozen teacher"),
        (lambda teacher: student(teacher, target="ema", teacher_config=None), "no teacher"),
        (lambda teacher: student(teacher).load_teacher(ViTModel(ViTConfig(hidden_size=32, **SIZES))), "do not fit"),
    ],
)
def test_faults(teacher, call, match):
    with pytest.raises(Exception, match=match):
        call(teacher)


def test_a_teacher_that_reads_texts_is_named(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes, vocab_size=20)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert' is a BertModel, which reads input_ids, no pixels: choose"):
        IJepaForPreTraining.read_teacher(str(tmp_path / "bert"))


def test_channels_of_another_number_are_named():
    config = ViTConfig(hidden_size=24, **SIZES, num_channels=1)
    with pytest.raises(StrictDataclassError, match="teacher takes images of 1 channels, the student of 3: choose"):
        student(ViTModel(config, add_pooling_layer=False))


def test_patches_of_another_size_are_named(teacher, inputs):
    config = ViTConfig(hidden_size=24, **(SIZES | {"patch_size": 4}))
    model = student(ViTModel(config, add_pooling_layer=False))
    with pytest.raises(ValueError, match="64 tokens of an image, the student 16"):
        model(**inputs)


def test_a_teacher_of_random_weights_is_not_trained_on(teacher, tmp_path):
    model = student(teacher)
    assert not model.teacher_is_random
    model.save_pretrained(tmp_path / "model")
    assert not IJepaForPreTraining.from_pretrained(tmp_path / "model").teacher_is_random
    fresh = IJepaForPreTraining(model.config)
    arguments = JepaTrainingArguments(output_dir=str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="call `model.load_teacher"):
        JepaTrainer(model=fresh, args=arguments, train_dataset=[{"image": None}])
