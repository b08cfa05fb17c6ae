"""Rows of images or videos with queries and texts, as VL-JEPA trains on them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..encoders import join_tokens
from .dataset import SeededDataset
from .seeding import forked_rng, mix_seed
from .vl_media import read_clip, read_image

Augmentation = Callable[[torch.Tensor], torch.Tensor]


class TooManyBadPairsError(RuntimeError):
    """More rows of a dataset cannot be used than `max_bad_fraction` allows."""


class VisionTextDataset(SeededDataset):
    r"""
    Images and videos with a text each and perhaps a query, so that a sample depends on `(seed, index, draw)` alone, as
    in [`SeededImageDataset`]. Rows of images and rows of videos may be mixed, and a cell of texts or queries may hold
    several, of which each draw takes one.

    A row that cannot be used (unreadable media, no text) is counted, named once in the log and replaced by the next
    usable one.

    Args:
        rows (`datasets.Dataset` or `Sequence[dict]`).
        image_column (`str`, *optional*), video_column (`str`, *optional*), embeds_column (`str`, *optional*): of
            images, of videos, and of vision tokens `(tokens, width)` that an X-encoder has made
            ([`~hf_jepa.models.vl_jepa.VLJepaModel.encode_vision`]). A row has one of them; the others may be missing.
        target_column (`str`): of the texts whose embedding is predicted.
        query_column (`str`, *optional*): of what is asked.
        queries (`Sequence[str]`, *optional*): one of which is asked where a row has no query of its own.
        num_frames (`int`, *optional*): frames of a clip, spread evenly; `None` for all.
        augment (`Callable`, *optional*): uint8 frames `(frames, 3, H, W)` to the same, seeded by the draw; an image is
            one frame. The paper states no augmentation.
        root (`str` or `Path`, *optional*): folder that relative paths of media start from.
        seed (`int`): of the choices.
        max_bad_fraction (`float`): stop when more than this share of the rows turned out to be unusable.

    Returns, for an `index` or `(index, draw)`:
        `dict` with `image` (uint8 `(3, H, W)`), `video` (uint8 `(frames, 3, H, W)`) or `vision_embeds` (`(tokens,
        width)`); `target` and `query` (`str`, or `None`); and `draw`.

    Raises:
        ValueError: for no rows, none of the visual columns, no texts, or arguments out of range.
    """

    kind = "pair"
    too_many_error = TooManyBadPairsError

    def __init__(
        self,
        rows: Any,
        image_column: str | None = "image",
        video_column: str | None = "video",
        embeds_column: str | None = "vision_embeds",
        target_column: str = "text",
        query_column: str | None = None,
        queries: Sequence[str] | None = None,
        num_frames: int | None = 16,
        augment: Augmentation | None = None,
        root: str | Path | None = None,
        seed: int = 0,
        max_bad_fraction: float = 0.01,
    ) -> None:
        if not len(rows):
            raise ValueError("The dataset has no rows.")
        if not 0 <= max_bad_fraction < 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1), got {max_bad_fraction}.")
        names = getattr(rows, "column_names", None) or sorted({name for row in rows for name in row})
        visual = [name for name in (image_column, video_column, embeds_column) if name in names]
        missing = [name for name in (target_column, query_column) if name is not None and name not in names]
        if not visual or missing:
            lacks = repr(missing[0]) if missing else f"among {[image_column, video_column, embeds_column]}"
            raise ValueError(
                f"The dataset has no column {lacks}, only {sorted(names)}; name yours, by `image_column`, "
                "`video_column`, `target_column` or `query_column`."
            )
        self.rows = _undecoded(rows, visual)
        self.image_column, self.video_column, self.embeds_column = image_column, video_column, embeds_column
        self.target_column, self.query_column = target_column, query_column
        self.queries, self.num_frames, self.augment = list(queries or ()), num_frames, augment
        self.root = None if root is None else Path(root)
        self.seed, self.max_bad_fraction = seed, max_bad_fraction
        # In shared memory: workers see each other's finds, so each is named once and the threshold is exact.
        self._is_bad = torch.zeros(len(rows), dtype=torch.bool).share_memory_()

    def _read(self, indices: list[int]) -> list[tuple[dict[str, Any], None]]:
        return [(self.rows[index], None) for index in indices]

    def _load(self, index: int, value: dict[str, Any], draw: int) -> dict[str, Any]:
        # Numbers of their own: how many texts a row has must not move its query.
        sample = {
            "target": _one_of(value.get(self.target_column), mix_seed(self.seed, draw, 1)),
            "query": _one_of(value.get(self.query_column) or self.queries or None, mix_seed(self.seed, draw, 2)),
        }
        if not isinstance(sample["target"], str) or not sample["target"].strip():
            raise ValueError(f"the row has no text in {self.target_column!r}")
        if value.get(self.embeds_column) is not None:
            return {"vision_embeds": torch.as_tensor(value[self.embeds_column]), **sample}
        if value.get(self.video_column) is not None:
            frames = self._augmented(read_clip(self._placed(value[self.video_column]), self.num_frames), draw)
            return {"video": frames, **sample}
        if value.get(self.image_column) is None:
            raise ValueError("the row has neither image nor video")
        return {"image": self._augmented(read_image(self._placed(value[self.image_column]))[None], draw)[0], **sample}

    def _placed(self, cell: Any) -> Any:
        if self.root is None or not isinstance(cell, str) or "://" in cell:
            return cell
        return str(self.root / cell)

    def _augmented(self, frames: torch.Tensor, draw: int) -> torch.Tensor:
        if self.augment is None:
            return frames
        with forked_rng(mix_seed(self.seed, draw)):
            return self.augment(frames)

    def _sample(self, loaded: dict[str, Any], label: None, draw: int) -> dict[str, Any]:
        return {**loaded, "draw": draw}


def _undecoded(rows: Any, visual: list[str]) -> Any:
    """Media columns as bytes and paths, so that a broken file cannot raise inside `datasets`."""
    if not hasattr(rows, "cast_column"):
        return rows
    import datasets

    rows = rows.with_format(None)
    kinds = tuple(getattr(datasets, name) for name in ("Image", "Video") if hasattr(datasets, name))
    for name in visual:
        if isinstance(rows.features[name], kinds):
            rows = rows.cast_column(name, type(rows.features[name])(decode=False))
    return rows


def _one_of(cell: Any, number: int) -> Any:
    if isinstance(cell, (list, tuple)):
        return cell[number % len(cell)] if cell else None
    return cell


class VisionTextCollator:
    """
    Batches of [`VisionTextDataset`]'s samples for [`~hf_jepa.VLJepaModel`]: images before clips, with their queries
    and targets.

    Args:
        processor ([`~hf_jepa.VLJepaProcessor`]).
        truncation (`bool`): cut texts that are too long; otherwise one of them ends the run.

    Returns, when called with a list of samples:
        `dict` of what the processor makes of them; of `vision_embeds`, these padded to the longest and
        `vision_attention_mask`.

    Raises:
        `ValueError`: for a batch where some samples have a query and some have none, or some vision tokens and some
        pixels.
    """

    def __init__(self, processor: Any, truncation: bool = True) -> None:
        self.processor = processor
        self.truncation = truncation

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # Stable: among images, and among clips, the order stays.
        samples = sorted(samples, key=lambda sample: "video" in sample)
        queries = [sample["query"] for sample in samples]
        if None in queries and any(query is not None for query in queries):
            raise ValueError("Some rows of a batch have a query and some have none; set `queries` for those.")
        embeds = [sample["vision_embeds"] for sample in samples if "vision_embeds" in sample]
        if embeds and len(embeds) < len(samples):
            raise ValueError("Some rows of a batch have vision tokens and some pixels; make all of them one.")
        batch: dict[str, torch.Tensor] = {}
        if embeds:
            batch["vision_embeds"], batch["vision_attention_mask"] = join_tokens([rows[None] for rows in embeds])
        default = self.processor.default_query
        texts = {
            "query": [default] * len(samples) if queries[0] is None and default is not None else queries,
            "target": [sample["target"] for sample in samples],
        }
        return batch | dict(
            self.processor(
                images=[sample["image"] for sample in samples if "image" in sample],
                videos=[sample["video"] for sample in samples if "video" in sample],
                truncation=self.truncation,
                **{name: given for name, given in texts.items() if given[0] is not None},
            )
        )
