"""Trace where the cells of a feature map lie in the image, operation by operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .geometry import PIXELS, Geometry
from .of_tensors import OfTensors


class Grid(NamedTuple):
    """A geometry, and the axes of the tensor that are y and x, counted from the end."""

    geometry: Geometry
    axes: tuple[int, int]


class Tracker(TorchDispatchMode):
    """Traces the grid of every tensor through one forward pass.

    Along each axis, an operation puts cell i of its output at a * i + b on the cells of its input. A convolution or
    pooling with kernel k, stride s, padding p and dilation d has a = s and b = d (k - 1) / 2 - p; a transposed
    convolution has the inverse. Where branches meet, the mean of those that could be traced is taken.

    Args:
        image: (B, C, H, W), the input of the pass.

    Attributes:
        met: All geometries with their sizes (h, w), in the order of the pass.

    Source:
        Araujo, Norris, Sim 2019, Computing Receptive Fields of Convolutional Neural Networks, section 3
        (doi 10.23915/distill.00021).
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._grids: OfTensors[Grid] = OfTensors()
        self.met: list[tuple[tuple[int, int], Geometry]] = []
        self._remember(image, Grid(PIXELS, (-2, -1)))

    def of(self, tensor: object) -> Grid | None:
        """Return the grid of a tensor of this pass; None if it could not be traced."""
        return self._grids.get(tensor)

    def _remember(self, tensor: Tensor, grid: Grid) -> None:
        self._grids.set(tensor, grid)
        met = (_size(tensor, grid.axes), grid.geometry)
        if met not in self.met:
            self.met.append(met)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor) and tensor.ndim >= 4:
                grid = self._next(func, args, tensor)
                if grid is not None:
                    self._remember(tensor, grid)
                else:
                    self._grids.remove(tensor)  # an operation in place may have moved the cells
        return output

    def _next(self, func: Callable[..., Any], args: tuple[Any, ...], output: Tensor) -> Grid | None:
        name = str(getattr(func, "overloadpacket", "")).removeprefix("aten.")
        if name == "cat":
            return self._joined(args[0], output)
        if name.rstrip("_") in _KEEPING or torch.Tag.pointwise in getattr(func, "tags", ()):
            return self._joined(args, output)
        source = args[0] if args else None
        grid = self.of(source)
        if grid is None or not isinstance(source, Tensor):
            return None
        if name in _TURNING:
            axes = _TURNING[name](source, output, grid.axes, *args[1:])
            return None if axes is None else Grid(grid.geometry, axes)
        if name in _MOVING_MAPS and (source.ndim != 4 or grid.axes != (-2, -1)):
            return None
        rule = _MOVING_MAPS.get(name) or _MOVING.get(name)
        if rule is None or output.ndim != source.ndim:
            return None
        sides = [_Side(n, dim, source.ndim, source.shape[dim], output.shape[dim]) for n, dim in enumerate(grid.axes)]
        (ay, by), (ax, bx) = (rule(side, *args[1:]) for side in sides)
        if min(ay, ax) <= 0:
            return None
        (sy, sx), (cy, cx) = grid.geometry.cell_stride, grid.geometry.first_cell_center
        return Grid(Geometry((sy * ay, sx * ax), (cy + sy * by, cx + sx * bx)), grid.axes)

    def _joined(self, tensors: Iterable[object], output: Tensor) -> Grid | None:
        """Average the branches that meet in an operation; tensors without a grid (constants) are ignored."""
        grids = [(tensor, self.of(tensor)) for tensor in tensors if isinstance(tensor, Tensor)]
        traced = [g for tensor, g in grids if g is not None and _size(tensor, g.axes) == _size(output, g.axes)]
        if not traced or any(g.axes != traced[0].axes or not _same_stride(g, traced[0]) for g in traced):
            return None
        y, x = (sum(g.geometry.first_cell_center[n] for g in traced) / len(traced) for n in (0, 1))
        return traced[0]._replace(geometry=Geometry(traced[0].geometry.cell_stride, (y, x)))


def _size(tensor: Tensor, axes: tuple[int, int]) -> tuple[int, int]:
    return tensor.shape[axes[0]], tensor.shape[axes[1]]


def _same_stride(one: Grid, other: Grid) -> bool:
    return all(map(math.isclose, one.geometry.cell_stride, other.geometry.cell_stride))


# --- Effects of operations on a grid ----------------------------------------------------------------------------------


class _Side(NamedTuple):
    """One axis of a grid in an operation: 0 for y or 1 for x, the tensor's axis, and the sizes before and after."""

    number: int
    axis: int
    ndim: int
    size: int
    out: int


_Step = tuple[float, float]  # (a, b): cell i of the output lies at a * i + b on the cells of the input
_NOT_EVEN = (0.0, 0.0)  # the cells of the output are not evenly spaced, or there is only one


def _window(kernel: int, stride: int, padding: int, dilation: int) -> _Step:
    return stride, dilation * (kernel - 1) / 2 - padding


def _convolution(
    side: _Side,
    weight: Tensor,
    _bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *_: object,
) -> _Step:
    a, b = _window(weight.shape[2 + side.number], *(_of(side, value) for value in (stride, padding, dilation)))
    return (1 / a, -b / a) if transposed else (a, b)


def _max_pool(
    side: _Side,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *_: object,
) -> _Step:
    return _window(*(_of(side, value) for value in (kernel, stride or kernel, padding, dilation)))


def _average_pool(
    side: _Side, kernel: Sequence[int], stride: Sequence[int] = (), padding: int | Sequence[int] = 0, *_: object
) -> _Step:
    return _max_pool(side, kernel, stride, padding)


def _spread(side: _Side, *_: object) -> _Step:
    """Input and output cover the same area: pixel shuffling, pooling to a divisor of the size, reduction to 1."""
    ratio = side.size / side.out
    return (ratio, (ratio - 1) / 2)


def _adaptive_pool(side: _Side, *_: object) -> _Step:
    return _spread(side) if side.size % side.out == 0 else _NOT_EVEN


def _linear(side: _Side, _size: object, align_corners: bool, *scales: float | None) -> _Step:
    if align_corners:
        return ((side.size - 1) / (side.out - 1), 0.0) if side.out > 1 else _NOT_EVEN
    ratio = _ratio(side, scales)
    return ratio, (ratio - 1) / 2


def _nearest(side: _Side, _size: object, *scales: float | None, shift: float = 0.0) -> _Step:
    # Cell i has the value of cell floor(ratio (i + shift)); the steps are uneven, so their mean is taken.
    ratio = _ratio(side, scales)
    taken = (math.floor(ratio * (i + shift) + 1e-6) for i in range(side.out))
    return ratio, sum(t - ratio * i for i, t in enumerate(taken)) / side.out


def _ratio(side: _Side, scales: Sequence[float | None]) -> float:
    """Return the step of a resize: torch uses the given scale, or else the ratio of the sizes."""
    scale = scales[side.number] if scales else None
    return 1 / scale if scale else side.size / side.out


def _pad(side: _Side, padding: Sequence[int], *_: object) -> _Step:
    before = -2 * (side.axis + 1)  # pairs of (before, after), last axis first
    return 1, -padding[before] if before < len(padding) else 0


def _slice(side: _Side, dim: int = 0, start: int | None = None, _end: int | None = None, step: int = 1) -> _Step:
    if dim not in (side.axis, side.axis + side.ndim):
        return 1, 0
    return step, range(side.size)[slice(start, None)].start


def _of(side: _Side, value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[side.number if len(value) > 1 else 0]


def _permuted(source: Tensor, _output: Tensor, axes: tuple[int, int], order: Sequence[int]) -> tuple[int, int]:
    order = [axis % source.ndim for axis in order]
    y, x = (order.index(axis % source.ndim) - source.ndim for axis in axes)
    return y, x


def _transposed(source: Tensor, output: Tensor, axes: tuple[int, int], one: int, other: int) -> tuple[int, int]:
    order = list(range(source.ndim))
    order[one], order[other] = order[other], order[one]
    return _permuted(source, output, axes, order)


def _reshaped(source: Tensor, output: Tensor, axes: tuple[int, int], *_: object) -> tuple[int, int] | None:
    """Find the two axes in the output: they have the same sizes, and the same number of values behind them."""
    y, x = axes
    behind = math.prod(source.shape[x:][1:])
    for axis in range(-output.ndim, -1):
        if _size(output, (axis, axis + 1)) == _size(source, axes) and math.prod(output.shape[axis:][2:]) == behind:
            return (axis, axis + 1) if x == y + 1 else None
    return None


# By the names of aten operators in a dispatch mode. Pointwise operators are recognised by their tag.
_KEEPING = {
    *("_to_copy", "alias", "detach", "expand", "repeat", "split", "split_with_sizes", "channel_shuffle"),
    *("native_channel_shuffle", "_softmax", "_log_softmax", "_prelu_kernel", "glu"),
    # Not tagged as pointwise before torch 2.10, at least in place.
    *("hardswish", "hardtanh", "leaky_relu", "elu", "selu", "celu", "rrelu", "threshold"),
    *("native_dropout", "log_sigmoid_forward", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
    *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_with_update"),
    *("native_group_norm", "native_layer_norm", "_fused_rms_norm"),
}
_TURNING: dict[str, Callable[..., tuple[int, int] | None]] = {
    "permute": _permuted,
    "transpose": _transposed,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"), _reshaped),
}
_MOVING: dict[str, Callable[..., _Step]] = {
    "slice": _slice,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "linalg_vector_norm", "var", "std", "max", "min"), _spread),
}
_MOVING_MAPS: dict[str, Callable[..., _Step]] = {
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _max_pool),
    "avg_pool2d": _average_pool,
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _spread),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_bicubic2d"), _linear),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), _linear),
    "upsample_nearest2d": _nearest,
    "_upsample_nearest_exact2d": partial(_nearest, shift=0.5),
}
