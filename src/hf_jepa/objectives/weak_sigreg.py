"""
Weak-SIGReg (arXiv 2603.05924): the covariance of a random sketch of the embeddings is drawn to the identity, the part
of SIGReg that second moments hold.
"""

import torch

from .distributed import all_reduce_sum
from .inputs import checked_directions, checked_embeddings
from .sigreg import step_directions
from .step import CounterBasedRandom

_EPSILON = 1e-12


def weak_sigreg(embeddings: torch.Tensor, sketch: torch.Tensor) -> torch.Tensor:
    """
    Frobenius norm of the sketched covariance minus the identity, averaged over views. Value and gradient are those of
    the joint batch of all processes, of any sizes. A collapsed batch costs `sqrt(K)`, whatever its size, and its
    gradient shrinks with the embeddings' scale, as SIGReg's does.

    Args:
        embeddings (`torch.Tensor` of shape `(..., N, D)`): leading dimensions are views. Half precision is raised to
            float32, inside autocast too.
        sketch (`torch.Tensor` of shape `(K, D)`): unit rows, the same on all ranks. Of white embeddings the value is 0
            if the rows are orthogonal, which K rows of width D at least K can be.

    Returns:
        `torch.Tensor` of shape `()`: float32, or float64 for float64 embeddings. The covariance is the unbiased one.

    Raises:
        `ValueError`: for integer or empty embeddings, a sketch of another width, fewer than two embeddings in all, and
            on the CPU values that are not finite and rows that are not unit.
    """
    embeddings = checked_embeddings(embeddings)
    sketch = checked_directions(sketch, embeddings)
    if sketch.ndim != 2:
        raise ValueError(f"Weak-SIGReg's views share their sketch: pass (K, D), got {tuple(sketch.shape)}.")
    with torch.autocast(embeddings.device.type, enabled=False):
        sketched = embeddings.reshape(-1, *embeddings.shape[-2:]) @ sketch.T
        # Sums and count, not means: unequal batches of the ranks then weigh what they hold.
        total = sketched.sum(dim=1)
        total = all_reduce_sum(torch.cat([total.flatten(), total.new_full((1,), sketched.shape[1])]))
        count = total[-1]
        if embeddings.device.type == "cpu" and count < 2:
            raise ValueError(f"Weak-SIGReg needs at least 2 embeddings for a covariance, got {int(count)}.")
        centred = sketched - (total[:-1] / count).view(len(sketched), 1, -1)
        covariance = all_reduce_sum(centred.mT @ centred) / (count - 1)
        error = covariance - torch.eye(len(sketch), dtype=sketched.dtype, device=sketched.device)
        # A norm has no gradient at 0; the epsilon gives it one of 0.
        return (error.square().sum(dim=(1, 2)) + _EPSILON).sqrt().mean()


class WeakSIGReg(CounterBasedRandom):
    """
    [`weak_sigreg`] with a fresh sketch in every training step, seeded with the step: the same on all ranks, and
    continued by a resumed run, since `global_step` (int64, shape `()`) is saved. The sketch's rows are a random
    orthonormal basis of a subspace, so that white embeddings cost nothing; of embeddings no wider than it, it is a
    rotation, which the norm does not see.

    Args:
        sketch_size (`int`): rows of the sketch, 64 in the paper; at most as many as the embeddings' width are drawn.

    Raises:
        `ValueError`: for `sketch_size` below 1.
    """

    def __init__(self, sketch_size: int = 64) -> None:
        super().__init__()
        if sketch_size < 1:
            raise ValueError(f"`sketch_size` must be at least 1, got {sketch_size}.")
        self.sketch_size = sketch_size

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """
        Args:
            embeddings (`torch.Tensor` of shape `(..., N, D)`).

        Returns:
            `torch.Tensor` of shape `()`.

        Raises:
            `ValueError`: as [`weak_sigreg`].
        """
        embeddings = checked_embeddings(embeddings)
        count = min(self.sketch_size, embeddings.shape[-1])
        with torch.autocast(embeddings.device.type, enabled=False):
            # QR of Gaussian columns: uniform over subspaces.
            sketch = torch.linalg.qr(step_directions(self._next_step(), count, embeddings).T).Q.T
        return weak_sigreg(embeddings, sketch)

    def extra_repr(self) -> str:
        return f"sketch_size={self.sketch_size}"
