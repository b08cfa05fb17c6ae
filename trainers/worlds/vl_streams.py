"""Streams of the VL-JEPA demo: emoji shown one after the other, and a real clip."""

from pathlib import Path
from typing import Any

import torch

from hf_jepa import VLJepaPipeline
from hf_jepa.data.vl_media import read_clip
from hf_jepa.pipelines.vl_jepa import rank
from hf_jepa.streaming import decode_offline, decode_uniformly
from hf_jepa.visualization import plot_stream
from trainers.worlds import emoji_pairs

LENGTH, ARMS = 150, ("uniform", "uniform, mean", "selective", "selective, mean")


def emoji_stream(
    pipeline: VLJepaPipeline, emoji: emoji_pairs.Emoji, rows: torch.Tensor, targets: torch.Tensor
) -> list[dict[str, Any]]:
    """
    A stream of the test style: each concept is shown for 4 to 16 windows, always changing a little. Every concept
    should be named by the decode nearest in time. Uniform and selective decoding, at several rates.
    """
    generator = torch.Generator().manual_seed(7)
    shown = rows[torch.randperm(len(rows), generator=generator)[:LENGTH]]
    lengths = torch.randint(4, 17, (LENGTH,), generator=generator)
    truth = shown.repeat_interleave(lengths)
    tokens = emoji_pairs.vision_tokens(pipeline.model.vision, emoji.images[emoji_pairs.STYLES[2]][truth], generator)
    embeds = pipeline.encode(vision_embeds=tokens.float())
    middles = (lengths.cumsum(dim=0) - (lengths + 1) / 2).round().long()
    found = []
    for share in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
        count = min(round(share * LENGTH), len(truth))
        entry: dict[str, Any] = {"decodes": count, "windows": len(truth)}
        for name, decoding in (
            ("uniform", decode_uniformly(embeds, count)),
            ("uniform, mean", decode_uniformly(embeds, count, "mean")),
            ("selective", decode_offline(embeds, count, decode="exact")),
            ("selective, mean", decode_offline(embeds, count)),
        ):
            nearest = (middles[:, None] - decoding.positions[None]).abs().argmin(dim=1)
            ranked = rank(decoding.embeds, targets[rows], [emoji.names[row] for row in rows], top_k=1)
            pairs = zip(nearest.tolist(), shown.tolist(), strict=True)
            entry[name] = sum(ranked[place][0].text == emoji.names[row] for place, row in pairs) / LENGTH
        found.append(entry)
    return found


def decodes_saved(sweep: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """How many uniform decodes name as many concepts as selective ones, one per concept; linearly interpolated."""
    chosen = next(entry for entry in sweep if entry["decodes"] == LENGTH)
    quality, needed, before = chosen["selective, mean"], None, None
    for entry in sweep:
        best = max(entry["uniform"], entry["uniform, mean"])
        if best >= quality:
            if before is None or before[1] >= best:
                needed = entry["decodes"]
            else:
                share = (quality - before[1]) / (best - before[1])
                needed = round(before[0] + share * (entry["decodes"] - before[0]))
            break
        before = (entry["decodes"], best)
    return {
        "windows": chosen["windows"],
        "selective_decodes": LENGTH,
        "right": quality,
        "uniform_decodes_needed": needed,
        "times_fewer": None if needed is None else needed / LENGTH,
    }


def real_stream(pipeline: VLJepaPipeline, bank: list[str], output: Path) -> Path:
    """A real clip, decoded at the middles of its segments, drawn."""
    clip = emoji_pairs.sample_clip()
    found = pipeline.stream(str(clip), bank=bank, window=5, num_segments=6)
    frames = read_clip(str(clip), None)
    places = (found.seconds[found.decoding.positions] * len(frames) / (found.seconds[-1] + found.seconds[0])).long()
    return plot_stream(
        frames[places],
        found.seconds.tolist(),
        found.decoding.shift,
        found.decoding.positions.tolist(),
        found.decoding.starts.tolist(),
        [entry.text for entry in found.texts],
        output / "stream.png",
    )
