"""The trainer of VL-JEPA: it learns, its parts have their own rates, its runs resume, its faults are named."""

import json
import logging
from collections.abc import Callable

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor, TrainingArguments, VJEPA2Model
from transformers.utils import logging as hf_logging

from hf_jepa import VLJepaProcessor, VLJepaTrainer, VLJepaTrainingArguments
from tests import vl_jepa_world

ROWS = vl_jepa_world.build_rows(24)


@pytest.fixture
def make_trainer(make_vl_trainer) -> Callable[..., VLJepaTrainer]:
    return make_vl_trainer


def weights(trainer: VLJepaTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_it_learns_to_name_colours(make_trainer):
    trainer = make_trainer(
        max_steps=120, learning_rate=0.01, optim="adamw_torch", lr_scheduler_type="cosine", logging_steps=20
    )
    before = trainer.evaluate()["eval_retrieval_at_1"]
    trainer.train()
    after = trainer.evaluate()
    # Eight colours, nine rows: chance is one in eight.
    assert before < 0.5
    assert after["eval_retrieval_at_1"] > 0.85
    assert after["eval_reverse_retrieval_at_1"] > 0.85
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < 0.2 < logs[0]["loss"]
    assert {
        "prediction_loss", "temperature", "duplicates", "effective_negatives", "pairs_per_second", "retrieval_at_1",
        "reverse_retrieval_at_1", "pred_std", "target_std", "pred_rankme", "target_rankme", "grad_norm",
    } <= set(logs[0])  # fmt: skip
    assert logs[0]["temperature"] != logs[-1]["temperature"]
    assert 0 < logs[0]["effective_negatives"] < 7


def test_a_step_with_caching_is_the_step_without(make_trainer):
    found, losses = [], []
    for micro_batch in (None, 3):
        trainer = make_trainer(
            {"target": "ema"}, gradient_cache_micro_batch=micro_batch, max_steps=2, gradient_accumulation_steps=2
        )
        trainer.train()
        found.append(weights(trainer))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-6, msg=name)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_caching_under_autocast(make_trainer):
    losses = []
    for micro_batch in (None, 3):
        trainer = make_trainer(bf16=True, gradient_cache_micro_batch=micro_batch, max_steps=2)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.model.predictor.norm.weight.dtype == torch.float32
    # The first loss is of the same numbers; parts of other sizes then round otherwise.
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=0.05)


def test_each_part_has_its_rate_and_its_decay(make_trainer):
    trainer = make_trainer(
        {"y_dense_layers": [{"out_features": 12, "bias": True, "activation": "tanh"}]},
        learning_rate=0.1,
        weight_decay=0.2,
        y_encoder_lr_multiplier=0.25,
        y_projection_lr_multiplier=0.5,
        lr_scheduler_type="linear",
    )
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert found.keys() == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert found["predictor.layers.0.mlp.up_proj.weight"] == (0.1, 0.2)
    assert found["predictor.norm.weight"] == (0.1, 0.0)
    assert found["contrast.logit_scale"] == (0.1, 0.0)
    assert found["vision_projection.bias"] == (0.1, 0.0)
    assert found["y_encoder.model.encoder.layer.0.output.dense.weight"] == (0.025, 0.2)
    assert found["y_encoder.dense.0.weight"] == (0.025, 0.2)
    assert found["y_encoder.projection.weight"] == (0.05, 0.2)
    # The rate that is logged is that of the predictor, and schedules keep the ratios.
    trainer.create_scheduler(4, optimizer)
    optimizer.step()
    trainer.lr_scheduler.step()
    rates = trainer.lr_scheduler.get_last_lr()
    assert rates[0] == pytest.approx(0.075)
    assert sorted({round(rate / rates[0], 6) for rate in rates}) == [0.25, 0.5, 1.0]


def test_a_multiplier_of_zero_keeps_the_y_encoder(make_trainer):
    trainer = make_trainer(y_encoder_lr_multiplier=0.0, max_steps=2)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name.rsplit(".", 2)[0] for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("y_encoder.model", "vision.", "predictor.embed")) for name in moved)
    assert any(name.startswith("predictor.layers") for name in moved)
    assert not torch.equal(before["y_encoder.projection.weight"], after["y_encoder.projection.weight"])


@pytest.mark.parametrize("options", [{}, {"target": "ema", "regularizer": "sigreg"}], ids=["infonce", "ema"])
def test_a_resumed_run_is_the_run(make_trainer, tmp_path, options):
    settings = {"max_steps": 5, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 3}
    settings["gradient_cache_micro_batch"] = 5
    whole = make_trainer({"dropout": 0.2, **options}, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    torch.manual_seed(99)
    resumed = make_trainer({"dropout": 0.2, **options}, output_dir=str(tmp_path / "other"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_equal(weights(whole), weights(resumed))
    logs = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
    assert logs[0] == logs[1]
    folder = tmp_path / "whole" / "checkpoint-3"
    assert not [path.name for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert type(AutoProcessor.from_pretrained(folder)) is VLJepaProcessor
    AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="y_encoder_lr_multiplier: 0.05 in the checkpoint, 0.1 now"):
        make_trainer({"dropout": 0.2, **options}, y_encoder_lr_multiplier=0.1, **settings).train(str(folder))


def test_checkpoints_leave_out_what_is_kept_by_reference(make_trainer, tmp_path):
    source = vl_jepa_world.build_model()
    VJEPA2Model(source.config.vision_config).save_pretrained(tmp_path / "vision")
    source.y_encoder.model.save_pretrained(tmp_path / "text")
    source.predictor.save_pretrained(tmp_path / "decoder")
    names = [str(tmp_path / name) for name in ("vision", "decoder", "text")]

    def build():
        torch.manual_seed(1)
        return type(source).from_components(
            *names, num_layers=1, projection_dim=12, target="frozen", save_frozen=False
        )

    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = make_trainer(build(), output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    folder = tmp_path / "whole" / "checkpoint-2"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if key.startswith(("vision.", "y_encoder.model."))]  # noqa: SIM118
    resumed = make_trainer(build(), output_dir=str(tmp_path / "other"), **settings)
    resumed.train(resume_from_checkpoint=str(folder))
    assert_equal(weights(whole), weights(resumed))


def test_adapters_train_alone_in_the_predictor(make_trainer, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    trainer = make_trainer(trainer={"peft_config": lora}, save_strategy="steps", save_steps=3)
    before = weights(trainer)
    trainer.train()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert all("lora_" in name for name in moved if name.startswith("predictor."))
    assert any("lora_B" in name for name in moved)
    again = AutoModel.from_pretrained(tmp_path / "run" / "checkpoint-3")
    assert_equal(weights(trainer), dict(again.state_dict()))


def test_cached_features_train_as_pixels_do(make_trainer):
    from hf_jepa.data import VisionTextDataset

    images = [row for row in ROWS if row["video"] is None][:12]
    processor = vl_jepa_world.build_processor()
    model = vl_jepa_world.build_model()
    embeds, _ = model.encode_vision(processor([row["image"] for row in images])["pixel_values"])
    cached = [{"vision_embeds": tokens, "text": row["text"]} for tokens, row in zip(embeds, images, strict=True)]
    found = []
    for rows in (images, cached):
        trainer = make_trainer(trainer={"train_dataset": VisionTextDataset(rows)})
        trainer.train()
        found.append(weights(trainer))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_evaluation_over_several_sets(make_trainer):
    trainer = make_trainer(
        trainer={"eval_dataset": {"a": ROWS[:4], "b": ROWS[4:9]}}, eval_strategy="steps", eval_steps=3
    )
    state = torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    trainer.train()
    log = trainer.state.log_history
    assert any("eval_a_retrieval_at_1" in entry for entry in log)
    assert any("eval_b_loss" in entry for entry in log)
    assert trainer.model.predictor.training


def test_a_collapse_is_warned_of(make_trainer, caplog):
    trainer = make_trainer(
        {"loss": "l2"}, collapse_rank_threshold=100.0, collapse_patience=2, collapse_action="stop", max_steps=6
    )
    hf_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        trainer.train()
    hf_logging.disable_propagation()
    warned = [r.message for r in caplog.records if "look collapsed" in r.message]
    assert len(warned) == 2
    assert "pred_rankme" in warned[0]
    assert trainer.state.global_step == 2


def test_a_loss_that_is_not_finite_stops_the_run(make_trainer, tmp_path):
    from hf_jepa.training import NonFiniteLossError

    trainer = make_trainer({"loss": "l2"}, learning_rate=1e20, max_steps=6)
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    report = json.loads((tmp_path / "run" / "non_finite_loss.json").read_text())
    assert report["draws"][1] - report["draws"][0] == 8


@pytest.mark.parametrize(
    ("trainer", "args", "message"),
    [
        ({"processing_class": None}, {}, "needs a VLJepaProcessor"),
        ({"train_dataset": None}, {}, "needs a `train_dataset`"),
        ({"train_dataset": []}, {}, "no rows"),
        ({"train_dataset": ROWS[:3]}, {}, "fewer than the 8 samples"),
        ({"train_dataset": [{"text": "w1"}] * 9}, {}, "no column among"),
        ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, "accumulation adds no negatives"),
        ({}, {"y_encoder_lr_multiplier": -1}, "y_encoder_lr_multiplier"),
        ({}, {"gradient_cache_micro_batch": 0}, "gradient_cache_micro_batch"),
        ({}, {"ema_momentum": 1.5}, "ema_momentum"),
        ({}, {"remove_unused_columns": True}, "remove_unused_columns"),
    ],
)
def test_faults_are_named(make_trainer, trainer, args, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(None, trainer, **args).train()


def test_other_faults_are_named(make_trainer):
    half = vl_jepa_world.build_model().bfloat16()
    with pytest.raises(ValueError, match="trained in torch.bfloat16"):
        make_trainer(half)
    with pytest.raises(ValueError, match="needs an `eval_dataset`"):
        make_trainer(trainer={"eval_dataset": None}).evaluate()
    with pytest.raises(ValueError, match="2 rows and one per process, got 1"):
        make_trainer().evaluate(ROWS[:1])


def test_ordinary_arguments_work(tmp_path):
    plain = TrainingArguments(output_dir=str(tmp_path), learning_rate=0.3, use_cpu=True)
    args = VLJepaTrainingArguments.from_plain(plain)
    assert args.learning_rate == 0.3
    assert args.remove_unused_columns is False
    assert args.y_encoder_lr_multiplier == 0.05
    best = VLJepaTrainingArguments(output_dir=str(tmp_path), save_strategy="best", eval_strategy="steps", use_cpu=True)
    assert best.metric_for_best_model == "eval_retrieval_at_1"
    assert best.greater_is_better
