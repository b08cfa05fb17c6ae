"""A method that is added in one file trains from recipes and from rows, is released, and comes back."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining

from hf_jepa import JepaTrainer, JepaTrainingArguments
from hf_jepa.data import load_image_dataset
from hf_jepa.methods import METHODS, method_of_model
from hf_jepa.programs.launch import train

# What the recipe of the masked I-JEPA has to say for each instead.
FLAGS = {
    "masks": [],
    "views": ["--encoder", "vit", "--num_local_views", "0"],
    "subclass": ["--method", "{quiet_weight: 0.5}"],
}
LOGGED = {"masks": "mean_loss", "views": "apart", "subclass": "quiet"}


@pytest.fixture(params=FLAGS)
def method(request):
    """The entry of a toy, forgotten afterwards by what lists methods."""
    found = importlib.import_module(f"tests.programs.toys.{request.param}").METHOD
    METHODS[found.name] = found
    yield request.param, found
    del METHODS[found.name]


def test_it_trains_from_a_recipe_and_comes_back(method, recipe, tmp_path):
    kind, entry = method
    if kind != "subclass":
        path = Path(recipe[0])
        lines = (line for line in path.read_text().splitlines() if "predictor_" not in line)
        path.write_text("\n".join(lines))
    train([*recipe, "--family", entry.name, *FLAGS[kind]])
    release = tmp_path / "run" / "release"
    composite = AutoModelForPreTraining.from_pretrained(release, subfolder="pretraining").eval()
    assert type(composite) is entry.composite.load("model")
    assert method_of_model(composite) is entry
    encoder = AutoModel.from_pretrained(release).eval()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        expected = getattr(composite, "target_encoder", composite.encoder)(images).last_hidden_state
        torch.testing.assert_close(encoder(images).last_hidden_state, expected)
    results = json.loads((release / "results.json").read_text())
    assert {entry["task"] for entry in results["evaluations"]} == {"knn", "ridge"}
    assert (release / "recipe.yaml").read_text().startswith(f"family: {entry.name}\n")
    if kind == "subclass":
        assert composite.config.quiet_weight == 0.5


def test_it_trains_on_rows_as_they_come(method, recipe, dataset, tmp_path):
    kind, entry = method
    model = AutoModelForPreTraining.from_config(small(kind, entry))
    args = JepaTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    trainer = JepaTrainer(model, args, train_dataset=load_image_dataset(dataset, "train"))
    trainer.train()
    assert any(LOGGED[kind] in entry for entry in trainer.state.log_history)
    again = AutoModelForPreTraining.from_pretrained(trainer.write_release(), subfolder="pretraining")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in trainer.model.state_dict().items())


def small(kind: str, entry):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = {"model_type": "vit" if kind == "views" else "ijepa", **sizes}
    encoder |= {"image_size": 16, "patch_size": 4, "num_channels": 1}
    own = {"masks": {}, "views": {"image_size": 16}, "subclass": {"predictor_hidden_size": 8}}[kind]
    return entry.composite.load("config")(encoder_config=encoder, **own)
