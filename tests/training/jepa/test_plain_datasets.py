"""JepaTrainer on rows of `datasets`, as they come: the method's default transform and collator."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import IJepaConfig, ViTConfig, ViTModel

from hf_jepa import (
    IJepaForPreTraining,
    IJepaPreTrainingConfig,
    JepaTrainer,
    JepaTrainingArguments,
    VICRegForPreTraining,
    VICRegPreTrainingConfig,
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VJepaConfig,
)
from hf_jepa.data import MaskCollator, SeededImageDataset, train_transform
from hf_jepa.masking import MultiBlockMaskGenerator

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def ijepa(image_size=48, num_channels: int = 3) -> IJepaForPreTraining:
    encoder = IJepaConfig(**VIT, image_size=image_size, patch_size=4, num_channels=num_channels)
    return IJepaForPreTraining(
        IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    )


def vicreg(**_) -> VICRegForPreTraining:
    encoder = ViTConfig(**VIT, image_size=16, patch_size=4)
    sizes = {"projector_hidden_size": 16, "projection_size": 8, "image_size": 16}
    return VICRegForPreTraining(VICRegPreTrainingConfig(encoder_config=encoder, **sizes))


def vjepa2(**_) -> VJepa2ForPreTraining:
    sizes = {"pred_hidden_size": 16, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    encoder = VJepaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=8,
        crop_size=64,
        frames_per_clip=4,
        **sizes,
    )
    return VJepa2ForPreTraining(VJepa2PreTrainingConfig(encoder_config=encoder))


def rows(count: int = 12, grey: bool = False, column: str = "image") -> datasets.Dataset:
    noise = np.random.default_rng(0).integers(0, 256, (count, 60, 70, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).convert("L" if grey else "RGB") for pixels in noise]
    features = datasets.Features({column: datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({column: images, "kind": [0, 1] * (count // 2)}, features=features)


def arguments(tmp_path, **options) -> JepaTrainingArguments:
    base = {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1, "use_cpu": True}
    return JepaTrainingArguments(output_dir=str(tmp_path), save_strategy="no", disable_tqdm=True, **base | options)


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (ijepa(), {"pixel_values": (4, 3, 48, 48)}),
        (ijepa((48, 64)), {"pixel_values": (4, 3, 48, 64)}),
        (ijepa(num_channels=1), {"pixel_values": (4, 1, 48, 48)}),
        (vicreg(), {"pixel_values": (4, 2, 3, 16, 16)}),
        (vjepa2(), {"pixel_values_videos": (4, 4, 3, 64, 64)}),
    ],
    ids=["masks", "not-square", "grey", "views", "clips"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_rows_are_trained_on_as_they_come(model, shapes, stream, tmp_path):
    data = rows(grey=model.config.encoder_config.to_dict().get("num_channels") == 1)
    trainer = JepaTrainer(model, arguments(tmp_path), train_dataset=data.to_iterable_dataset() if stream else data)
    batch = next(iter(trainer.get_train_dataloader()))
    assert {name: tuple(batch[name].shape) for name in shapes} == shapes
    trainer.train()
    assert trainer.state.global_step == 2
    release = trainer.write_release()
    assert (release / "config.json").is_file()


def test_a_small_grid_keeps_what_it_has(tmp_path):
    trainer = JepaTrainer(ijepa(24), arguments(tmp_path), train_dataset=rows())
    assert 0 < trainer.data_collator.mask_generator.min_keep < 10
    trainer.train()


def test_masks_are_for_the_grid_of_a_size_that_is_not_square(tmp_path):
    model = ijepa((48, 64))
    trainer = JepaTrainer(model, arguments(tmp_path), train_dataset=rows())
    assert trainer.data_collator.mask_generator.grid_size == (12, 16)
    largest = max(int(mask.max()) for mask in next(iter(trainer.get_train_dataloader()))["context_mask"])
    assert 144 < largest < 192


def test_probes_see_rows_through_the_processor(tmp_path):
    data = rows()
    trainer = JepaTrainer(
        ijepa(),
        arguments(tmp_path),
        train_dataset=data,
        eval_dataset=data,
        probe_train_dataset={"whole": data}["whole"],
    )
    seen = trainer.eval_dataset[3]
    expected = trainer.processing_class(data[3]["image"], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(seen["pixel_values"], expected)
    assert seen["label"] == 1
    assert set(trainer.evaluate()) >= {"eval_knn_accuracy", "eval_ridge_accuracy"}


def test_arguments_win_over_the_defaults(tmp_path):
    collator = MaskCollator(MultiBlockMaskGenerator(48, 4, num_target_masks=2, seed=5))
    samples = SeededImageDataset(rows(), train_transform(48, hflip=True))
    trainer = JepaTrainer(ijepa(), arguments(tmp_path), collator, samples)
    assert trainer.data_collator is collator
    assert trainer.train_dataset is samples
    # The transform by default, the masks given.
    trainer = JepaTrainer(ijepa(), arguments(tmp_path), collator, rows())
    assert len(next(iter(trainer.get_train_dataloader()))["target_mask"]) == 2


def test_seeds_decide_the_draws(tmp_path):
    def first(**options) -> torch.Tensor:
        trainer = JepaTrainer(ijepa(), arguments(tmp_path, **options), train_dataset=rows())
        return next(iter(trainer.get_train_dataloader()))["pixel_values"]

    assert torch.equal(first(), first(seed=42))
    assert not torch.equal(first(), first(seed=1))
    assert not torch.equal(first(), first(data_seed=1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (datasets.Dataset.from_dict({"text": ["a"] * 12}), "none is here: text"),
        (
            datasets.concatenate_datasets([rows(), rows(column="photo").remove_columns("kind")], axis=1),
            "several are here: image, photo",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        JepaTrainer(ijepa(), arguments(tmp_path), train_dataset=data)


def test_a_model_of_no_method_needs_a_collator(tmp_path):
    with pytest.raises(ValueError, match="ViTModel is of no known method.*register_method"):
        JepaTrainer(ViTModel(ViTConfig(**VIT, image_size=16, patch_size=4)), arguments(tmp_path), train_dataset=rows())


def test_probes_without_labels_are_refused(tmp_path):
    unlabelled = rows().remove_columns("kind")
    with pytest.raises(ValueError, match="column of labels"):
        JepaTrainer(ijepa(), arguments(tmp_path), train_dataset=rows(), eval_dataset=unlabelled)
