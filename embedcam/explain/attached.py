"""Explain the forward passes that run anyway."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import DataError, NetworkError
from ..nets import layers
from ..nets.network import Activations, Network
from .explanation import Explanation

if TYPE_CHECKING:
    from typing_extensions import Self


class Latest(threading.local):
    """The last attachment of an explainer in this thread."""

    attached: Attached | None = None

    def __reduce__(self) -> tuple[type[Latest], tuple[()]]:
        return Latest, ()  # copies start anew

    @property
    def explanation(self) -> Explanation:
        """The explanation of the last forward pass.

        Raises:
            DataError: If there was none.
        """
        if self.attached is None:
            raise DataError("this explainer was not attached in this thread; use `with explainer.attached(model):`")
        return self.attached.explanation


class Attached:
    """Explains every forward pass that this thread runs through a network, inside a `with` block.

    Hooks read the pass; nothing runs twice, and the network's output is returned unchanged.

    Args:
        latest: Where the explainer keeps its last attachment.
        net: The network, without undone strides.
        fine: Dotted name of the finer layer, if one is explained.
        explain: Takes what the network saw and the images' size (H, W); returns a function that copies the explanation
            to the host.
        model: The network, its module, or a module that contains it.
        modules: All modules of the network, listed once: walking through them takes longer than a heat map.

    Raises:
        NetworkError: If `model` does not contain the explainer's network.
    """

    def __init__(
        self,
        latest: Latest,
        net: Network,
        fine: str | None,
        explain: Callable[[Activations, tuple[int, int]], Callable[[], Explanation]],
        model: nn.Module,
        modules: Sequence[nn.Module],
    ) -> None:
        self._latest, self._net, self._fine, self._explain = latest, net, fine, explain
        self._body, self._modules = layers.original(self._net.body), modules
        if not any(module is self._body for module in model.modules()):
            raise NetworkError(
                f"the given {type(model).__name__} does not contain the network of this explainer, a "
                f"{type(self._body).__name__}; attach the explainer to the module that it was made with, not to a copy"
            )
        # Of the network itself, embeddings need not be computed again; shallow copies share the dictionary.
        whole = model._modules is net._modules
        self._hooked = model if whole else self._body
        self._finish: Callable[[Any], Tensor] = _unchanged if whole else net.finish
        self._open = contextlib.ExitStack()
        self._pass: _Pass | None = None
        self._result: Callable[[], Explanation] | None = None
        self._explanation: Explanation | None = None

    def __enter__(self) -> Self:
        if any(body is self._body for body in _OPEN.bodies):
            raise NetworkError(
                f"an explainer is already attached to this {type(self._body).__name__} in this thread; leave that "
                "`with` block first"
            )
        for name in (self._net.layer, self._fine):
            self._net.reading(name)  # measured now, if not yet, by forward passes without these hooks
        self._thread: int | None = threading.get_ident()
        self._open.enter_context(layers.uncompiled())
        before = self._hooked.register_forward_pre_hook(self._before, with_kwargs=True)
        after = self._hooked.register_forward_hook(self._after, always_call=True)
        self._open.callback(before.remove)
        self._open.callback(after.remove)
        _OPEN.bodies.append(self._body)
        self._open.callback(_OPEN.bodies.remove, self._body)
        self._latest.attached = self
        return self

    def __exit__(self, *_: object) -> None:
        self._thread = None
        self._open.close()

    @property
    def explanation(self) -> Explanation:
        """The explanation of the last forward pass.

        Raises:
            DataError: If there was none.
        """
        if self._explanation is None:
            if self._result is None:
                raise DataError(
                    "no forward pass has run in the `with` block; call the module in it, in the same thread"
                )
            with torch.no_grad():
                self._explanation = self._result()
        return self._explanation

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != self._thread:  # another thread's pass through the same module
            return
        if any(module.training and not isinstance(module, Network) for module in self._modules):
            raise NetworkError(
                f"{type(self._body).__name__} is in training mode, whose passes are not explained; call its eval() "
                "before, or leave the `with` block"
            )
        images = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.ndim == 4), None)
        if images is None:
            raise DataError(
                f"{type(self._body).__name__} was called without images (B, C, H, W); give them as a tensor"
            )
        self._pass = _Pass(images, contextlib.ExitStack())
        self._pass.seen = self._pass.recording.enter_context(self._net.recording(self._fine))

    def _after(self, _module: nn.Module, _args: object, output: object) -> None:
        own, self._pass = self._pass, None
        if own is None or threading.get_ident() != self._thread:
            return
        with own.recording, torch.no_grad():
            if output is None:  # the pass has failed
                return
            embeddings = self._finish(output)
        with torch.no_grad():
            size = (int(own.images.shape[2]), int(own.images.shape[3]))
            self._result, self._explanation = self._explain(own.seen(embeddings, own.images), size), None


def _unchanged(embeddings: Tensor) -> Tensor:
    return embeddings


class _Pass:
    """A forward pass that is running."""

    seen: Callable[[Tensor, Tensor], Activations]

    def __init__(self, images: Tensor, recording: contextlib.ExitStack) -> None:
        self.images, self.recording = images, recording


class _Open(threading.local):
    """The modules to which an explainer is attached in this thread."""

    def __init__(self) -> None:
        self.bodies: list[nn.Module] = []


_OPEN = _Open()
