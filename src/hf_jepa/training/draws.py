"""Datasets that know which draw of the run they serve, so that a sample depends on `(seed, index, draw)` alone."""

from collections.abc import Iterator, Mapping
from copy import copy
from itertools import repeat
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers.utils import logging

from ..data import SeededStream
from ..data.seeding import forked_rng, mix_seed
from .stream_places import PLACE, Places

logger = logging.get_logger(__name__)


class DrawSeededDataset(Dataset):
    """
    Gives an ordinary map-style dataset what [`~hf_jepa.data.SeededImageDataset`] has built in: it is indexed with
    `(index, draw)`, its random transforms are seeded from `(seed, draw)`, and its samples carry `"draw"`.

    Args:
        dataset (`Dataset`): yields dicts such as `{"pixel_values": (C, H, W) float32}`.
        seed (`int`): seed of the transforms.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, draw = key
        with forked_rng(mix_seed(self.seed, draw)):
            sample = self.dataset[index]
        return numbered(sample, draw)


def numbered(sample: Any, draw: int) -> dict[str, Any]:
    """
    A sample of a user's dataset, with its draw.

    Raises:
        ValueError: for a sample that is no dict.
    """
    if not isinstance(sample, Mapping):
        raise ValueError(
            f'A dataset for training must yield dicts such as {{"pixel_values": ...}}, got a {type(sample).__name__}.'
        )
    return {**sample, "draw": draw}


class DrawCountedStream(IterableDataset):
    """
    An endless stream for one rank, whose draws are numbered as a map-style run numbers them: worker `w` of `W` makes
    batches `w`, `w + W`, ... of its rank, and batch `c` of rank `r` holds the draws from `(c * world_size + r) *
    batch_size` on. All samples of an optimizer step hence share that step's mask sizes, for any number of workers.

    A [`~hf_jepa.data.SeededStream`] is split over ranks and workers by its shards. Any other stream, a plain one
    of `datasets` included, is expected to give the same samples everywhere and is read in full by each worker, which
    keeps its own batches: nothing is lost, and samples are the same for any split, but workers do not share the work.
    Shuffle such a stream before random transforms are mapped over it: what comes before `shuffle` runs in threads,
    whose random numbers nobody can seed.

    Args:
        stream (`IterableDataset`): yields dicts such as `{"pixel_values": (C, H, W) float32}`.
        batch_size (`int`): samples per batch of one rank.
        seed (`int`): seed of the transforms of an ordinary stream.
        rank (`int`): this process.
        world_size (`int`): number of processes.
        num_workers (`int`): workers of this rank's loader.
        places (`dict`, *optional*): worker -> how far it has read its shards (`stream_places`). What lies before is
            not decoded again: one sample stands in for each, which a resumed loader passes over.

    Raises:
        ValueError: if the stream has fewer shards than ranks or workers that are to share it, or was split over ranks
            before.
    """

    def __init__(
        self,
        stream: IterableDataset,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        num_workers: int,
        places: Places | None = None,
    ) -> None:
        self.is_sharded = isinstance(stream, SeededStream)
        if self.is_sharded:
            stream = _split_stream(stream, rank, world_size, num_workers)
        elif getattr(stream, "_distributed", None) is not None:
            raise ValueError(
                "The stream was split by `split_dataset_by_node`, but the trainer deals samples out to its processes "
                "by itself; give it the whole stream."
            )
        self.stream, self.places = stream, dict(places or {})
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        samples = self._sharded_samples(worker_id) if self.is_sharded else self._own_samples(worker_id, num_workers)
        for count, sample in enumerate(samples):
            batch = count // self.batch_size * num_workers + worker_id
            draw = (batch * self.world_size + self.rank) * self.batch_size + count % self.batch_size
            yield numbered(sample, draw)

    def _own_stream(self) -> SeededStream:
        stream = copy(self.stream)
        # An IterableDataset keeps its epoch in memory that all workers share, and one that prefetches may be an epoch
        # ahead of another: its shuffle would depend on their timing. A derived dataset has an epoch of its own.
        stream.dataset = stream.dataset.with_format(None)
        return stream

    def _sharded_samples(self, worker_id: int) -> Iterator[dict[str, Any]]:
        stream, epoch, batches = self._own_stream(), 0, 0
        if worker_id in self.places:
            batches, epoch, seen, yielded, num_bad = self.places[worker_id]
            yield from repeat(next(iter(self._own_stream())), batches * self.batch_size)
            state = {"epoch": epoch, "seen": seen, "yielded": yielded, "num_bad": num_bad}
            stream.load_state_dict(state)
        count = 0
        while True:
            stream.set_epoch(epoch)
            # A place may be the end of an epoch.
            empty = stream.at_start
            for sample in stream:
                empty = False
                count += 1
                if count % self.batch_size == 0:
                    state = stream.state_dict()
                    place = [worker_id, batches + count // self.batch_size, epoch]
                    sample[PLACE] = [*place, *(state[name] for name in ("seen", "yielded", "num_bad"))]
                yield sample
            if empty:
                raise ValueError("A worker's share of the training stream is empty; lower `dataloader_num_workers`.")
            epoch += 1

    def _own_samples(self, worker_id: int, num_workers: int) -> Iterator[dict[str, Any]]:
        stream = _WholeStream(self.stream) if isinstance(self.stream, datasets.IterableDataset) else self.stream
        count, epoch = 0, 0
        while True:
            if hasattr(stream, "set_epoch"):
                stream.set_epoch(epoch)
            epoch += 1
            before, samples = count, iter(stream)
            while True:
                with forked_rng(mix_seed(self.seed, count)):
                    sample = next(samples, None)
                if sample is None:
                    break
                batch = count // self.batch_size
                count += 1
                if batch % self.world_size == self.rank and batch // self.world_size % num_workers == worker_id:
                    yield sample
            if count == before:
                raise ValueError("The training stream yields nothing.")


class _WholeStream:
    """A stream of `datasets` that gives all of its rows in every worker; by itself it would split them."""

    def __init__(self, stream: datasets.IterableDataset) -> None:
        # With an epoch of its own: that of the original lies in memory that all workers share.
        self.stream = split_dataset_by_node(stream, rank=0, world_size=1)

    def set_epoch(self, epoch: int) -> None:
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Unlike `iter(stream)`, this knows nothing of workers.
        for batch in self.stream.iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}


def _split_stream(stream: SeededStream, rank: int, world_size: int, num_workers: int) -> SeededStream:
    num_shards = stream.dataset.num_shards
    if num_workers > 1 and (num_shards % world_size or num_shards // world_size < num_workers):
        raise ValueError(
            f"The stream has {num_shards} shards, too few for {world_size} processes of {num_workers} workers each "
            f"(or no multiple of {world_size}); lower `dataloader_num_workers` to 1 or split the data into more files."
        )
    share = num_shards // world_size
    if num_workers > 1 and share % num_workers:
        fewest = share // num_workers
        logger.warning(
            f"{num_workers} workers share {share} shards, {fewest} or {fewest + 1} each: samples of smaller shares "
            f"come up to {(fewest + 1) / fewest:.2g} times as often. A `dataloader_num_workers` that divides {share} "
            "sees all alike."
        )
    stream = copy(stream)
    if world_size > 1:
        stream.dataset = split_dataset_by_node(stream.dataset, rank=rank, world_size=world_size)
    return stream
