"""Batch norm over the batch of all processes, on any device (torch's own synchronised one refuses the CPU).

Every process holds some rows of one global batch. A layer's mean and variance are those of all rows, so that training
on several processes computes what one process would. All of it hangs on one differentiable sum over the processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """The sum of every process's tensor; a tensor's gradient is the sum of all processes' gradients of that sum."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


def sum_over_processes(own: Tensor) -> Tensor:
    """The differentiable sum of the tensors (of one shape) that all processes of the default group give here."""
    result: Tensor = _SumOverProcesses.apply(own)
    return result


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose training statistics are those of all processes' rows; in evaluation the same layer.

    Every process must call it, one without rows as well. Statistics are float32 whatever the input is.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W), N >= 0, to the same shape."""
        if not self.training:
            return super().forward(x_NCHW)
        mean, variance, count = self._statistics(x_NCHW.float())
        self._remember(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x_NCHW.float(), scale[:, None, None]).to(x_NCHW.dtype)

    def _statistics(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance (C,) over all processes' values, and how many values there are per channel.

        Every process adds its own line to a table of means and squared deviations, and the lines are combined (Chan,
        Golub and LeVeque 1979): one exchange, and no difference of two large sums.
        """
        channels, own_count = x_NCHW.shape[1], x_NCHW.numel() // x_NCHW.shape[1]
        if own_count:
            own_variance, own_mean = torch.var_mean(x_NCHW, dim=(0, 2, 3), correction=0)
        else:
            own_mean = x_NCHW.sum(dim=(0, 2, 3))  # zeros that belong to the graph: this process's backward takes part
            own_variance = own_mean
        own = torch.cat([own_mean, own_variance, own_mean.new_tensor([own_count])])
        rank, size = distributed.get_rank(), distributed.get_world_size()
        place = nn.functional.one_hot(torch.tensor(rank, device=own.device), size).to(own.dtype)
        means, variances, counts = sum_over_processes(place[:, None] * own).split([channels, channels, 1], dim=1)
        count = counts.sum()
        share = counts / count.clamp_min(1.0)
        mean = (share * means).sum(dim=0)
        return mean, (share * (variances + (means - mean).square())).sum(dim=0), count

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """The running statistics, as torch keeps them: the variance without bias."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1.0).clamp_min(1.0)), momentum)


def synchronise(network: nn.Module) -> None:
    """Puts `SynchronisedBatchNorm2d` in the place of every batch norm, in place; parameters and names stay the same.

    Raises:
        TypeError: a batch norm that is not of images; its statistics would silently be each process's own.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, _BatchNorm) or isinstance(child, SynchronisedBatchNorm2d):
                continue
            if not isinstance(child, nn.BatchNorm2d):
                raise TypeError(f"{type(child).__name__} has no synchronised counterpart here")
            twin = SynchronisedBatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
            if child.affine:
                twin.weight, twin.bias = child.weight, child.bias
            twin.running_mean, twin.running_var = child.running_mean, child.running_var
            twin.num_batches_tracked = child.num_batches_tracked
            setattr(parent, name, twin.train(child.training))
