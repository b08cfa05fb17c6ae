"""data2vec through `JepaTrainer`: its loop written out, its schedule, resuming, probes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Data2VecVisionConfig

from hf_jepa import Data2VecVisionForPreTraining, Data2VecVisionPreTrainingConfig, JepaTrainer
from hf_jepa.data import MaskCollator
from hf_jepa.masking import BlockwiseMaskGenerator
from hf_jepa.models.data2vec_vision.configuration_data2vec_vision import ENCODER_DEFAULTS

# Of the published recipe.
SETTINGS = {
    "learning_rate": 2e-3,
    "learning_rate_start": 0.0,
    "learning_rate_end": 1e-5,
    "weight_decay": 0.05,
    "weight_decay_end": 0.05,
    "max_grad_norm": 3.0,
    "ema_momentum": 0.9998,
    "ema_momentum_end": 0.9998,
}


@pytest.fixture
def data2vec() -> Callable[..., Data2VecVisionForPreTraining]:
    def build(seed: int = 0, **encoder: Any) -> Data2VecVisionForPreTraining:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = Data2VecVisionConfig(**{**ENCODER_DEFAULTS, **sizes, "image_size": 48, "patch_size": 8, **encoder})
        return Data2VecVisionForPreTraining(Data2VecVisionPreTrainingConfig(encoder_config=config, target_layers=1))

    return build


@pytest.fixture
def make(make_trainer: Callable[..., JepaTrainer]) -> Callable[..., JepaTrainer]:
    def build(model: Any, **settings: Any) -> JepaTrainer:
        collator = MaskCollator(BlockwiseMaskGenerator(48, 8, min_block=4, mode="balanced"))
        return make_trainer(model, {"data_collator": collator}, **{**SETTINGS, **settings})

    return build


def test_steps_are_those_of_a_loop_written_out(make, data2vec) -> None:
    trainer = make(data2vec(drop_path_rate=0.0), max_steps=3, train_sampling_strategy="sequential")
    model = data2vec(drop_path_rate=0.0).train()
    rows = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    spared = [p for name, p in rows if p.ndim == 1 or name.endswith("cls_token")]
    decayed = [p for _, p in rows if not any(p is other for other in spared)]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": spared, "weight_decay": 0.0}], weight_decay=0.05)
    # Warmup of one update from 0 to the peak, then half a cosine over the other two.
    rates = [2e-3, 1e-5 + (2e-3 - 1e-5) / 2, 1e-5]
    losses = []
    trainer.data_collator.draws_per_step = 4
    for step, rate in enumerate(rates):
        samples = [
            trainer.train_dataset[index, step * 4 + place] for place, index in enumerate(range(4 * step, 4 * step + 4))
        ]
        loss = model(**trainer.data_collator(samples)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in rows], 3.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        for name, parameter in rows:
            target = model.get_parameter(f"target_{name}")
            target.data.copy_(0.9998 * target + 0.0002 * parameter.detach())
        losses.append(float(loss.detach()))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logs] == pytest.approx(losses, abs=1e-5)
    assert [entry["ema_momentum"] for entry in logs] == [0.9998] * 3
    assert [entry["weight_decay"] for entry in logs] == [0.05] * 3
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-3, atol=2e-6, msg=name)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make, data2vec, tmp_path: Path) -> None:
    # Stochastic depth draws in training; masks and crops are functions of the draw.
    options = {"drop_path_rate": 0.3, "attention_probs_dropout_prob": 0.1}
    settings = {"max_steps": 5, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    whole = make(data2vec(**options), **settings)
    whole.train()
    resumed = make(data2vec(seed=5, **options), **{**settings, "save_strategy": "no"})
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.model.state_dict().items())
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1]


def test_splitting_the_batch_changes_nothing(make, data2vec) -> None:
    whole = make(data2vec(drop_path_rate=0.0), max_steps=2, per_device_train_batch_size=8)
    whole.train()
    split = make(
        data2vec(drop_path_rate=0.0), max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    split.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_probes_and_logs(make, data2vec) -> None:
    trainer = make(data2vec(), max_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_knn_accuracy"] <= 1
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["prediction_loss"] == pytest.approx(log["loss"], abs=1e-4)
    assert log["target_std"] > 0
    assert log["target_rankme"] >= 1
