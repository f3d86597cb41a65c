"""Batch norm over a batch that several processes share, on CPUs too (torch's SyncBatchNorm needs GPUs)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..utils.distributed import Group


@contextlib.contextmanager
def synchronized(model: nn.Module, group: Group) -> Iterator[None]:
    """Let batch-norm layers in training mode use the statistics of all processes' images.

    All processes must run the same forward and backward passes, a process without images those of an empty batch.

    Args:
        model: The model; its layers are restored afterwards.
        group: The processes.

    Yields:
        Nothing.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    if group.size > 1:
        for norm in norms:
            norm.forward = partial(_normalize, norm, group)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


class _Sum(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.add_up(values.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.group.add_up(gradients[0].clone()), None


def _normalize(norm: _BatchNorm, group: Group, images: Tensor) -> Tensor:
    axes, shape = [0, *range(2, images.ndim)], (1, -1, *[1] * (images.ndim - 2))
    values = images.float()
    count = values.new_tensor([values.numel() // values.shape[1]])
    *sums, total = _Sum.apply(torch.cat([values.sum(axes), count]), group).split([values.shape[1], 1])
    mean = sums[0] / total
    centered = values - mean.view(shape)
    variance = _Sum.apply(centered.square().sum(axes), group) / total
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean, rate)
            norm.running_var.lerp_(variance * total / (total - 1), rate)
    normalized = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        normalized = normalized * norm.weight.view(shape) + norm.bias.view(shape)
    output: Tensor = normalized.to(images.dtype)
    return output
