"""
Tiny runs: 24 labelled noise pictures, a two-layer I-JEPA, random crops, balanced masks; a one-layer Llama on 24 pairs
of Text and Code; a VL-JEPA on 24 colours.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from PIL import Image

from hf_jepa import (
    IJepaForPreTraining,
    JepaTrainer,
    JepaTrainingArguments,
    LLMJepaForCausalLM,
    LLMJepaTrainer,
    LLMJepaTrainingArguments,
    VLJepaTrainer,
)
from hf_jepa.data import MaskCollator, SeededImageDataset, eval_transform, train_transform
from hf_jepa.masking import MultiBlockMaskGenerator
from tests import vl_jepa_world
from tests.tiny_models import tiny_ijepa, tiny_llama
from trainers.worlds import nl_regex

PAIRS = nl_regex.make_splits((24,), seed=1)[0]


class Uploads(list):
    """What a stand-in for the Hub was sent; `error` is raised instead if there is one."""

    error: Exception | None = None
    private: bool | None = None

    def create_repo(self, repo_id: str, private: bool | None = None, **_: Any) -> Any:
        self.private = private
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: Any, commit_message: str, **_: Any) -> str:
        if self.error is not None:
            raise self.error
        files = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()}
        self.append((repo_id, commit_message, files))
        return f"https://hub.invalid/{repo_id}"


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    hub = Uploads()
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **kwargs: hub.create_repo(*args, **kwargs))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **kwargs: hub.upload_folder(**kwargs))
    return hub


@pytest.fixture(scope="session")
def pictures() -> Dataset:
    generator = np.random.default_rng(0)
    rows = {"image": [], "label": []}
    for index in range(24):
        # Two classes that are easy to tell apart: dark and bright noise.
        noise = generator.integers(0, 128, (40, 40, 3)) + 127 * (index % 2)
        rows["image"].append(Image.fromarray(noise.astype(np.uint8)))
        rows["label"].append(index % 2)
    return Dataset.from_dict(rows)


@pytest.fixture
def tiny_model() -> Callable[..., IJepaForPreTraining]:
    def build(seed: int = 0, hidden_size: int = 32) -> IJepaForPreTraining:
        torch.manual_seed(seed)
        sizes = {"hidden_size": hidden_size, "num_hidden_layers": 2, "image_size": 48}
        return tiny_ijepa(sizes, initialization="fan_in")

    return build


@pytest.fixture
def make_trainer(pictures: Dataset, tiny_model: Callable[..., Any], tmp_path: Path) -> Callable[..., JepaTrainer]:
    def build(model: Any = None, trainer: dict[str, Any] | None = None, **args: Any) -> JepaTrainer:
        collator = MaskCollator(MultiBlockMaskGenerator(48, 8, min_keep=2, mode="balanced"))
        dataset = SeededImageDataset(pictures, train_transform(48), seed=1)
        probes = SeededImageDataset(pictures, eval_transform(48), label_column="label")
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "warmup_steps": 1,
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        given = {
            "data_collator": collator,
            "train_dataset": dataset,
            "eval_dataset": probes,
            "probe_train_dataset": probes,
        }
        return JepaTrainer(
            model=tiny_model() if model is None else model,
            args=JepaTrainingArguments(**{**defaults, **args}),
            **{**given, **(trainer or {})},
        )

    return build


@pytest.fixture
def make_llm_trainer(tmp_path: Path) -> Callable[..., LLMJepaTrainer]:
    def make(
        model: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        **args: Any,
    ) -> LLMJepaTrainer:
        tokenizer = nl_regex.build_tokenizer()
        torch.manual_seed(0)
        fields = {"num_key_value_heads": 1, "pad_token_id": tokenizer.pad_token_id, **(decoder or {})}
        wrapped = LLMJepaForCausalLM.from_decoder(tiny_llama(tokenizer, **fields), tokenizer, **(model or {}))
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.05,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        given = {"train_dataset": PAIRS, "eval_dataset": PAIRS[:5], "processing_class": tokenizer}
        return LLMJepaTrainer(
            wrapped, LLMJepaTrainingArguments(**{**defaults, **args}), **{**given, **(trainer or {})}
        )

    return make


@pytest.fixture
def make_vl_trainer(tmp_path: Path) -> Callable[..., VLJepaTrainer]:
    rows = vl_jepa_world.build_rows(24)

    def make(model: Any = None, trainer: dict[str, Any] | None = None, **args: Any) -> VLJepaTrainer:
        given = {"train_dataset": rows, "eval_dataset": rows[:9], "processing_class": vl_jepa_world.build_processor()}
        built = model if isinstance(model, torch.nn.Module) else vl_jepa_world.build_model(**(model or {}))
        arguments = vl_jepa_world.build_arguments(tmp_path / "run", **args)
        return VLJepaTrainer(built, arguments, **{**given, **(trainer or {})})

    return make


@pytest.fixture(params=["jepa", "llm", "vl"])
def make_any_trainer(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Each of the trainers, made as `make(trainer={...}, **args)`."""
    name = {"jepa": "make_trainer", "llm": "make_llm_trainer", "vl": "make_vl_trainer"}[request.param]
    return request.getfixturevalue(name)
