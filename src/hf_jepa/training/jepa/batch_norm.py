"""Batch norm whose statistics are those of the joint batch of all processes."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging

from ...objectives.distributed import all_reduce_sum, world_size
from ...objectives.inputs import at_least_float32

logger = logging.get_logger(__name__)


class JointBatchNorm(_BatchNorm):
    """
    Batch norm over the joint batch of all processes by two sums with gradient, for CPUs, where torch's SyncBatchNorm
    does not work. Ranks may hold batches of different sizes.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Batch norm needs (batch, channels, ...), got {tuple(input.shape)}.")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input (`torch.Tensor` of shape `(batch, channels, ...)`).

        Returns:
            `torch.Tensor` of the same shape and dtype.
        """
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        values = at_least_float32(input)
        dims = [dim for dim in range(input.ndim) if dim != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = values.new_full((1,), values.numel() / values.shape[1])
        total = all_reduce_sum(torch.cat([values.sum(dims), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        # Centred before squaring: the difference of two large sums would lose the variance.
        centred = values - mean.view(shape)
        variance = all_reduce_sum(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._note(mean.detach(), variance.detach() * count / (count - 1))
        output = centred * torch.rsqrt(variance.view(shape) + self.eps)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _note(self, mean: torch.Tensor, unbiased_variance: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased_variance, momentum)


@torch.no_grad()
def synchronize_batch_norm(model: nn.Module, device_type: str = "cpu") -> int:
    """
    Makes every batch norm of a model, in place, one over the joint batch of all processes, as VICReg's and SimSiam's
    released code does: torch's SyncBatchNorm, and on CPUs [`JointBatchNorm`]. Parameters, buffers and their names
    stay. timm's fused norm-and-activation layers, which are batch norms of another kind, are left as they are with a
    warning.

    Args:
        model (`nn.Module`): in which layers are replaced.
        device_type (`str`): where it will be trained, such as `"cuda"`.

    Returns:
        `int`: layers replaced.
    """
    layer_class = JointBatchNorm if device_type == "cpu" else nn.SyncBatchNorm
    replaced, left = 0, set()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, _BatchNorm) or isinstance(layer, layer_class):
                continue
            if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                left.add(type(layer).__name__)
                continue
            joint = layer_class(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
            joint._parameters, joint._buffers = layer._parameters, layer._buffers
            joint.training = layer.training
            setattr(parent, name, joint)
            replaced += 1
    if left:
        logger.warning(
            f"The statistics of {', '.join(sorted(left))} stay those of each process: only plain batch norms can be "
            "joined over processes."
        )
    return replaced
