"""What a published VL-JEPA holds, from the trainer to the folder, and what is refused."""

import ast
import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel, AutoProcessor, VJEPA2Model

from hf_jepa import VLJepaTrainer
from hf_jepa.hub.vl_release import save_vl_release
from tests import vl_jepa_world

ROWS = vl_jepa_world.build_rows(16)
RESULTS = {"model": {"name": "tiny"}, "licence": "mit"}


@pytest.fixture
def trainer(tmp_path) -> VLJepaTrainer:
    args = vl_jepa_world.build_arguments(tmp_path / "run", max_steps=2)
    return VLJepaTrainer(vl_jepa_world.build_model(), args, ROWS, ROWS[:9], vl_jepa_world.build_processor())


def test_a_release_is_whole_and_its_card_runs(trainer, tmp_path):
    trainer.train()
    trainer.evaluate()
    picture = tmp_path / "curves.png"
    Image.new("RGB", (4, 4)).save(picture)
    folder = trainer.write_release(recipe={"seed": 1}, pictures=[picture])
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.json", "model.safetensors", "processor_config.json", "video_preprocessor_config.json", "README.md",
        "results.json", "recipe.yaml", "curves.png", "query_tokenizer/tokenizer_config.json",
    } <= names  # fmt: skip
    results = json.loads((folder / "results.json").read_text())
    assert results["model"]["num_parameters_trained"] < results["model"]["num_parameters"]
    assert [part["name"] for part in results["model"]["components"]] == ["X-encoder", "predictor", "Y-encoder"]
    assert len(results["evaluations"]) == 6
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.pipeline_tag == "feature-extraction"
    assert "vl_jepa" in card.data.tags
    assert "recall@1" in card.text
    # The card's own lines, on this release.
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    code = code.replace('"run"', repr(str(folder))).replace("a red circle", "w1").replace("a blue square", "w2 w3")
    assert repr(str(folder)) in code
    ast.parse(code)
    scope = {"image": Image.new("RGB", (9, 9))}
    exec(code, scope)
    assert scope["scores"].shape == (1, 2)
    # Writing it again replaces it.
    trainer.write_release(results)
    assert not (folder / "curves.png").exists() or json.loads((folder / "results.json").read_text())["pictures"] == []


def test_a_release_loads_as_what_was_trained(trainer):
    trainer.train()
    folder = trainer.write_release()
    again = AutoModel.from_pretrained(folder)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert AutoProcessor.from_pretrained(folder).num_frames == 4


def test_paths_of_this_machine_are_not_published(tmp_path):
    source = vl_jepa_world.build_model()
    VJEPA2Model(source.config.vision_config).save_pretrained(tmp_path / "my-vision")
    parts = [str(tmp_path / "my-vision"), source.predictor, source.y_encoder.model]
    model = type(source).from_components(*parts, num_layers=1, projection_dim=12, save_frozen=False)
    with pytest.raises(ValueError, match="nobody else has"):
        save_vl_release(model, tmp_path / "out", vl_jepa_world.build_processor(), RESULTS)
    model.config.save_frozen = True
    folder = save_vl_release(model, tmp_path / "out", vl_jepa_world.build_processor(), RESULTS)
    for name in ("README.md", "results.json", "config.json"):
        assert str(tmp_path) not in (folder / name).read_text(), name
    assert "from `my-vision`" in (folder / "README.md").read_text()
    # The trainer's own checkpoints still know the folder.
    assert model.config.sources["vision"]["name_or_path"] == str(tmp_path / "my-vision")


def test_faults_are_named(trainer, tmp_path):
    with pytest.raises(ValueError, match="These pictures do not exist"):
        trainer.write_release(pictures=[tmp_path / "nowhere.png"])
    trainer.processing_class = None
    with pytest.raises(ValueError, match="needs the processor"):
        trainer.write_release()


def test_a_push_uploads_the_release(trainer, monkeypatch):
    sent = {}
    monkeypatch.setattr(
        "hf_jepa.training.base_trainer.push_release",
        lambda folder, repo, **options: sent.update(folder=folder, **options) or "there",
    )
    assert trainer.push_to_hub(license="mit", blocking=True, private=True) == "there"
    assert sent["private"] is True
    assert ModelCard((sent["folder"] / "README.md").read_text()).data.license == "mit"
