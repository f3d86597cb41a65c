"""Where a feature-map cell sits in the image."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import layers
from .heatmap import Geometry

__all__ = ["Geometry", "geometry"]

aten = torch.ops.aten


def geometry(model: nn.Module, layer: str, input_size: tuple[int, int]) -> Geometry:
    """Work out the stride and the first cell's centre of a layer's output.

    One forward pass is followed operation by operation. A convolution or pooling with kernel k, stride s, padding p
    and dilation d turns (stride, centre) into (stride * s, centre + (d (k - 1) / 2 - p) * stride), for each axis;
    what keeps the size keeps the geometry; where paths meet, their mean is taken. Where the path leaves the grid of
    the image (tokens of a transformer, a resize), the cells are taken to tile the image evenly.

    Args:
        model: Any module that takes images (1, 3, H, W).
        layer: Dotted name of the feature layer.
        input_size: (H, W) in pixels.

    Returns:
        The geometry in continuous input pixels: pixel p spans [p, p + 1).

    Raises:
        LayerError: If the layer does not exist, does not run, or has no spatial output.

    Source:
        Araujo, Norris, Sim 2019, Computing Receptive Fields of Convolutional Neural Networks, section 3
        (doi 10.23915/distill.00021).
    """
    module = layers.resolve(model, layer)
    parameter = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, 3, *input_size, device=parameter.device, dtype=parameter.dtype)
    found: list[tuple[Tensor, Geometry | None]] = []
    tracker = _Tracker(image)

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            found.append((output, tracker.of(output)))

    handle = module.register_forward_hook(note)
    try:
        # Under inference mode, convolutions do not show as such; compiled code shows no operations at all.
        with torch.inference_mode(False), layers.uncompiled(), layers.evaluating(model), torch.no_grad(), tracker:
            model(image)
    finally:
        handle.remove()
    if not found:
        raise layers.LayerError(f"layer {layer!r} did not run or does not put out one tensor; choose another")
    output, known = found[0]
    maps = layers.as_maps(output, input_size, channels_last=layers.channels_last(model, layer))
    return known or Geometry.stretch((maps.shape[2], maps.shape[3]), input_size)


class _Tracker(TorchDispatchMode):
    """Follow the geometry of every tensor through one forward pass."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        # Keyed by identity, dropped with the tensor, so that a re-used id never finds an old entry.
        self._known: dict[int, tuple[weakref.ref[Tensor], Geometry]] = {}
        self._remember(image, Geometry((1.0, 1.0), (0.5, 0.5)))

    def of(self, tensor: Tensor) -> Geometry | None:
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _remember(self, tensor: Tensor, geometry: Geometry) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), geometry)

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
                geometry = self._next(func, args, tensor)
                if geometry is not None:
                    self._remember(tensor, geometry)
        return output

    def _next(self, func: Callable[..., Any], args: tuple[Any, ...], output: Tensor) -> Geometry | None:
        packet = getattr(func, "overloadpacket", None)
        source = args[0] if args else None
        known = self.of(source) if isinstance(source, Tensor) else None
        if packet is aten.convolution and known is not None:
            _, weight, _, stride, padding, dilation, transposed = args[:7]
            if transposed:
                return None
            return _window(known, tuple(weight.shape[2:]), stride, padding, dilation)
        if packet in (aten.max_pool2d_with_indices, aten.max_pool2d, aten.avg_pool2d) and known is not None:
            kernel, stride, padding, fourth = (*args[1:], None, None, None)[:4]
            dilation = 1 if packet is aten.avg_pool2d else fourth or 1  # an average's fourth argument is ceil_mode
            return _window(known, kernel, stride or kernel, padding or 0, dilation)
        if packet is aten.cat:
            return _mean([self.of(tensor) for tensor in source or ()])
        return _mean([self.of(tensor) for tensor in args if _same_grid(tensor, output)])


def _same_grid(tensor: object, output: Tensor) -> bool:
    return isinstance(tensor, Tensor) and tensor.ndim >= 4 and tensor.shape[-2:] == output.shape[-2:]


def _mean(geometries: list[Geometry | None]) -> Geometry | None:
    """Average the paths that meet in a sum or a concatenation; those without a grid (constants) do not count."""
    known = [g for g in geometries if g is not None]
    if not known or len({g.cell_stride for g in known}) > 1:
        return None
    y = sum(g.first_cell_center[0] for g in known) / len(known)
    x = sum(g.first_cell_center[1] for g in known) / len(known)
    return Geometry(known[0].cell_stride, (y, x))


def _window(
    source: Geometry,
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Geometry:
    (ky, kx), (sy, sx), (py, px), (dy, dx) = (_pair(v) for v in (kernel, stride, padding, dilation))
    (jy, jx), (cy, cx) = source.cell_stride, source.first_cell_center
    return Geometry(
        (jy * sy, jx * sx),
        (cy + (dy * (ky - 1) / 2 - py) * jy, cx + (dx * (kx - 1) / 2 - px) * jx),
    )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])
