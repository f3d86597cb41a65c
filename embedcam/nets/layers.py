"""Find layers by name, run a model in evaluation mode, and capture the outputs of its layers."""

from __future__ import annotations

import contextlib
import difflib
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..errors import DataError, LayerError, NetworkError
from .grad_mode import GradientsKept

# What DataParallel, `torch.compile`, Lightning modules and training libraries call the network that they hold.
_CONTAINERS = ("_orig_mod", "module", "model", "net", "network", "backbone", "encoder")


def names(model: nn.Module) -> list[str]:
    """List the dotted names of all layers, outermost first.

    Args:
        model: Any module, compiled or not.

    Returns:
        The names as torch gives them, without the model itself.
    """
    return [name for name, _ in original(model).named_modules() if name]


def original(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped, which shares its parameters; any other module unchanged.

    Args:
        model: Any module.

    Returns:
        The module in which layers have their names from before compiling.
    """
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def require_gradients(model: nn.Module) -> None:
    """Check that the layers of a model can be observed and differentiated.

    Args:
        model: Any module.

    Raises:
        NetworkError: If it is a TorchScript program, or a layer is quantised.
    """
    model = original(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise NetworkError(
            f"{type(model).__name__} is a TorchScript program, whose layers cannot be observed; "
            "use the module that it was scripted or traced from"
        )
    # Modules of torch.ao.nn.quantized keep their weights in this form.
    quantised = next((name for name, module in model.named_modules() if hasattr(module, "_packed_params")), None)
    if quantised is not None:
        raise NetworkError(
            f"layer {quantised!r} of {type(model).__name__} is quantised and has no gradient; "
            "use the network from before quantising, and quantise the exported ONNX file"
        )


def resolve(model: nn.Module, name: str) -> nn.Module:
    """Find a layer by torch's dotted name, or by pytorch-gradcam's.

    Args:
        model: The module to look in.
        name: For example "layer4.1.conv2" or "features.18"; see `path` for other forms.

    Returns:
        The layer.

    Raises:
        LayerError: If there is no such layer; the message suggests similar names.
    """
    return original(model).get_submodule(path(model, name))


def path(model: nn.Module, name: str) -> str:
    """Return torch's dotted name of a layer.

    A dotted name of an existing layer is returned unchanged. Any other name is read as pytorch-gradcam's: levels are
    joined by underscores, and a block may have its class before its number, as in "layer1_bottleneck0_conv1",
    "features_12_expand3x3_activation" and "features_denseblock2_denselayer12_norm1". Unlike in pytorch-gradcam,
    "classifier_0" of a VGG is the first layer of its classifier. A layer is also found in another container: "layer4"
    as "model.layer4", if no other name ends so, and "module.layer4" as "layer4".

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
    candidates = _in_container(model, name) or list(_underscored(model, name.split("_")))
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise LayerError(f"layer {name!r} can be read as {' or '.join(candidates)}; use the dotted name")
    similar = difflib.get_close_matches(name, names(model), n=3, cutoff=0.5)
    outermost = ", ".join(child for child, _ in model.named_children())
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"its outermost layers are {outermost or 'none'}"
    raise LayerError(f"{type(model).__name__} has no layer {name!r}; {hint}")


def name_of(model: nn.Module, layer: nn.Module) -> str:
    """Return the dotted name of a layer.

    Args:
        model: The module to look in.
        layer: A module inside it.

    Returns:
        Its name, the first one if it has several.

    Raises:
        LayerError: If it is not inside.
    """
    for name, module in original(model).named_modules():
        if module is layer and name:
            return str(name)
    raise LayerError(
        f"the given {type(layer).__name__} is not inside this {type(model).__name__}; take one of its named_modules()"
    )


def _in_container(model: nn.Module, name: str) -> list[str]:
    """List the layers that a name stands for inside a container, or of a name from inside one."""
    head, _, rest = name.partition(".")
    known = set(names(model))
    if head in _CONTAINERS and rest in known:
        return [rest]
    inner = [each for each in known if each.endswith(f".{name}")]
    return inner if name and len(inner) == 1 else []


def _underscored(module: nn.Module, parts: list[str]) -> Iterator[str]:
    """Yield the dotted names that an underscored one may stand for; names of layers may contain underscores."""
    for child, inner in module.named_children():
        for spelled in (child, type(inner).__name__.lower() + child):
            words = spelled.split("_")
            if parts == words:
                yield child
            elif parts[: len(words)] == words:
                yield from (f"{child}.{rest}" for rest in _underscored(inner, parts[len(words) :]))


def as_input(model: nn.Module, values: Tensor) -> Tensor:
    """Convert images to the device and number type of a model's parameters.

    Args:
        model: Any module.
        values: Images (B, 3, H, W).

    Returns:
        (B, 3, H, W); the same tensor if nothing has to change.
    """
    parameter = next((each for each in model.parameters() if each.is_floating_point()), torch.empty(0))
    if parameter.is_cuda and not (values.is_cuda or values.requires_grad):
        values = values.pin_memory()  # or the host would wait for the copy
    return values.to(parameter.device, non_blocking=True).to(parameter.dtype)


def as_images(model: nn.Module, images: Tensor) -> Tensor:
    """Check images and convert them to the device and number type of a model's parameters.

    Args:
        model: The model.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, 3, H, W); the same tensor if nothing has to change.

    Raises:
        DataError: If they have another shape, no pixels, or are not floating-point numbers.
    """
    if images.ndim != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        raise DataError(
            f"expected images (B, 3, H, W) of normalised floats, got {images.dtype} {tuple(images.shape)}; "
            "make them with a Preprocess"
        )
    return as_input(model, images)


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
        modules = list(model.modules()) if modules is None else modules
        held = [module for module in modules if module.training or (_evaluated and id(module) in _evaluated)]
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
    """Sets the stance of `torch.compile`, which all threads share: the first thread sets it, the last restores it."""

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
    """Run compiled modules as plain Python: code compiled by `torch.compile` silently skips hooks.

    Yields:
        Nothing.
    """
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and importing it takes seconds
        yield
        return
    with _EAGER:
        yield


@contextlib.contextmanager
def capture(layers: dict[str, nn.Module], *, differentiable: bool = False) -> Iterator[dict[str, Tensor]]:
    """Capture the outputs of layers during one forward pass of this thread.

    The outputs are cloned, since a later layer that works in place would overwrite them. With `differentiable`, run
    the forward pass under `torch.no_grad()`: the graph then starts at the first of the layers, and no gradient
    reaches a parameter.

    Args:
        layers: Name -> layer.
        differentiable: Build the graph from these outputs on.

    Yields:
        Name -> output, filled while the model runs.

    Raises:
        LayerError: If the output of a layer is not one tensor, or a layer runs twice.
    """
    grabbed: dict[str, Tensor] = {}
    mine = threading.get_ident()

    def hook(name: str, output: object) -> Tensor | None:
        if threading.get_ident() != mine:  # another thread's pass through the same layers
            return None
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise LayerError(f"the output of layer {name!r} is a {kind}, not a tensor; choose a layer inside it")
        if name in grabbed:
            raise LayerError(f"layer {name!r} runs twice in a forward pass; choose a layer that runs once")
        if not differentiable:
            grabbed[name] = output.detach().clone()
            return None
        if output.is_inference():
            raise NetworkError(
                f"layer {name!r} runs under torch.inference_mode inside the forward pass, where gradients do not "
                "exist; remove it, or use torch.no_grad instead"
            )
        torch.set_grad_enabled(True)
        grabbed[name] = output.clone() if output.requires_grad else output.detach().clone().requires_grad_()
        return grabbed[name].clone()

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: hook(name, output))
        for name, layer in layers.items()
    ]
    enabled = torch.is_grad_enabled()
    try:
        # Past the first layer, the network's own `no_grad` is ignored.
        with uncompiled(), GradientsKept(lambda: bool(grabbed)) if differentiable else contextlib.nullcontext():
            yield grabbed
    finally:
        torch.set_grad_enabled(enabled)
        for handle in handles:
            handle.remove()
