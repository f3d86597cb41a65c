"""What is known of the tensors of one forward pass."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class OfTensors(Generic[T]):
    """Values by tensor, as long as the tensor lives; tensors themselves are compared number by number."""

    def __init__(self) -> None:
        # By id of the tensor; the weak reference detects an id that is used again.
        self._values: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def get(self, tensor: object) -> T | None:
        """Return the value of a tensor; None if it has none."""
        entry = self._values.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def set(self, tensor: Tensor, value: T) -> None:
        """Give a tensor a value."""
        self._values[id(tensor)] = (weakref.ref(tensor), value)

    def remove(self, tensor: Tensor) -> None:
        """Take the value of a tensor away, if it has one."""
        self._values.pop(id(tensor), None)
