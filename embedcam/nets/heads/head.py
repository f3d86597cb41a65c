"""The decomposition of one network's embedding over the cells of its feature layer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import NetworkError
from ..cells import Cells
from .states import State, measure
from .tape import Node, Tape, mapped
from .terms import Terms

# Largest difference between the embedding and the sum over its cells, relative to the embedding's largest number.
_TOLERANCE = 1e-5


class Head:
    """How the embedding is a sum over cells, as measured on one image; applied to any other.

    Args:
        names: The functions between the feature layer and the embedding, in order.
        states: Of their results.
        size: (h, w) of the feature maps for which that is known; None for any size.
    """

    def __init__(self, names: list[str], states: list[State], size: tuple[int, int] | None) -> None:
        self._names, self._states, self._size = names, states, size

    @classmethod
    def measured(cls, tape: Tape, embeddings: Tensor, numbers: Tensor, size: tuple[int, int]) -> Head:
        """Measure the head on a forward pass, and test that its cells add up to the embeddings.

        Args:
            tape: Of the forward pass.
            embeddings: (B, D) as returned by the network.
            numbers: int64, of the shape of the feature layer's output: the number of the cell at each position, row by
                row; -1 where no cell is.
            size: (h, w) of the feature maps.

        Returns:
            The head.

        Raises:
            NetworkError: If no decomposition is found; the message is the reason.
        """
        nodes = tape.path(embeddings)
        if nodes is None:
            raise NetworkError("no functions of torch lead from it to the embedding")
        try:
            head = cls([node.name for node in nodes], measure(nodes, numbers, size[0] * size[1]), size)
            cells = head.cells(tape, embeddings, size)
        except NetworkError:
            raise
        except Exception as error:  # a function that cannot be applied to the terms of a sum
            raise NetworkError(f"what follows is no sum over its cells: {error}") from error
        total, scale = cells.embeddings.mean(dim=(2, 3)) + cells.rest, embeddings.abs().amax()
        coarsest = max(torch.finfo(node.value.dtype).eps for node in nodes if node.value.is_floating_point())
        tolerance = max(_TOLERANCE, 8 * coarsest)
        if not (total - embeddings).abs().amax() <= tolerance * scale:
            raise NetworkError("what follows is no sum over its cells")
        if not cells.embeddings.abs().amax() > 0:
            raise NetworkError("no cell of it adds to the embedding")
        return head

    def of_any_size(self, other: Head) -> Head:
        """Generalise what was measured at two sizes.

        Args:
            other: The same network's, at another size.

        Returns:
            The head for any size if both agree; this one otherwise.
        """
        same = self._names == other._names and self._states == other._states
        return Head(self._names, self._states, None) if same else self

    def cells(self, tape: Tape, embeddings: Tensor, size: tuple[int, int], output: Tensor | None = None) -> Cells:
        """Decompose the embeddings of a forward pass.

        Args:
            tape: Of the forward pass.
            embeddings: (B, D) as returned by the network.
            size: (h, w) of the feature maps.
            output: As for `Network.cells`.

        Returns:
            Cell embeddings.

        Raises:
            NetworkError: If the network ran other functions than when it was measured.
        """
        if self._size not in (None, size):
            raise NetworkError(
                "the embedding is known to be a sum over {} x {} cells only, the images have {} x {}; resize them to "
                "the network's input size".format(*(self._size or ()), *size)
            )
        nodes = tape.path(embeddings)
        if nodes is None or [node.name for node in nodes] != self._names:
            raise NetworkError("for these images, the network runs other functions than for noise")
        if output is not None:
            nodes = self._replayed(nodes, output)
        count = size[0] * size[1]
        device = embeddings.device.type
        # Only where it is needed, since it becomes an operator of its own in exported graphs.
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            terms = Terms(nodes, self._states, count, whole=self.whole).of(nodes[-1])
        cells, rest = (terms, torch.zeros_like(terms[0])) if self.whole else (terms[:-1], terms[-1])
        return Cells(cells.movedim(0, 2).unflatten(2, size), rest)

    def _replayed(self, nodes: list[Node], output: Tensor) -> list[Node]:
        """Compute local values again from another output of the feature layer; all others stay."""
        if any(state.attention for state in self._states):
            raise NetworkError("attention, which follows it, weighs only the cells that it saw")
        replayed: dict[Node, Node] = {}

        def swapped(leaf: Any) -> Any:
            return replayed[leaf] if isinstance(leaf, Node) else leaf

        for node, state in zip(nodes, self._states, strict=True):
            own = replace(node, args=mapped(node.args, swapped), kwargs=mapped(node.kwargs, swapped))
            if node.function is None:
                own.value = output
            elif state.kind == "local":
                own.value = own.call(lambda leaf: leaf.value.clone() if isinstance(leaf, Node) else leaf)
            replayed[node] = own
        return list(replayed.values())

    @property
    def whole(self) -> bool:
        """Whether the embedding depends on nothing but the cells: on no class token and no path beside attention."""
        return not any(
            state.attention or (state.kind == "terms" and (state.before or state.after)) for state in self._states
        )
