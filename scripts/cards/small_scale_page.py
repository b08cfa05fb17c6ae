"""docs/small_scale.md: which small recipes beat their own untrained encoder, from the files of scripts/search."""

import json

from scripts.search import cluttered, demo_recipes, video_future

from .count_models import COUNTS

CLUTTERED = [cluttered.FILE.name.format(family) for family in ("lejepa", "ijepa")]
FILES = [demo_recipes.FILE.name, video_future.FILE.name, *CLUTTERED]

INTRODUCTION = """# What learns in minutes

A recipe has learned if its encoder beats its own random initialisation. Image recipes of minutes were run as they
ship, in bfloat16, and probed before and after on Fashion-MNIST's test split; probes are fitted on the labelled
training images that the recipe asks for, so that rows of different recipes are not to be compared. Mean ± standard
deviation over the seeds; a difference within one deviation is a tie.

`python -m scripts.search.demo_recipes` ([all runs](../model_cards/comparisons/demo_recipes.json)). What
`ijepa_fashion_mnist` gains, three seeds too, stands on [its page](methods/ijepa.md).
"""
WORDS = """All gain on pooled features and on tokens. Two needed more than their first recipes had:
`ijepa_sigreg_fashion_mnist`, which has no moving average, 3,000 steps (after 1,000 its tokens tied:
[trials](../model_cards/comparisons/search_ijepa_sigreg.json)), data2vec ten times the steps and a slow teacher
([its page](methods/data2vec.md)).
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

CLUTTER = """## A harder world

`trainers.worlds.cluttered_fashion` puts the garments at random places, in random sizes and colours, over fragments of
others, at 64 pixels, so that raw pixels no longer win by alignment. The probes have 4,000 labels.
`python -m scripts.search.cluttered lejepa` and `ijepa`
([all](../model_cards/comparisons/search_cluttered_lejepa.json)
[runs](../model_cards/comparisons/search_cluttered_ijepa.json)):
"""
CLUTTER_WORDS = """LeJEPA, with a small ConvNet and jitter through all hues, gains more than a deviation on every
probe in 200 steps of 128 images, but not evenly: two seeds gain 10 to 21 points, the third, whose loss ends higher, 6
to 11, so that k-NN of raw pixels (36.0, all of them, not their mean) is as good as its own on average. The same
encoder learns the probe's 4,000 labels to 61 % in as many steps. I-JEPA does not work there at this scale: it gains on
tokens alone, and with VISReg it collapses; presumably because what can be predicted of a hidden patch is colour and
background, not the garment. [Other libraries' I-JEPA](comparison.md#a-harder-world) does not either.
"""


def small_scale_page() -> str:
    folder = COUNTS.parent
    images, videos, *clutter = (json.loads((folder / name).read_text()) for name in FILES)
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
            cluttered.render(clutter),
            "",
            CLUTTER_WORDS,
        ]
    )
