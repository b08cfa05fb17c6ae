"""V-JEPA 2-AC on the shared trainer: from pixels and from latents, with the encoder as it was."""

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel

from hf_jepa import JepaTrainer, JepaTrainingArguments, VJepa2ACModel
from hf_jepa.cli import main

from .conftest import tiny_config


class Drives(torch.utils.data.Dataset):
    """A bright bar that one entry of the action moves; with a model, as its latents."""

    def __init__(self, model: VJepa2ACModel | None = None):
        self.examples = [self.draw(index) for index in range(len(self))]
        if model is not None:
            for example in self.examples:
                example["latents"] = model.encode(example.pop("pixel_values_videos")[None])[0]

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict(self.examples[index])

    def draw(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        steps = torch.randint(-3, 4, (3,), generator=generator)
        places = (8 + torch.cat([torch.zeros(1), steps.cumsum(0)]).long()) % 16
        frames = torch.zeros(4, 3, 16, 16)
        frames[torch.arange(4), :, :, places] = 2.0
        actions, states = torch.zeros(3, 7), torch.zeros(4, 7)
        actions[:, 0], states[:, 0] = steps / 3, places / 16
        return {"actions": actions, "states": states, "pixel_values_videos": frames}


def collate(examples):
    names = [name for name, value in examples[0].items() if isinstance(value, torch.Tensor)]
    return {name: torch.stack([example[name] for example in examples]) for name in names}


def build(**changes) -> VJepa2ACModel:
    torch.manual_seed(0)
    return VJepa2ACModel(tiny_config(initializer_range=0.1, **changes))


def trainer_for(model, folder, dataset, **changes) -> JepaTrainer:
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
    }
    args = JepaTrainingArguments(output_dir=str(folder), **(settings | changes))
    return JepaTrainer(model=model, args=args, data_collator=collate, train_dataset=dataset)


@pytest.mark.parametrize("source", ["pixels", "latents"])
def test_trains_logs_and_resumes(tmp_path, source):
    def start():
        model = build()
        return trainer_for(model, tmp_path, Drives(model if source == "latents" else None))

    whole = start()
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.train()
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    named = {"teacher_forcing", "rollout", "rollout_error_1", "rollout_error_2", "target_token_std"}
    assert named <= logs[0].keys()
    assert ("target_std" in logs[0]) == (source == "pixels")
    assert logs[0]["images_per_second"] > 0
    assert logs[-1]["loss"] < logs[0]["loss"]
    after = whole.model.state_dict()
    for name, tensor in before.items():
        untouched = name.startswith(("encoder.", "predictor.extrinsics_encoder"))
        assert torch.equal(tensor, after[name]) == untouched, name

    folder = whole.write_release(whole.measured_results() | {"licence": "mit"})
    released = AutoModel.from_pretrained(folder)
    assert type(released) is VJepa2ACModel
    for name, tensor in released.state_dict().items():
        assert torch.equal(tensor, after[name]), name

    resumed = start()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize(("use_extrinsics", "rollout_steps"), [(False, 2), (True, 3), (False, 0)])
def test_distributed_training_finds_every_parameter_used(tmp_path, use_extrinsics, rollout_steps):
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(build(use_extrinsics=use_extrinsics, rollout_steps=rollout_steps))
        batch = collate([Drives()[index] for index in range(2)])
        batch |= {"extrinsics": torch.zeros(2, 4, 6)} if use_extrinsics else {}
        for _ in range(2):  # the second pass is where parameters without a gradient are complained of
            model(**batch).loss.backward()
    finally:
        distributed.destroy_process_group()


def test_checkpoints_are_exported_whole(tmp_path, capsys):
    model = build()
    model.save_pretrained(tmp_path / "checkpoint")
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "release"), "--license", "mit"]) == 0
    assert "the whole model" in capsys.readouterr().out
    released = AutoModel.from_pretrained(tmp_path / "release").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, released[name]), name
