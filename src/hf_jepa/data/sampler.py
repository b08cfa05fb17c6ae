from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from .seeding import mix_seed

_CHUNK = 2**16


class CountedSampler(Sampler[tuple[int, int]]):
    """
    Yields `(index, draw)`, where `draw` is the running count of samples over all epochs: epoch `e` covers the draws
    from `e * len(sampler)` on. Everything random about a sample can then be seeded by its draw, and the optimizer step
    it belongs to is `draw // batch_size`.

    The order is a function of `(seed, epoch)`: iterating twice without [`~CountedSampler.set_epoch`] repeats it.

    Args:
        length (`int`): Number of rows in the dataset.
        seed (`int`): Seed of the permutations.
        batch_size (`int`): Samples per optimizer step, over all processes and accumulation steps. Each epoch is cut to
            a multiple of it, the rows left out being different in each epoch.
        shuffle (`bool`): Permute the rows; otherwise they come in order.

    Raises:
        ValueError: If the dataset is smaller than one batch, or an argument is out of range.
    """

    def __init__(self, length: int, seed: int = 0, batch_size: int = 1, shuffle: bool = True) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if length < batch_size:
            raise ValueError(
                f"The dataset has {length} rows, fewer than the {batch_size} samples of one optimizer step: "
                "lower the batch size, the gradient accumulation or the number of processes."
            )
        self.num_rows = length
        self.seed = seed
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """
        Args:
            epoch (`int`): Epoch that the next iteration is for, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
            order = torch.randperm(self.num_rows, generator=generator)
        else:
            order = torch.arange(self.num_rows)
        first = self.epoch * len(self)
        # Numbers of Python take five times the memory of a tensor's; hundreds of millions of rows in each process do.
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            yield from zip(order[start:stop].tolist(), range(first + start, first + stop), strict=True)
