"""Scripts that nothing else runs: they import, and every trial of a search is a recipe that makes a model."""

from importlib import import_module, util
from pathlib import Path

import pytest

from hf_jepa.programs import pretrain_image, pretrain_video
from hf_jepa.programs.recipes import parse_recipe
from scripts.search import image_trials

ROOT = Path(__file__).parents[2]
NEEDS = {"scripts.run_notebooks": "nbformat"}


def test_every_script_imports():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "scripts").rglob("*.py")]
    assert len(modules) > 20
    for module in modules:
        if module not in NEEDS or util.find_spec(NEEDS[module]) is not None:
            import_module(module)


@pytest.mark.parametrize("search", ["changes", "cluttered", "demo_recipes", "video_future"])
def test_every_trial_of_a_search_makes_a_model(search):
    module = import_module(f"scripts.search.{search}")
    of_clips = search == "video_future"
    types = module.TYPES if of_clips else image_trials.TYPES
    for recipe, flags in module.trials():
        arguments, data, *_, training = parse_recipe(types, [recipe], output_dir="unused", **flags)
        if of_clips:
            model = pretrain_video.build_model(arguments, data.num_frames[0], training.seed)
        else:
            model = pretrain_image.build_model(arguments, training.seed)
        assert model.num_parameters() > 0
