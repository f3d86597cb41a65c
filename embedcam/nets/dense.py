"""Denser cells: undo the last strides before the feature layer, without a larger input."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import EmbedcamError, NetworkError
from . import layers
from .cells import Cells
from .heads.head import Head
from .network import Activations, Network
from .passes import noise
from .strides import Stride, candidates, density, factors

_TOLERANCE = 1e-4  # of the old cells and the embedding, relative to the largest value


class DenseNet(Network):
    """A network whose feature layer has cells between those that it has by itself.

    A layer with stride 2 takes every second place of its input. Here it runs at all places: as four batches of maps,
    one for each offset of its steps. All later layers up to the feature layer run on the four as they are, which is the
    same as dilating them, and the maps are interleaved. Offset 0 is the forward pass of the plain network: it alone
    goes on to the head, so that the embedding and every `factor`-th cell are those of the plain network. What comes
    before the strided layer runs once.

    Layers that look at whole maps (squeeze-and-excitation, attention) look at those of each offset by themselves.

    Args:
        net: The network; its modules are shared.
        undo: How many strides to undo, the last ones first.

    Attributes:
        net: As given.
        undo: As given.

    Raises:
        NetworkError: If the strides cannot be undone, with the reason.

    Source:
        Shensa 1992, The discrete wavelet transform: wedding the à trous and Mallat algorithms (doi 10.1109/78.157290).
    """

    net: Network

    def __init__(self, net: Network, undo: int = 1) -> None:
        super().__init__(net.architecture, net.metric, net.preprocess)
        self.net, self.undo, self.source = net, undo, net.source
        self.layer = net.layer

    @property
    def body(self) -> nn.Module:
        """That of the plain network."""
        return self.net.body

    @property
    def layer(self) -> str:
        """Dotted name of the feature layer in `body`."""
        return self._layer

    @layer.setter
    def layer(self, name: str) -> None:
        net = copy.copy(self.net)
        net.layer = name
        self._modules = {**self._modules, "net": net}  # shallow copies of this network share the dictionary
        self._layer, self._shape = net.layer, None
        self._strides = _undoable(self)

    @property
    def density(self) -> tuple[int, int]:
        """How many cells (y, x) there are for one of the plain network."""
        return density(self._strides)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images as the plain network does."""
        return self.net.embed(images)

    def finish(self, output: Any) -> Tensor:
        """Compute embeddings as the plain network does."""
        return self.net.finish(output)

    @property
    def plain(self) -> Network:
        """The network as given."""
        return self.net

    def as_maps(self, output: Tensor, images: Tensor, layer: str | None = None) -> Tensor:
        """Convert a layer's output to feature maps as the plain network does, those of offset 0."""
        return self.net.as_maps(output[: images.shape[0]], images, layer)

    def activations(self, images: Tensor, fine: str | None = None) -> Activations:
        """Run one forward pass and keep the dense feature maps.

        Args:
            images: As for `Network.activations`.
            fine: Likewise.

        Returns:
            Dense feature maps (B, K, h', w'); `maps[:, :, ::y, ::x]` with the `density` (y, x) are those of the plain
            network, and so is everything else.

        Raises:
            LayerError: As for `Network.activations`.
        """
        for name in (self._layer, fine):
            self.net.reading(name)  # measured, if it is not yet, without the hooks
        with _undone(self, self._strides, images) as dense:
            seen = super().activations(images, fine)
        ((maps, phases),) = dense
        return seen._replace(maps=maps.float(), phases=phases)

    def cells(self, seen: Activations, output: Tensor | None = None) -> Cells:
        """Decompose embeddings over the dense cells.

        The mean of every `density`-th cell embedding is the embedding, less the plain network's `rest`. The mean of all
        differs a little; the difference is part of the `rest` here, so that the sum holds for all cells too.

        Args:
            seen: Of `activations`.
            output: Not used: dense cells are those of `seen.phases`.

        Returns:
            What each dense cell adds, and what is left.

        Raises:
            NetworkError: If the plain network cannot be decomposed.
        """
        assert seen.phases is not None
        y, x = self.density
        plain = seen._replace(maps=seen.maps[:, :, ::y, ::x])
        phases = torch.cat([self.net.cells(plain, phase).embeddings for phase in seen.phases])
        embeddings = _interleaved(phases, self._strides)[:, :, : seen.maps.shape[2], : seen.maps.shape[3]]
        return Cells(embeddings, seen.embeddings - embeddings.mean(dim=(2, 3)))

    def _measured_head(self) -> Head | str:
        return self.net._measured_head()

    def _identity(self) -> dict[str, Tensor]:
        return self.net._identity()


class _Dense(NamedTuple):
    maps: Tensor
    phases: tuple[Tensor, ...]


@contextlib.contextmanager
def _undone(net: Network, strides: tuple[Stride, ...], images: Tensor) -> Iterator[list[_Dense]]:
    """Run strided layers at all places during one forward pass of this thread; yield a list for what comes of it."""
    dense: list[_Dense] = []
    missing: dict[int, tuple[int, int]] = {}
    mine = threading.get_ident()

    def spread(stride: Stride, module: nn.Module, inputs: Any, options: Any, output: Tensor) -> Tensor | None:
        if threading.get_ident() != mine:  # another thread's pass through the same layers
            return None
        phases = [output]
        for offset in _offsets(stride.factor)[1:]:
            phase = _phase(module, inputs, options, stride, offset)
            lacking = tuple(output.shape[axis] - phase.shape[axis] for axis in stride.axes)
            before = missing.get(stride.level, (0, 0))
            missing[stride.level] = (max(before[0], lacking[0]), max(before[1], lacking[1]))
            phases.append(_filled(phase, output, stride.axes))
        return torch.cat(phases)

    def interleave(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        if threading.get_ident() != mine:
            return None
        phases, factor = tuple(output.unflatten(0, (math.prod(density(strides)), -1))), (1, 1)
        maps = _interleaved(torch.cat([net.as_maps(phase, images) for phase in phases]), strides)
        for level, step in sorted(factors(strides).items()):  # the last cells of each level may be made up
            rows, columns = (lost * times for lost, times in zip(missing.get(level, (0, 0)), factor, strict=True))
            maps = maps[:, :, : maps.shape[2] - rows, : maps.shape[3] - columns]
            factor = (factor[0] * step[0], factor[1] * step[1])
        dense.append(_Dense(maps, phases))
        return output[: images.shape[0]].clone()

    with contextlib.ExitStack() as hooks:
        for stride in strides:
            hook = layers.resolve(net.body, stride.layer).register_forward_hook(
                lambda module, inputs, options, output, stride=stride: spread(stride, module, inputs, options, output),
                with_kwargs=True,
            )
            hooks.callback(hook.remove)
        hooks.callback(net.feature_layer.register_forward_hook(interleave).remove)
        yield dense


def _offsets(factor: tuple[int, int]) -> list[tuple[int, int]]:
    return list(product(range(factor[0]), range(factor[1])))


def _phase(module: nn.Module, inputs: Any, options: Any, stride: Stride, offset: tuple[int, int]) -> Tensor:
    """Run a strided layer at its places plus an offset.

    Rows in front of the input move the steps; the first output, which lies outside, is dropped.
    """
    image, *others = inputs
    pads = [0] * (2 * image.ndim)
    for axis, shift, step in zip(stride.axes, offset, stride.factor, strict=True):
        pads[-2 * (axis + 1)] = (step - shift) % step  # pairs of (before, after), last axis first
    output: Tensor = module.forward(functional.pad(image, pads), *others, **options)
    for axis, shift in zip(stride.axes, offset, strict=True):
        if shift:
            output = output.narrow(axis, 1, output.shape[axis] - 1)
    return output


def _filled(phase: Tensor, output: Tensor, axes: tuple[int, int]) -> Tensor:
    """Append the last cells of the layer's own output where a step later there is no place any more."""
    for axis, other in (axes, axes[::-1]):
        have = phase.shape[axis]
        if have < output.shape[axis]:
            rest = output.narrow(axis, have, output.shape[axis] - have).narrow(other, 0, phase.shape[other])
            phase = torch.cat([phase, rest], dim=axis)
    return phase


def _interleaved(maps: Tensor, strides: tuple[Stride, ...]) -> Tensor:
    """Interleave the maps of all offsets (y * x * B, K, h, w) to (B, K, y * h, x * w)."""
    for _, (y, x) in sorted(factors(strides).items(), reverse=True):
        channels, height, width = maps.shape[1:]
        grid = maps.reshape(y, x, -1, channels, height, width).permute(2, 3, 4, 0, 5, 1)
        maps = grid.reshape(-1, channels, height * y, width * x)
    return maps


def _undoable(net: DenseNet) -> tuple[Stride, ...]:
    """Find the layers whose strides can be undone so that the old cells and the embedding stay the same."""
    images = noise(net.body, net.preprocess.input_size, 2)
    with layers.evaluating(net), torch.inference_mode():
        plain = Network.activations(net, images)
        reason = f"fewer than {net.undo} strides lie before it"
        for strides in candidates(net, images, plain.maps.shape[2:], net.undo):
            try:
                with _undone(net, strides, images) as dense:
                    seen = Network.activations(net, images)
            except EmbedcamError:
                raise
            except Exception as error:  # layers of unknown networks may raise anything
                reason = f"with {', '.join(stride.layer for stride in strides)} undone, {_first_line(error)}"
                continue
            difference = _difference(plain, seen, dense[0].maps, strides)
            if difference <= _TOLERANCE:
                return strides
            reason = f"the cells that should stay the same differ by {difference:.1e}"
    raise NetworkError(
        f"the last {net.undo} strides before layer {net.layer!r} of {net.architecture} cannot be undone: {reason}; "
        "use a larger input or an earlier layer"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _difference(plain: Activations, seen: Activations, dense: Tensor, strides: tuple[Stride, ...]) -> float:
    y, x = density(strides)
    old = dense[:, :, ::y, ::x]
    if old.shape != plain.maps.shape or dense.shape == old.shape:
        return math.inf
    pairs = ((plain.maps, old), (plain.embeddings, seen.embeddings))
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)
