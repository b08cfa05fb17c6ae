"""How far each worker of a rank has read its share of a stream, so that a resumed run does not decode it again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# In a sample or batch: worker, batches it has made, and the epoch, rows seen, samples made and rows that were bad.
PLACE = "stream_place"
Places = dict[int, list[int]]


class PlacedCollator:
    """
    A collator whose batches also tell where the worker was after them.

    Args:
        collator (`Callable`): of the method or the user; it never sees the place.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        places = [sample.pop(PLACE, None) for sample in samples]
        batch = self.collator(samples)
        return batch if places[-1] is None else {**batch, PLACE: torch.tensor(places[-1])}


def note_place(places: Places, batch: dict[str, Any]) -> None:
    """Takes the place out of a batch that is about to be trained on."""
    if isinstance(batch, dict) and (place := batch.pop(PLACE, None)) is not None:
        worker, *rest = place.tolist()
        places[worker] = rest


def _file(folder: Path, rank: int) -> Path:
    return folder / f"stream_places_{rank}.json"


def save_places(places: Places, folder: Path, rank: int) -> None:
    """Writes the places of a rank into a checkpoint, if it reads a stream."""
    if places:
        _file(folder, rank).write_text(json.dumps(places))


def load_places(folder: Path, rank: int) -> Places:
    """What [`save_places`] wrote; nothing of a checkpoint without, whose run reads its stream from the start."""
    path = _file(folder, rank)
    return {int(worker): place for worker, place in json.loads(path.read_text()).items()} if path.is_file() else {}
