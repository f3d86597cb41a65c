"""Choose the feature layer, and the finer layer that refines its maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import LayerError
from . import layers


class _Run(NamedTuple):
    name: str
    output: Tensor
    negative: bool  # any value of the output; recorded at once, since a later layer may work in place


def suggest(model: nn.Module, input_size: tuple[int, int] = (224, 224)) -> str:
    """Return the last layer with a spatial output on which the model's output depends, the usual feature layer.

    The model runs once on noise, forward and backward. Adaptive pooling is skipped, since it moves cells, and so are
    the last tokens of a vision transformer if only the class token is used after them.

    Args:
        model: A module that takes images (1, 3, H, W).
        input_size: (H, W) of the noise image.

    Returns:
        The dotted name; the outermost of nested layers with the same output.

    Raises:
        LayerError: If no layer has a spatial output.
    """
    with _traced(model, input_size) as (runs, results):
        spatial = [run for run in reversed(runs) if _spatial(run.output, input_size)]
        for run in spatial:
            if _matters(run.output, results, input_size):
                return run.name
    if not spatial:
        raise LayerError(f"no layer of {type(model).__name__} has a spatial output; only such a layer gives a map")
    return spatial[0].name  # a head of zeros passes no gradient to any layer


def suggest_finer(model: nn.Module, layer: str, input_size: tuple[int, int] = (224, 224)) -> str | None:
    """Return the last layer before `layer` with more cells, which refines the maps of `layer`.

    Among the layers with that number of cells, the last one without negative values (after its activation) is
    preferred: a channel weight means little for a channel of both signs.

    Args:
        model: A module that takes images (1, 3, H, W).
        layer: Dotted name of the feature layer.
        input_size: (H, W) of the noise image that the model runs on.

    Returns:
        The dotted name, or None if no earlier layer has a finer grid, as in vision transformers.

    Raises:
        LayerError: If `layer` does not exist or does not run.
    """
    layer = layers.path(model, layer)
    with _traced(model, input_size) as (runs, results):
        names = [run.name for run in runs]
        if layer not in names:
            raise LayerError(f"layer {layer!r} did not run; choose one on the way to the output")
        coarse = _grid(model, runs[names.index(layer)], input_size)
        finer: tuple[int, int] | None = None
        signed: str | None = None
        for run in reversed(runs[: names.index(layer)]):
            grid = _grid(model, run, input_size)
            if names.count(run.name) > 1 or not _is_finer(grid, coarse) or not run.output.requires_grad:
                continue
            if finer is not None and grid != finer:
                break
            if _matters(run.output, results, input_size):
                finer = grid
                if not run.negative:
                    return run.name
                signed = signed or run.name
    return signed


def _is_finer(grid: tuple[int, int] | None, than: tuple[int, int] | None) -> bool:
    """Test whether a grid has more cells, by about the same factor along both axes; other outputs are no maps."""
    if grid is None or than is None or grid[0] <= than[0] or grid[1] <= than[1]:
        return False
    return 0.8 < grid[0] * than[1] / (grid[1] * than[0]) < 1.25


def _grid(model: nn.Module, run: _Run, input_size: tuple[int, int]) -> tuple[int, int] | None:
    try:
        maps = layers.as_maps(run.output, input_size, channels_last=layers.channels_last(model, run.name))
    except LayerError:
        return None
    return int(maps.shape[2]), int(maps.shape[3])


@contextlib.contextmanager
def _traced(model: nn.Module, input_size: tuple[int, int]) -> Iterator[tuple[list[_Run], list[Tensor]]]:
    """Run a model on noise; yield its layers in running order, and its outputs, squared and summed to scalars."""
    model = layers.original(model)
    runs: list[_Run] = []

    def record(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            runs.append(_Run(name, output, bool((output < 0).any())))

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: record(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    noise = torch.rand(1, 3, *input_size, generator=torch.Generator().manual_seed(0))
    noise = layers.as_input(model, noise).requires_grad_()
    try:
        with layers.evaluating(model), layers.uncompiled(), torch.inference_mode(False), torch.enable_grad():
            yield runs, [each.float().square().sum() for each in _tensors(model(noise)) if each.requires_grad]
    finally:
        for handle in handles:
            handle.remove()


def _matters(output: Tensor, results: list[Tensor], input_size: tuple[int, int]) -> bool:
    """Test whether the results depend on any cell of a layer's output."""
    if not results:
        return False
    (gradient,) = torch.autograd.grad(results, output, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(layers.as_maps(gradient, input_size).any())


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)


def _spatial(output: Tensor, input_size: tuple[int, int]) -> bool:
    try:
        maps = layers.as_maps(output, input_size)
    except LayerError:
        return False
    return maps.shape[2] * maps.shape[3] > 1 and output.requires_grad
