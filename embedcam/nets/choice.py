"""Choose the feature layer, and the finer layer that refines its maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import LayerError
from . import layers
from .grad_mode import GradientsKept
from .layout import Layout
from .origins import Origins
from .passes import noise, observing, tensors
from .survey import Survey

# Share of the channels of tokens that the embedding must depend on.
_LIVE = 0.7
# Layers whose dependence is tested at once.
_TESTED = 16
# A layer before the branches of an embedding has at most this many times the cells of the last layer.
_MOST_CELLS = 16


class _Run(NamedTuple):
    name: str
    output: Tensor
    negative: bool  # any value of the output; recorded at once, since a later layer may work in place


class _Trace(NamedTuple):
    """One forward pass with a graph."""

    runs: list[_Run]  # in the order in which layers finish; adaptive pooling, which moves cells, is left out
    origins: Origins
    vectors: list[Tensor]  # (1, F) inputs and outputs of layers
    embedding: list[Tensor]  # the output of the model, or the selected part


class _Cells(NamedTuple):
    """A layer with a grid of cells, on which the embedding depends."""

    run: _Run
    layout: Layout
    cells: int


def suggest(
    model: nn.Module,
    input_size: tuple[int, int] = (224, 224),
    *,
    select: Callable[[Any], Any] | None = None,
    survey: Survey | None = None,
) -> str:
    """Return the last layer with a grid of cells on which the embedding depends, the usual feature layer.

    Left out are layers that run more than once, adaptive pooling, since it moves cells, the tokens after the last
    attention if only the class token is used there, and what only prepares attention (queries, keys and values). Where
    the embedding joins branches, the layer is the last one before them.

    Args:
        model: A module that takes images (1, C, H, W).
        input_size: (H, W) of the noise image that the model runs on, forward and backward.
        select: From the model's output to the embedding; None if the whole output counts.
        survey: Of this model, if there is one.

    Returns:
        The dotted name; the outermost of nested layers with the same output.

    Raises:
        LayerError: If there is no such layer.
    """
    survey = survey or Survey(model, input_size)
    trace = _traced(model, input_size, select)
    spatial = list(_spatial(trace, survey))
    if not spatial:
        raise LayerError(_no_layer(model, survey))
    for target in (trace.embedding, *([vector] for vector in reversed(trace.vectors))):
        # An embedding without gradient, such as that of a head of zeros or of a sign, leaves the vectors before it.
        last = _last_reaching(target, spatial)
        if last is not None:
            chosen = _before_branches(model, trace, target, spatial, last)
            _require_late(model, trace, target, survey, chosen)
            return chosen.run.name
    return spatial[-1].run.name


def suggest_finer(
    model: nn.Module, layer: str, input_size: tuple[int, int] = (224, 224), *, outermost: bool = False
) -> str | None:
    """Return the last layer before `layer` with more cells, which refines the maps of `layer`.

    Among the layers with that number of cells, the last one without negative values (after its activation) is
    preferred: a channel weight means little for a channel of both signs.

    Args:
        model: A module that takes images (1, C, H, W).
        layer: Dotted name of the feature layer.
        input_size: (H, W) of the noise image that the model runs on.
        outermost: Prefer the least nested layers instead, whose output is that of a whole block, of any sign.

    Returns:
        The dotted name, or None if no earlier layer has a finer grid, as in vision transformers.

    Raises:
        LayerError: If `layer` does not exist or does not run.
    """
    layer, survey = layers.path(model, layer), Survey(model, input_size)
    trace = _traced(model, input_size)
    names = [run.name for run in trace.runs]
    if layer not in names:
        raise LayerError(f"layer {layer!r} did not run; choose one on the way to the output")
    coarse = _size(survey, layer)
    finer: tuple[int, int] | None = None
    found: list[str] = []
    for run in reversed(trace.runs[: names.index(layer)]):
        grid = _size(survey, run.name)
        if not _is_finer(grid, coarse) or not run.output.requires_grad:
            continue
        if finer is not None and grid != finer:
            break
        if _reaching(trace.embedding, [_Cells(run, survey.layout(run.name), 0)]):
            finer = grid
            if not run.negative and not outermost:
                return run.name
            found.append(run.name)
    return min(found, key=lambda name: name.count("."), default=None) if outermost else next(iter(found), None)


def _is_finer(grid: tuple[int, int] | None, than: tuple[int, int] | None) -> bool:
    """Test whether a grid has more cells, by about the same factor along both axes; other outputs are no maps."""
    if grid is None or than is None or grid[0] <= than[0] or grid[1] <= than[1]:
        return False
    return 0.8 < grid[0] * than[1] / (grid[1] * than[0]) < 1.25


def _size(survey: Survey, name: str) -> tuple[int, int] | None:
    try:
        return survey.size(name, survey.layout(name))
    except LayerError:
        return None


@torch.inference_mode(False)
def _traced(model: nn.Module, input_size: tuple[int, int], select: Callable[[Any], Any] | None = None) -> _Trace:
    """Run a model on noise and keep the graph."""
    model = layers.original(model)
    image = noise(model, input_size).requires_grad_()
    origins = Origins(image)
    runs: list[_Run] = []
    vectors: list[Tensor] = []

    def record(name: str, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        if not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            runs.append(_Run(name, output, bool((output < 0).any())))
        vectors.extend(each for each in (*tensors(inputs), output) if each.ndim == 2 and each.requires_grad)
        origins.note(name, output)

    with GradientsKept(), torch.enable_grad(), layers.evaluating(model), observing(model, record), origins:
        output = model(image)
    embedding = list(tensors(output if select is None else select(output)))
    return _Trace(runs, origins, vectors, embedding)


def _spatial(trace: _Trace, survey: Survey) -> Iterator[_Cells]:
    """Yield the layers that may become the feature layer, in the order in which they finish."""
    for run in trace.runs:
        if run.output.ndim not in (3, 4) or run.name in trace.origins.projections or not run.output.requires_grad:
            continue
        try:
            layout = survey.layout(run.name)
        except LayerError:
            continue
        height, width = survey.size(run.name, layout)
        if min(height, width) > 1:
            yield _Cells(run, layout, height * width)


def _reaching(results: list[Tensor], spatial: list[_Cells]) -> list[_Cells]:
    """Select the layers on whose cells any of the results depends."""
    gradients = _gradients(results, [layer.run.output for layer in spatial])
    return [
        layer
        for layer, gradient in zip(spatial, gradients, strict=True)
        if gradient is not None and _reached(layer.layout, gradient)
    ]


def _depends(results: list[Tensor], output: Tensor) -> bool:
    (gradient,) = _gradients(results, [output])
    return gradient is not None and bool(gradient.any())


@torch.inference_mode(False)
@torch.enable_grad()
def _gradients(results: list[Tensor], outputs: list[Tensor]) -> Sequence[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    # A random direction, since the length of an embedding may be fixed; scaled, since half precision loses small ones.
    scalars = [
        (each.float() * torch.randn(each.shape, generator=generator).to(each.device)).sum() * 256
        for each in results
        if each.requires_grad and each.is_floating_point()
    ]
    if not scalars or not outputs:
        return [None] * len(outputs)
    return torch.autograd.grad(scalars, outputs, retain_graph=True, allow_unused=True)


def _reached(layout: Layout, gradient: Tensor) -> bool:
    """Test whether a gradient reaches the cells; of tokens, also most of their channels.

    Of queries, keys and values side by side, the queries of the last attention count for the class token alone.
    """
    if not layout.is_tokens:
        return bool(gradient.any())
    # Which of the further tokens come first is not measured here: they are left out at both ends.
    extra = layout.prefix + layout.suffix
    cells = layout.tokens(gradient)[:, extra : gradient.shape[layout.cells[0]] - extra]
    return float((cells != 0).flatten(end_dim=1).any(dim=0).float().mean()) > _LIVE


def _last_reaching(results: list[Tensor], spatial: list[_Cells]) -> _Cells | None:
    for end in range(len(spatial), 0, -_TESTED):
        reaching = _reaching(results, spatial[max(0, end - _TESTED) : end])
        if reaching:
            return reaching[-1]
    return None


def _before_branches(
    model: nn.Module, trace: _Trace, results: list[Tensor], spatial: list[_Cells], last: _Cells
) -> _Cells:
    """Return the last layer through which everything goes that the embedding depends on.

    A layer is a branch beside another one if the embedding depends on both, and neither is computed from the other.
    """
    of_embedding = trace.origins.upstream(results)
    chosen, branches = last, (last, last)
    while True:
        before = spatial[: next(n for n, each in enumerate(spatial) if each is chosen)]
        own = trace.origins.upstream([chosen.run.output])
        branch = _last_reaching(results, [m for m in before if m.run.name in of_embedding - own])
        if branch is None:
            return chosen
        if chosen is last:
            branches = (last, branch)
        both = own & trace.origins.upstream([branch.run.output])
        shared = [each for each in before if each.run.name in both and each.cells <= _MOST_CELLS * last.cells]
        if not shared:
            raise LayerError(_branches(model, *branches))
        chosen = shared[-1]


def _require_late(model: nn.Module, trace: _Trace, results: list[Tensor], survey: Survey, chosen: _Cells) -> None:
    """Refuse an early layer that is the last one only because the layout of later ones is not known."""
    position = next(n for n, run in enumerate(trace.runs) if run is chosen.run)
    if 2 * position > len(trace.runs):
        return
    for run in reversed(trace.runs[position + 1 :]):
        large = run.output.ndim > 2 and 2 * run.output.numel() >= chosen.run.output.numel()
        unknown = run.name not in trace.origins.projections and _size(survey, run.name) is None
        if large and unknown and run.output.requires_grad and _depends(results, run.output):
            raise LayerError(
                f"the layout of the last layers of {type(model).__name__} is not known, such as that of {run.name!r} "
                f"with output {survey.shape(run.name)}; name the layer to explain (layer=), and describe it with "
                "wrap(..., to_maps=...)"
            )


def _branches(model: nn.Module, one: _Cells, other: _Cells) -> str:
    return (
        f"the embedding of {type(model).__name__} joins branches, such as those of layers {one.run.name!r} and "
        f"{other.run.name!r}, with no late layer before them; name the layer of the branch to explain (layer=), and "
        "its part of the embedding (output=)"
    )


def _no_layer(model: nn.Module, survey: Survey) -> str:
    name = type(model).__name__
    repeated = next((each for each in survey.repeated if len(survey.shape(each)) == 2), None)
    if repeated is not None:
        return (
            f"layers of {name} run more than once in a forward pass, as in test-time augmentation; wrap the module "
            f"that embeds one image, {repeated!r}: wrap(module.{repeated})"
        )
    return f"no layer of {name} has a spatial output; only such a layer gives a map"
