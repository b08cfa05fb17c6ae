"""docs/comparison.md: I-JEPA of three libraries on two worlds, from the files of scripts/peers."""

import json

from scripts.peers.compare import WORLDS, render

from .count_models import COUNTS

PLAIN = """# Against other libraries

`python -m scripts.peers.compare` trains hf_jepa's, lightly's and stable-pretraining's I-JEPA on the same images, with
the same backbone and predictor sizes, batch size, dtype and processor time on one thread, and probes the frozen target
encoders alike on the test split. Ours follows the recipe of `make demo`, which was tuned on a validation split; the
others follow their own documentation. Mean ± standard deviation over the seeds; a difference within one deviation is
a tie. Raw pixels are a picture's patches here: pooled, their mean.

## Fashion-MNIST

`python -m scripts.peers.compare plain --jobs 2`: five minutes, in float32, 10,000 labels
([all runs](../model_cards/comparisons/peers.json)).
"""
PLAIN_WORDS = """Ours is ahead of both libraries by more than a deviation on k-NN, pooled ridge and attentive probes,
of lightly on all tokens too and of stable-pretraining with few labels too; the two that are left are ties. Over the
untrained encoder ours gains more than a deviation on every probe, lightly on pooled features and, with the paper's
masks, with few labels; stable-pretraining ties with it on four, and its attentive probe is three points below.
Lightly sees a fifth to a quarter more images in that time. Their settings are made for long runs on large images, ours
for minutes.
"""
CLUTTERED = """## A harder world

Garments over clutter ([what that is](small_scale.md#a-harder-world)): two minutes, in float32, 4,000 labels. Where
another of three settings did better on the validation split, a library runs with that one too; lightly's better
setting is its default one. Ours (x1) has the rate (5e-4) and the crops (from 0.8 of the area) of an earlier recipe.
`python -m scripts.peers.compare cluttered --minutes 2`
([all runs](../model_cards/comparisons/peers_cluttered.json)).
"""
CLUTTERED_WORDS = """Nobody's I-JEPA learns much in two minutes: over the untrained encoder, ours (x1) gains barely
more than a deviation on all tokens and with few labels, lightly a point of attention, a tie; all lose k-NN. Of the
trained ones ours (x1) is ahead on k-NN, both ridge probes and few labels, by more than a deviation; on the
attentive probe it is behind lightly by six points, and not better than stable-pretraining. Half its rate, which
validation prefers, gives back most of that lead for under two points of attention. On pictures like these,
[LeJEPA is the method to take](small_scale.md#a-harder-world).
"""


def comparison_page() -> str:
    plain, cluttered = (json.loads((COUNTS.parent / WORLDS[name].file).read_text()) for name in ("plain", "cluttered"))
    tables = ((PLAIN, plain, PLAIN_WORDS), (CLUTTERED, cluttered, CLUTTERED_WORDS))
    return "\n".join(part for before, log, after in tables for part in (before, render(log["rows"]), "", after))
