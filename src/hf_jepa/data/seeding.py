import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_MASK_64 = (1 << 64) - 1


def mix_seed(*parts: int) -> int:
    """
    Mixes integers into one well-spread 32-bit seed (SplitMix64 applied to each part in turn).

    torch's CPU generator only reads the low 32 bits of a seed, so `seed * K + draw` would make runs overlap.

    Args:
        parts (`int`): Any integers, for example `(seed, draw)`. Their order matters.

    Returns:
        `int`: A seed in `[0, 2**32)`.
    """
    state = 0
    for part in parts:
        state = (state + (part & _MASK_64) + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state & 0xFFFFFFFF


@contextmanager
def forked_rng(seed: int, torch_only: bool = False) -> Iterator[None]:
    """
    Runs the block with torch's (CPU), numpy's legacy and python's global generators seeded with `seed`, and gives the
    caller's generators back untouched.

    Args:
        seed (`int`): A seed in `[0, 2**32)`.
        torch_only (`bool`): Leave numpy and python alone: a fifth of the cost, for blocks that draw from torch only.
    """
    torch_state = torch.default_generator.get_state()
    python_state = None if torch_only else random.getstate()
    # Swapping numpy's bit generator costs a fifth of copying the Mersenne Twister's state out and back.
    numpy_generator = None if torch_only else np.random.get_bit_generator()
    try:
        torch.default_generator.manual_seed(seed)
        if not torch_only:
            random.seed(seed)
            np.random.set_bit_generator(np.random.PCG64(seed))
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        if not torch_only:
            random.setstate(python_state)
            np.random.set_bit_generator(numpy_generator)
