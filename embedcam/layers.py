"""Find a layer by name and capture what it puts out."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .errors import LayerError


def names(model: nn.Module) -> list[str]:
    """List the dotted names of all layers, outermost first.

    Args:
        model: Any module.

    Returns:
        The names as torch gives them, without the model itself.
    """
    return [name for name, _ in model.named_modules() if name]


def resolve(model: nn.Module, name: str) -> nn.Module:
    """Find a layer by torch's dotted name.

    Args:
        model: The module to look in.
        name: For example "layer4.1.conv2" or "features.18".

    Returns:
        The layer.

    Raises:
        LayerError: If there is no such layer; the message names the nearest ones.
    """
    try:
        found = model.get_submodule(name) if name else None
    except AttributeError:
        found = None
    if found is not None:
        return found
    known = names(model)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    top = [child for child, _ in model.named_children()]
    hint = f"did you mean {' or '.join(near)}?" if near else f"its outermost layers are {', '.join(top) or 'none'}"
    raise LayerError(f"{type(model).__name__} has no layer {name!r}; {hint}")


def suggest(model: nn.Module, input_size: tuple[int, int] = (224, 224)) -> str:
    """Name the last layer with a spatial output that the model's result depends on: the usual choice for a map.

    The model is run once, forward and backward, on noise. Pooling to a fixed size is passed over, since it moves
    cells; so are the last tokens of a vision transformer that only the class token outlives.

    Args:
        model: Any module that takes images (1, 3, H, W).
        input_size: (H, W) of the image to try it with.

    Returns:
        The dotted name; of nested layers with the same output, the outermost.

    Raises:
        LayerError: If no layer has a spatial output.
    """
    outputs: list[tuple[str, Tensor]] = []

    def note(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            outputs.append((name, output))

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    parameter = next(model.parameters(), torch.empty(0))
    noise = torch.rand(1, 3, *input_size, generator=torch.Generator().manual_seed(0)).to(parameter).requires_grad_()
    try:
        with evaluating(model), torch.enable_grad():
            result = sum(tensor.float().square().sum() for tensor in _tensors(model(noise)))
            spatial = [(name, output) for name, output in reversed(outputs) if _spatial(output)]
            for name, output in spatial if isinstance(result, Tensor) else ():
                (gradient,) = torch.autograd.grad(result, output, retain_graph=True, allow_unused=True)
                if gradient is not None and as_maps(gradient).any():
                    return name
    finally:
        for handle in handles:
            handle.remove()
    if not spatial:
        raise LayerError(f"no layer of {type(model).__name__} has a spatial output, so there is no map to show")
    return spatial[0][0]  # a head that is all zero passes no gradient to any layer


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)


def _spatial(output: Tensor) -> bool:
    try:
        maps = as_maps(output)
    except LayerError:
        return False
    return maps.shape[2] * maps.shape[3] > 1 and output.requires_grad


@contextlib.contextmanager
def evaluating(model: nn.Module, modules: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Put a model into evaluation mode and afterwards every one of its layers back as it was.

    Args:
        model: The model.
        modules: All its modules, if the caller has listed them already: walking them takes longer than a heat map.

    Yields:
        Nothing.
    """
    training = [module for module in modules or model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def as_maps(output: Tensor) -> Tensor:
    """Show a layer's output as feature maps: tokens are laid out on their grid.

    Args:
        output: (B, K, h, w), or tokens (B, N, K) of a vision transformer, whose class token (if N - 1 rather than N
            is a square number) is left out.

    Returns:
        (B, K, h, w).

    Raises:
        LayerError: If the output is neither.
    """
    if output.ndim == 4:
        return output
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        tokens = output[:, output.shape[1] - side * side :]
        if output.shape[1] - side * side <= 1:
            return tokens.transpose(1, 2).reshape(output.shape[0], output.shape[2], side, side)
    raise LayerError(
        f"a feature layer must put out (B, K, h, w) or a square grid of tokens (B, N, K), got {tuple(output.shape)}; "
        "choose an earlier layer"
    )


@contextlib.contextmanager
def capture(layers: dict[str, nn.Module], *, differentiable: bool = False) -> Iterator[dict[str, Tensor]]:
    """Keep the outputs of layers during one forward pass; the hooks go afterwards, also on an error.

    The outputs are cloned: a later layer that works in place would overwrite them. With `differentiable`, run the
    forward pass under `torch.no_grad()`: gradients then start at the first of the layers, everything before it
    runs without a graph, and no gradient reaches a parameter.

    Args:
        layers: Name -> layer.
        differentiable: Build the graph from these outputs on.

    Yields:
        Name -> output, filled while the model runs.

    Raises:
        LayerError: If a layer puts out something else than one tensor, or runs twice.
    """
    grabbed: dict[str, Tensor] = {}

    def hook(name: str, output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise LayerError(f"layer {name!r} puts out {type(output).__name__}, not one tensor; choose a layer inside it")
        if name in grabbed:
            raise LayerError(f"layer {name!r} runs more than once in a forward pass; choose a layer that runs once")
        if not differentiable:
            grabbed[name] = output.detach().clone()
            return None
        torch.set_grad_enabled(True)
        grabbed[name] = output.clone() if output.requires_grad else output.detach().clone().requires_grad_()
        return grabbed[name].clone()

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: hook(name, output)) for name, layer in layers.items()
    ]
    enabled = torch.is_grad_enabled()
    try:
        yield grabbed
    finally:
        torch.set_grad_enabled(enabled)
        for handle in handles:
            handle.remove()
