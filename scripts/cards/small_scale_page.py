"""docs/small_scale.md: which small recipes beat their own untrained encoder, from the files of scripts/search."""

import json

from scripts.search import cluttered, demo_recipes, video_future

from .count_models import COUNTS

IMAGES, VIDEOS = demo_recipes.FILE.name, video_future.FILE.name
CLUTTERED = cluttered.FILE.name.format("ijepa")

INTRODUCTION = """# What learns in minutes

A recipe has learned if its encoder beats its own random initialisation. Image recipes of minutes were run as they
ship, in bfloat16, and probed before and after on Fashion-MNIST's test split; probes are fitted on the labelled
training images that the recipe asks for, so that rows of different recipes are not to be compared. Mean ± standard
deviation over the seeds; a difference within one deviation is a tie.

`python -m scripts.search.demo_recipes` ([all runs](../model_cards/comparisons/demo_recipes.json)). What
`ijepa_fashion_mnist` gains, three seeds too, stands on [its page](methods/ijepa.md).
"""
WORDS = """Without a moving average, `ijepa_sigreg_fashion_mnist` gains on k-NN alone: its tokens tie.
All others gain on pooled features and on tokens; data2vec needs ten times the steps of its first recipe and a slow
teacher ([its page](methods/data2vec.md)).
"""
VIDEO = """## Video: what only the future answers

A random video transformer already tells a garment's class, direction and speed, so that these probes hardly move
([V-JEPA 2](methods/vjepa2.md)). Where the garment in front will be at the end of a clip, in which of nine cells, told
from its first half, is another matter: ridge probes of 2,000 clips, scored on 1,000 test clips, read the encoder's
tokens (`next cell`) or the predictor's tokens of the last, unseen time slot (`next cell, predicted`). `order` asks
whether the parts of a clip were shuffled (chance 50), which neither tells.

`python -m scripts.search.video_future --trials recipe --split test --seeds 0 1 2`
([all runs](../model_cards/comparisons/search_video_future.json)), 700 steps of 16 clips as the recipe of
`make demo-video` has them:
"""

CLUTTER = """## A harder world, not learned

`trainers.worlds.cluttered_fashion` puts the garments at random places, in random sizes and colours, over fragments of
others. In 900 steps of 32 images I-JEPA gains on one probe of four there and loses on three, and with VISReg it
collapses; presumably because what can be predicted of a hidden patch is colour and background, not the garment.
Validation split, one seed (`python -m scripts.search.cluttered ijepa`,
[all runs](../model_cards/comparisons/search_cluttered_ijepa.json)):
"""


def small_scale_page() -> str:
    folder = COUNTS.parent
    images, videos, clutter = (json.loads((folder / name).read_text()) for name in (IMAGES, VIDEOS, CLUTTERED))
    seconds = [trial["cpu_seconds"] for trial in videos["trials"] if trial["split"] == "test"]
    return "\n".join(
        [
            INTRODUCTION,
            demo_recipes.render(images),
            "",
            WORDS,
            VIDEO,
            video_future.render(videos["trials"]),
            "",
            f"A run takes {min(seconds):.0f} to {max(seconds):.0f} s of one core.",
            "",
            CLUTTER,
            cluttered.render([clutter]),
            "",
        ]
    )
