"""JepaTrainer with joint-embedding models: logs, probes, resume, release, warnings, and encoders of timm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForPreTraining, TimmWrapperConfig

import hf_jepa
from hf_jepa import JepaTrainer, JepaTrainingArguments
from hf_jepa.data import MultiViewCollator, MultiViewTransform, SeededImageDataset, ViewAugmentation, eval_transform
from hf_jepa.hub.release import save_release
from hf_jepa.training.jepa.trainer import parameter_groups
from tests.processes import run_script
from tests.tiny_models import TINY_VIT

# Runs where `import hf_jepa` fails, as on a machine that has only transformers.
PLAIN_USER = """
import sys
sys.modules["hf_jepa"] = None
import torch
from transformers import AutoImageProcessor, AutoModel
for folder in sys.argv[1:]:
    images, expected = torch.load(f"{folder}/check.pt", weights_only=True)
    model = AutoModel.from_pretrained(folder)
    AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(images).pooler_output.flatten(1), expected, rtol=1e-6, atol=1e-7)
    print(type(model).__name__)
"""

AVERAGED = {"target": "ema", "centre": "global_views"}


def resnet() -> Any:
    return AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


@pytest.fixture
def make(pictures: Dataset, tmp_path: Path) -> Callable[..., JepaTrainer]:
    def build(
        name: str = "LeJepa",
        encoder: Any = None,
        seed: int = 0,
        folder: str = "run",
        fields: dict[str, Any] | None = None,
        **args,
    ) -> JepaTrainer:
        torch.manual_seed(seed)
        sizes = {"LeJepa": {"num_slices": 16}, "RectifiedLpJepa": {"num_projections": 16}}.get(name, {})
        config = getattr(hf_jepa, f"{name}PreTrainingConfig")(
            encoder_config=encoder or resnet(),
            image_size=32,
            projection_size=8,
            **sizes,
            **({} if name == "SimSiam" else {"projector_hidden_size": 16}),
            **(fields or {}),
        )
        transform = MultiViewTransform(2 * [ViewAugmentation(32)], [] if name == "SimSiam" else [ViewAugmentation(16)])
        probes = SeededImageDataset(pictures, eval_transform(32), label_column="label")
        settings = {
            "max_steps": 2,
            "per_device_train_batch_size": 6,
            "warmup_steps": 1,
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return JepaTrainer(
            model=getattr(hf_jepa, f"{name}ForPreTraining")(config),
            args=JepaTrainingArguments(output_dir=str(tmp_path / folder), **{**settings, **args}),
            data_collator=MultiViewCollator(),
            train_dataset=SeededImageDataset(pictures, transform, seed=1),
            eval_dataset=probes,
            probe_train_dataset=probes,
        )

    return build


@pytest.mark.parametrize("name", ["LeJepa", "RectifiedLpJepa", "VICReg", "SimSiam"])
def test_training_logs_terms_and_statistics(make, name):
    trainer = make(name)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    first = trainer.state.log_history[0]
    terms = {
        "LeJepa": {"invariance_loss", "sigreg_loss"},
        "RectifiedLpJepa": {"invariance_loss", "rdmreg_loss", "active_fraction"},
        "VICReg": {"invariance_loss", "std_loss", "cov_loss"},
        "SimSiam": {"prediction_loss", "normalized_std", "prediction_token_std", "target_token_std"},
    }[name]
    assert terms | {"projector_std", "target_std", "target_rankme", "images_per_second"} <= first.keys()
    assert "ema_momentum" not in first
    assert all(torch.isfinite(torch.tensor(value)) for value in first.values())
    trained = [key for key, p in trainer.model.named_parameters() if p.requires_grad]
    assert all(not torch.equal(trainer.model.state_dict()[key], before[key]) for key in trained)
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_knn_accuracy"] <= 1


def test_projector_std_is_that_over_the_batch(make):
    trainer = make("SimSiam")
    # SimSiam's projector ends in a batch norm without affine.
    trainer.train()
    assert trainer.state.log_history[0]["projector_std"] == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("name", ["LeJepa", "RectifiedLpJepa"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make, tmp_path, name):
    settings = {"max_steps": 5, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    whole = make(name, **settings)
    whole.train()
    resumed = make(name, seed=7, **{**settings, "save_strategy": "no"})
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    states = [trainer.model.state_dict() for trainer in (whole, resumed)]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    counter = "sigreg.global_step" if name == "LeJepa" else "rdmreg.global_step"
    # One micro-batch, one step of the directions.
    assert int(states[0][counter]) == 10
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert int(saved[counter]) == 4


def test_an_averaged_target_is_moved_logged_resumed_and_released(make, tmp_path):
    settings = {"max_steps": 5, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"fields": AVERAGED, "ema_momentum": 0.5, "ema_momentum_end": 0.9}
    whole = make(**settings)
    start = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.train()
    logged = [log["ema_momentum"] for log in whole.state.log_history if "ema_momentum" in log]
    assert logged == pytest.approx([0.5, 0.58, 0.66, 0.74, 0.82])
    state = whole.model.state_dict()
    for part in ("encoder", "embedding", "projector"):
        for name, parameter in getattr(whole.model, part).named_parameters():
            moved = state[f"target_{part}.{name}"]
            assert not torch.equal(moved, start[f"{part}.{name}"])
            assert not torch.equal(moved, parameter)
    trained = {id(p) for group in whole.optimizer.param_groups for p in group["params"]}
    assert trained.isdisjoint(id(p) for name, p in whole.model.named_parameters() if name.startswith("target_"))

    resumed = make(seed=7, **{**settings, "save_strategy": "no"})
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(state[name], value) for name, value in resumed.model.state_dict().items())

    whole.evaluate()
    root = whole.write_release()
    card = (root / "README.md").read_text()
    assert "the **target encoder**" in card
    assert "pooled target encoder output" in card
    context = save_release(whole.model, tmp_path / "context", results=whole.measured_results(), which="context")
    for folder, part in ((root, "target_encoder"), (context, "encoder")):
        saved = load_file(folder / "model.safetensors")
        own = getattr(whole.model, part).state_dict()
        assert saved.keys() == own.keys()
        assert all(torch.equal(saved[name], value) for name, value in own.items())


@pytest.mark.parametrize(("name", "fields"), [("LeJepa", {}), ("LeJepa", AVERAGED), ("SimSiam", {})], ids=str)
def test_what_is_logged_and_scored_leaves_no_trace_in_the_weights(make, name, fields):
    """Running statistics of batch norms too: what a release computes must not depend on how often a run logs."""
    settings = {"fields": fields, "max_steps": 4}
    seldom = make(name, logging_steps=4, **settings)
    often = make(name, logging_steps=1, eval_strategy="steps", eval_steps=1, **settings)
    for trainer in (seldom, often):
        trainer.train()
    assert [sum("target_std" in log for log in each.state.log_history) for each in (seldom, often)] == [1, 4]
    assert sum("eval_knn_accuracy" in log for log in often.state.log_history) == 4
    states = [trainer.model.state_dict() for trainer in (seldom, often)]
    assert any(key.endswith("running_var") for key in states[0])
    assert [key for key, value in states[0].items() if not torch.equal(value, states[1][key])] == []
    assert often.model.training


def test_logged_features_are_those_of_a_release(make):
    trainer = make(max_steps=3)
    trainer.train()
    pixels = trainer.metrics.last_pixels
    model = trainer.model.eval()
    spread = model.get_features(pixels).std(dim=0, correction=0).mean().item()
    assert trainer.state.log_history[2]["target_std"] == pytest.approx(spread, rel=1e-5)
    # Statistics of few updates do not look like a collapse.
    assert min(log["target_std"] for log in trainer.state.log_history if "target_std" in log) > 0.05


def test_dropout_does_not_hide_a_collapse(make):
    encoder = AutoConfig.for_model("vit", **TINY_VIT, hidden_dropout_prob=0.5)
    trainer = make(encoder=encoder, max_steps=4, learning_rate=0.0, collapse_patience=2, collapse_action="stop")
    with torch.no_grad():
        trainer.model.encoder.embeddings.patch_embeddings.projection.weight.zero_()
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.state.log_history[0]["target_std"] < 1e-6


def test_dropped_patches_leave_the_collapse_numbers_alone(make):
    """What is logged of features compares positions: patches in random order would look spread out."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    seen = []
    for rate in (0.0, 0.5):
        options = {**sizes, "patch_drop_rate": rate}
        trainer = make(encoder=TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=options), max_steps=1)
        with torch.no_grad():
            # Collapsed to positions: every image's tokens are the same.
            trainer.model.encoder.timm_model.patch_embed.proj.weight.zero_()
        trainer.args.learning_rate = trainer.args.learning_rate_start = 0.0
        trainer.train()
        seen.append(trainer.state.log_history[0]["target_std"])
    assert max(seen) < 1e-3


def test_small_batches_are_warned_of_before_training(make, caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        make(max_steps=1).train()
        warned = caplog.text
        caplog.clear()
        make("VICReg", max_steps=1).train()
    finally:
        logging.disable_propagation()
    assert "LeJEPA with regularizer_weight=0.02 and 6 images per forward pass may collapse" in warned
    assert "may collapse" not in caplog.text


def test_vectors_decay_only_when_asked_for(make):
    model = make().model
    vectors = {id(p) for p in model.parameters() if p.ndim == 1}
    for decay_vectors in (False, True):
        groups = parameter_groups(model, 0.1, decay_vectors)
        decayed = {id(p) for group in groups if group["decays"] for p in group["params"]}
        assert bool(vectors & decayed) == decay_vectors


def test_the_predictors_learning_rate_may_stay(make):
    options = {"learning_rate": 0.1, "learning_rate_end": 0.0, "max_steps": 4, "warmup_steps": 2}
    seen = []
    for fixed in (False, True):
        trainer = make("SimSiam", fix_pred_lr=fixed, **options)
        trainer.train()
        rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
        ends = {name.split(".")[0]: rates[id(p)] for name, p in trainer.model.named_parameters() if p.requires_grad}
        seen.append(ends)
        # What is logged is the schedule.
        assert trainer.state.log_history[-2]["learning_rate"] == pytest.approx(0.0, abs=1e-6)
    assert seen[0] == pytest.approx({"encoder": 0.0, "projector": 0.0, "predictor": 0.0})
    assert seen[1] == pytest.approx({"encoder": 0.0, "projector": 0.0, "predictor": 0.1})
    with pytest.raises(ValueError, match="without|has not"):
        make("VICReg", fix_pred_lr=True).create_optimizer()


def test_timm_models_train_and_are_released_for_plain_transformers(make, tmp_path):
    """A ConvNet and a ViT by timm name, two steps each, reloaded by AutoModel in a process without hf_jepa."""
    convnet = TimmWrapperConfig(architecture="resnet10t", model_args={"channels": [8, 8, 16, 16], "stem_width": 8})
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    vit = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=sizes)
    folders = []
    for folder, encoder in (("convnet", convnet), ("vit", vit)):
        trainer = make(encoder=encoder, folder=folder)
        start = {key: value.clone() for key, value in trainer.model.encoder.state_dict().items()}
        trainer.train()
        trainer.evaluate()
        state = trainer.model.encoder.state_dict()
        assert any(not torch.equal(state[key], value) for key, value in start.items())
        release = trainer.write_release()
        card = (release / "README.md").read_text()
        assert "`TimmWrapperModel`" in card
        assert "pooler_output" in card
        assert "pooled encoder output" in card
        assert "target encoder" not in card
        images = torch.randn(3, 3, 32, 32)
        expected = trainer.model.eval().get_pooled_features(images)
        torch.save((images, expected), release / "check.pt")
        folders.append(str(release))
        composite = AutoModelForPreTraining.from_pretrained(release, subfolder="pretraining")
        torch.testing.assert_close(composite.get_pooled_features(images), expected, rtol=1e-6, atol=1e-7)
    run = run_script(PLAIN_USER, *folders)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["TimmWrapperModel", "TimmWrapperModel"]


def test_lars_adapts_what_decays(make):
    trainer = make(lars_trust_coefficient=0.02, lars_clip=True)
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == "Lars"
    assert optimizer.defaults["momentum"] == 0.9
    assert all(group["trust_coeff"] == 0.02 and group["trust_clip"] for group in optimizer.param_groups)
    # timm's LARS adapts where there is weight decay: biases and norms get plain steps, as in the released codes.
    vectors = [p for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]]
    assert all(p.ndim == 1 for p in vectors)
    trainer.optimizer = None
    trainer.train()
    assert trainer.state.global_step == 2
