"""Find a layer by name and capture what it puts out."""

from __future__ import annotations

import contextlib
import difflib
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..errors import DataError, LayerError


def names(model: nn.Module) -> list[str]:
    """List the dotted names of all layers, outermost first.

    Args:
        model: Any module, compiled or not.

    Returns:
        The names as torch gives them, without the model itself.
    """
    return [name for name, _ in original(model).named_modules() if name]


def original(model: nn.Module) -> nn.Module:
    """Give the module that `torch.compile` wrapped, which shares its parameters; any other as it is.

    Args:
        model: Any module.

    Returns:
        The module whose layers bear the names that they had before compiling.
    """
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def resolve(model: nn.Module, name: str) -> nn.Module:
    """Find a layer by torch's dotted name, or by pytorch-gradcam's.

    Args:
        model: The module to look in.
        name: For example "layer4.1.conv2" or "features.18"; `path` tells which others are understood.

    Returns:
        The layer.

    Raises:
        LayerError: If there is no such layer; the message names the nearest ones.
    """
    return original(model).get_submodule(path(model, name))


def path(model: nn.Module, name: str) -> str:
    """Give torch's dotted name of a layer.

    A name that torch knows is taken as it is. Any other is read as pytorch-gradcam's: levels are joined by
    underscores, and a block may bear its class before its number, as in "layer1_bottleneck0_conv1",
    "features_12_expand3x3_activation" and "features_denseblock2_denselayer12_norm1". Other than there,
    "classifier_0" of a VGG is its classifier's first layer.

    Args:
        model: The module to look in.
        name: Torch's name or pytorch-gradcam's.

    Returns:
        The dotted name.

    Raises:
        LayerError: If there is no such layer, or an underscored name can be read in two ways.
    """
    model = original(model)
    try:
        if name and isinstance(model.get_submodule(name), nn.Module):
            return name
    except AttributeError:
        pass
    read = list(_underscored(model, name.split("_")))
    if len(read) == 1:
        return read[0]
    if read:
        raise LayerError(f"layer {name!r} can be read as {' or '.join(read)}; use the one that is meant")
    known = names(model)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    top = [child for child, _ in model.named_children()]
    outermost = f"its outermost layers are {', '.join(top) or 'none'}"
    hint = f"did you mean {' or '.join(near)}?" if near else outermost
    raise LayerError(f"{type(model).__name__} has no layer {name!r}; {hint}")


def _underscored(module: nn.Module, parts: list[str]) -> Iterator[str]:
    """Read underscores as dots wherever children bear such names, which may hold underscores of their own."""
    for child, inner in module.named_children():
        for spelled in (child, type(inner).__name__.lower() + child):
            words = spelled.split("_")
            if parts == words:
                yield child
            elif parts[: len(words)] == words:
                yield from (f"{child}.{rest}" for rest in _underscored(inner, parts[len(words) :]))


def suggest(model: nn.Module, input_size: tuple[int, int] = (224, 224)) -> str:
    """Name the last layer with a spatial output that the model's result depends on: the usual choice.

    The model is run once, forward and backward, on noise. Pooling to a fixed size is passed over, since it
    moves cells; so are the last tokens of a vision transformer that only the class token outlives.

    Args:
        model: Any module that takes images (1, 3, H, W).
        input_size: (H, W) of the image to try it with.

    Returns:
        The dotted name; of nested layers with the same output, the outermost.

    Raises:
        LayerError: If no layer has a spatial output.
    """
    with _traced(model, input_size) as (outputs, results):
        spatial = [(name, output) for name, output, _ in reversed(outputs) if _spatial(output, input_size)]
        for name, output in spatial:
            if _matters(output, results, input_size):
                return name
    if not spatial:
        raise LayerError(f"no layer of {type(model).__name__} has a spatial output; only one that has gives a map")
    return spatial[0][0]  # a head that is all zero passes no gradient to any layer


def suggest_finer(model: nn.Module, layer: str, input_size: tuple[int, int] = (224, 224)) -> str | None:
    """Name the layer before the last stride: the one to sharpen a feature layer's maps with.

    It is the last layer before `layer` whose maps have more cells. Of the layers on that grid, one whose output is
    not negative (after its activation) is preferred: a channel weight says little about a channel of both signs.

    Args:
        model: Any module that takes images (1, 3, H, W).
        layer: Dotted name of the feature layer.
        input_size: (H, W) of the image to try it with.

    Returns:
        The dotted name, or None if no layer before has a finer grid, as in a vision transformer.

    Raises:
        LayerError: If `layer` does not exist, or does not run.
    """
    layer = path(model, layer)
    with _traced(model, input_size) as (outputs, results):
        ran = [name for name, _, _ in outputs]
        if layer not in ran:
            raise LayerError(f"layer {layer!r} did not run; choose one on the way to the output")
        coarse = _grid_of(model, layer, outputs[ran.index(layer)][1], input_size)
        grid: tuple[int, int] | None = None
        signed: str | None = None
        for name, output, negative in reversed(outputs[: ran.index(layer)]):
            found = _grid_of(model, name, output, input_size)
            if ran.count(name) > 1 or not _finer(found, coarse) or not output.requires_grad:
                continue
            if grid is not None and found != grid:
                break
            if _matters(output, results, input_size):
                grid = found
                if not negative:
                    return name
                signed = signed or name
    return signed


def _finer(grid: tuple[int, int] | None, than: tuple[int, int] | None) -> bool:
    """Tell whether a grid has more cells, along both axes alike (what else has four axes is not a map)."""
    if grid is None or than is None or grid[0] <= than[0] or grid[1] <= than[1]:
        return False
    return 0.8 < grid[0] * than[1] / (grid[1] * than[0]) < 1.25


def _grid_of(model: nn.Module, name: str, output: Tensor, input_size: tuple[int, int]) -> tuple[int, int] | None:
    try:
        maps = as_maps(output, input_size, channels_last=channels_last(model, name))
    except LayerError:
        return None
    return int(maps.shape[2]), int(maps.shape[3])


def as_input(model: nn.Module, values: Tensor) -> Tensor:
    """Convert images to the device and number type of a model's parameters.

    Args:
        model: Any module.
        values: Images (B, 3, H, W).

    Returns:
        (B, 3, H, W); the same tensor if nothing has to change.
    """
    parameter = next((each for each in model.parameters() if each.is_floating_point()), torch.empty(0))
    return values.to(parameter.device, non_blocking=True).to(parameter.dtype)


def as_images(model: nn.Module, images: Tensor) -> Tensor:
    """Give images the model's device and type, after checking that they are images.

    Args:
        model: The model.
        images: What was given as (B, 3, H, W), normalised.

    Returns:
        The images.

    Raises:
        DataError: If they have another shape, no pixel, or are not floating-point numbers.
    """
    if images.ndim != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        raise DataError(
            f"expected images (B, 3, H, W) of normalised floats, got {images.dtype} {tuple(images.shape)}; "
            "make them with a Preprocess"
        )
    return as_input(model, images)


@contextlib.contextmanager
def _traced(
    model: nn.Module, input_size: tuple[int, int]
) -> Iterator[tuple[list[tuple[str, Tensor, bool]], list[Tensor]]]:
    """Run a model on noise; give its layers' outputs in order, and its results, squared and summed to scalars.

    With each output comes whether any of it is negative, noted at once: a later layer may work in place.
    """
    model = original(model)
    outputs: list[tuple[str, Tensor, bool]] = []

    def note(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            outputs.append((name, output, bool((output < 0).any())))

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    noise = torch.rand(1, 3, *input_size, generator=torch.Generator().manual_seed(0))
    noise = as_input(model, noise).requires_grad_()
    try:
        with evaluating(model), uncompiled(), torch.inference_mode(False), torch.enable_grad():
            results = [tensor.float().square().sum() for tensor in _tensors(model(noise)) if tensor.requires_grad]
            yield outputs, results
    finally:
        for handle in handles:
            handle.remove()


def _matters(output: Tensor, results: list[Tensor], input_size: tuple[int, int]) -> bool:
    """Tell whether any cell of a layer's output has a part in the results."""
    if not results:
        return False
    (gradient,) = torch.autograd.grad(results, output, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(as_maps(gradient, input_size).any())


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
        maps = as_maps(output, input_size)
    except LayerError:
        return False
    return maps.shape[2] * maps.shape[3] > 1 and output.requires_grad


# Modules that `evaluating` took out of training mode: id -> threads and nested calls that rely on it.
_evaluated: Counter[int] = Counter()
_evaluated_lock = threading.Lock()


@contextlib.contextmanager
def evaluating(model: nn.Module, modules: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Put a model into evaluation mode, and restore each layer's mode afterwards.

    The mode is shared by all threads. It is restored when the last thread inside leaves, so that no thread inside
    runs a layer in training mode. A thread that trains the same model meanwhile would train in evaluation mode.

    Args:
        model: The model.
        modules: All its modules, if they are already listed: walking the tree takes longer than a heat map.

    Yields:
        Nothing.
    """
    with _evaluated_lock:
        held = [
            module
            for module in (model.modules() if modules is None else modules)
            if module.training or id(module) in _evaluated
        ]
        for module in held:
            module.training = False
            _evaluated[id(module)] += 1
    try:
        yield
    finally:
        with _evaluated_lock:
            for module in held:
                _evaluated[id(module)] -= 1
                if not _evaluated[id(module)]:
                    del _evaluated[id(module)]
                    module.training = True


class _Eager:
    """The stance of `torch.compile`, which is of the whole process: the first thread sets it, the last puts it back."""

    def __init__(self) -> None:
        self._lock, self._inside, self._set = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._set.enter_context(torch.compiler.set_stance("force_eager"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set.close()


_EAGER = _Eager()


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run what `torch.compile` compiled as plain Python: compiled code passes hooks over, without a word.

    Yields:
        Nothing.
    """
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and importing it takes seconds
        yield
        return
    with _EAGER:
        yield


def channels_last(model: nn.Module, name: str) -> bool:
    """Tell whether a layer puts out (B, h, w, K) rather than (B, K, h, w), as far as its kind says so.

    `Linear` and `LayerNorm` work on the last axis, and torchvision's Swin transformers keep the channels
    there from the patch embedding to the `permute` before their pooling. No shape can tell.

    Args:
        model: The module to look in.
        name: Name of the layer.

    Returns:
        True where the channels are known to be last.
    """
    model, dotted = original(model), path(model, name)
    layer = model.get_submodule(dotted)
    if type(layer) in (nn.Linear, nn.LayerNorm):
        return True
    if isinstance(layer, nn.Conv2d | nn.AdaptiveAvgPool2d):
        return False
    if type(layer).__name__ == "Permute":
        return getattr(layer, "dims", None) == [0, 2, 3, 1]
    levels = dotted.split(".")
    around = [model.get_submodule(".".join(levels[:depth])) for depth in range(len(levels) + 1)]
    return any(type(module).__module__ == "torchvision.models.swin_transformer" for module in around)


def as_maps(output: Tensor, input_size: tuple[int, int] | None = None, *, channels_last: bool = False) -> Tensor:
    """Show a layer's output as feature maps: tokens are laid out on their grid.

    Args:
        output: (B, K, h, w), or tokens (B, N, K) of a vision transformer, with or without one class token
            before them, which is left out.
        input_size: (H, W) of the image, from which the grid of the tokens follows; if None, or if no patch
            size gives so many, the grid is square.
        channels_last: The output is (B, h, w, K).

    Returns:
        (B, K, h, w).

    Raises:
        LayerError: If the output is neither.
    """
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if channels_last else output
    if output.ndim == 3:
        for size in (input_size, None):
            for extra in (0, 1):
                grid = _grid(output.shape[1] - extra, size)
                if grid is not None:
                    return output[:, extra:].transpose(1, 2).reshape(output.shape[0], -1, *grid)
    raise LayerError(
        "a feature layer must put out maps (B, K, h, w) or tokens (B, N, K) of a grid, "
        f"got {tuple(output.shape)}; choose another layer"
    )


def _grid(cells: int, input_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Find the grid of square patches that cut an image, without a size a square one, into so many cells."""
    height, width = input_size or (cells, cells)
    for patch in range(1, min(height, width) + 1):
        if (height // patch) * (width // patch) == cells:
            return height // patch, width // patch
    return None


@contextlib.contextmanager
def capture(layers: dict[str, nn.Module], *, differentiable: bool = False) -> Iterator[dict[str, Tensor]]:
    """Keep the outputs of layers during one forward pass; the hooks go afterwards, also on an error.

    The outputs are cloned: a later layer that works in place would overwrite them. With `differentiable`, run
    the forward pass under `torch.no_grad()`: gradients then start at the first of the layers, everything
    before it runs without a graph, and no gradient reaches a parameter.

    Args:
        layers: Name -> layer.
        differentiable: Build the graph from these outputs on.

    Yields:
        Name -> output, filled while the model runs.

    Raises:
        LayerError: If a layer puts out something else than one tensor, or runs twice.
    """
    grabbed: dict[str, Tensor] = {}
    mine = threading.get_ident()

    def hook(name: str, output: object) -> Tensor | None:
        if threading.get_ident() != mine:  # another thread's pass through the same layers
            return None
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise LayerError(f"layer {name!r} puts out {kind}, not one tensor; choose a layer inside it")
        if name in grabbed:
            raise LayerError(f"layer {name!r} runs twice in a forward pass; choose a layer that runs once")
        if not differentiable:
            grabbed[name] = output.detach().clone()
            return None
        torch.set_grad_enabled(True)
        grabbed[name] = output.clone() if output.requires_grad else output.detach().clone().requires_grad_()
        return grabbed[name].clone()

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: hook(name, output))
        for name, layer in layers.items()
    ]
    enabled = torch.is_grad_enabled()
    try:
        with uncompiled():
            yield grabbed
    finally:
        torch.set_grad_enabled(enabled)
        for handle in handles:
            handle.remove()
