"""World models on the shared trainer: what it logs, and that a resumed run is the same run."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from hf_jepa import ConvEncoderConfig, JepaTrainer, JepaTrainingArguments, LatentWorldModel, LatentWorldModelConfig


class Walks(torch.utils.data.Dataset):
    """A bright pixel that actions move over a torus of 8 x 8."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        actions = torch.randint(-1, 2, (4, 2), generator=generator)
        start = torch.randint(0, 8, (1, 2), generator=generator)
        places = torch.cat([start, start + actions[:3].cumsum(dim=0)]) % 8
        frames = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        frames[torch.arange(4), 0, places[:, 0], places[:, 1]] = 255
        return {"pixel_values": frames, "actions": actions.float()}


def collate(examples):
    return {name: torch.stack([example[name] for example in examples]) for name in ("pixel_values", "actions")}


def build(**changes):
    torch.manual_seed(0)
    fields = {
        "encoder_config": ConvEncoderConfig(image_size=8, num_channels=1, hidden_sizes=[8, 8], hidden_size=8),
        "action_dim": 2,
        "image_mean": [0.1],
        "image_std": [0.5],
        "predictor_hidden_size": 16,
        "inverse_hidden_size": 16,
        "sigreg_weight": 0.1,
        "inverse_dynamics_weight": 1.0,
        "rollout_steps": 3,
        "num_slices": 16,
        **changes,
    }
    return LatentWorldModel(LatentWorldModelConfig(**fields))


def trainer_for(model, folder, **changes):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
        **changes,
    }
    args = JepaTrainingArguments(output_dir=str(folder), **settings)
    return JepaTrainer(model=model, args=args, data_collator=collate, train_dataset=Walks())


@pytest.mark.parametrize("projector", [None, 8])
def test_trains_logs_and_resumes(tmp_path, projector):
    whole = trainer_for(build(projector_hidden_size=projector), tmp_path / "whole", save_strategy="steps")
    whole.train()
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    names = {"prediction", "sigreg", "inverse_dynamics", "rollout_error_1", "rollout_error_3", "target_std"}
    names |= {"target_rankme", "prediction_token_std"}
    assert names <= logs[0].keys()
    steps = [logs[0][f"rollout_error_{step}"] for step in (1, 2, 3)]
    assert logs[0]["prediction"] == pytest.approx(sum(steps) / 3, rel=1e-5)
    assert logs[-1]["loss"] < logs[0]["loss"]
    resumed = trainer_for(build(projector_hidden_size=projector), tmp_path / "whole", save_strategy="steps")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    weights = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("kind", ["discrete", "noisy", "sparse"])
def test_latent_variables_train_and_resume(tmp_path, kind):
    changes = {"latent_variable": kind, "num_codes": 3, "rollout_steps": 1, "code_annealing_steps": 3}
    whole = trainer_for(build(**changes), tmp_path / "whole", save_strategy="steps")
    whole.train()
    assert "latent_variable" in whole.state.log_history[0]
    resumed = trainer_for(build(**changes), tmp_path / "whole", save_strategy="steps")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    saved = load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
        assert name in saved


def test_release_holds_the_whole_model_and_its_pixel_statistics(tmp_path):
    trainer = trainer_for(build(), tmp_path / "run", max_steps=2, save_strategy="no")
    trainer.train()
    folder = trainer.write_release()
    loaded = AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining")
    assert isinstance(loaded, LatentWorldModel)
    batch = collate([Walks()[0], Walks()[1]])
    latents = trainer.model.eval().encode(batch["pixel_values"])
    assert torch.equal(loaded.encode(batch["pixel_values"]), latents)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1], [0.5])
    encoder = AutoModel.from_pretrained(folder).eval()
    frames = batch["pixel_values"].flatten(0, 1)
    pixels = processor(list(frames), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    torch.testing.assert_close(encoder(pixels).pooler_output.view_as(latents), latents)
