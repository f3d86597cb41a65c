"""Compute what each cell adds to a recorded value, with attention, gates and statistics held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import arguments, attention
from .states import GATES, JOINING, State
from .tape import Node

# What changes neither shape nor value, outside of training; terms stay float32.
_UNCHANGED = {"dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_dropout", "float", "half", "double", "to",
              "bfloat16", "type", "type_as", "contiguous", "clone", "detach", "requires_grad"}  # fmt: skip
_RESHAPING = {"reshape", "view", "unflatten", "expand", "view_as", "reshape_as"}  # of rows
_SHAPING = {"flatten", "reshape", "view", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze"}
_ELEMENTWISE = {"add", "radd", "sub", "rsub", "mul", "rmul", "div", "truediv", "rtruediv", "where", "lerp", "addcmul"}
_NORMALISING = {"layer_norm", "rms_norm", "normalize"}


class Terms:
    """Means over cells. The terms of a value (B, ...) are (n + 1, B, ...): the cells', and what none of them adds.

    Of a whole network, every cell has an equal part of what none of them adds. The terms of a value are (n, B, ...)
    then, those of an affine function its results for the terms of its argument.

    Args:
        nodes: Of `Tape.path`.
        states: Theirs.
        cells: Number n of cells.
        whole: Whether the embedding depends on nothing but the cells.
    """

    def __init__(self, nodes: list[Node], states: list[State], cells: int, *, whole: bool) -> None:
        self._states, self._cells, self._whole = dict(zip(nodes, states, strict=True)), cells, whole
        self._known: dict[tuple[Node, int | None], Tensor] = {}

    def of(self, node: Node, row: int | None = None) -> Tensor:
        """Compute the terms of a value.

        Args:
            node: The value; terms, rows, or a local value.
            row: Of rows, the row that is wanted: the axis of the rows has length 1.

        Returns:
            float32 (n + 1, ...), those of cells times n: their mean and the last one add up to the value. Of a whole
            network (n, ...), whose mean is the value.
        """
        if (node, row) not in self._known:
            self._known[node, row] = self._compute(node, row)
        return self._known[node, row]

    def _compute(self, node: Node, row: int | None) -> Tensor:
        state = self._states[node]
        if state.kind == "local":
            return self._expanded(node) if row is None else self._one_row(node, row)
        if state.kind == "rows" and state.attention:
            assert row is not None
            return self._collected(*attention.row_terms(node, row), *self._margins(node))
        if state.kind == "rows" and node.name in JOINING:
            assert row is not None
            return self._part(node, row)
        if state.pool:
            return self._pooled(node, node.value.shape)
        of_rows = any(self._states[parent].kind == "rows" for parent in node.parents)
        return self._applied(node, state.row if of_rows and state.kind == "terms" else row)

    def _part(self, node: Node, row: int) -> Tensor:
        """Compute the terms of a row of pooled cells beside the cells themselves."""
        for part in node.args[0]:
            rows = part.value.shape[self._states[node].axes[0]]
            if row < rows:
                return self.of(part, row if self._states[part].kind == "local" else None)
            row -= rows
        raise IndexError(row)

    def _margins(self, node: Node) -> tuple[int, int]:
        value = self._states[arguments.attended(node)]
        return value.before, value.after

    def _collected(
        self, terms: Tensor, constant: Tensor | None, before: int, after: int, *, mean: bool = False
    ) -> Tensor:
        """Move the terms of other positions, such as a class token's, to what no cell adds; take a sum or a mean."""
        if self._whole:
            return terms if mean else terms * self._cells
        count = terms.shape[0]
        rest = terms[:before].sum(dim=0) + terms[count - after :].sum(dim=0)
        cells = terms[before : count - after]
        if constant is not None:
            rest = rest + constant
        # Cells are multiplied by their number: next to the constants of affine functions, small terms would be rounded.
        if not mean:
            cells = cells * self._cells
        elif before or after:
            cells, rest = cells * (self._cells / count), rest / count
        return torch.cat([cells, rest[None]])

    def _pooled(self, node: Node, shape: torch.Size) -> Tensor:
        (parent,), pool = node.parents, self._states[node].pool
        state, value = self._states[parent], parent.value.float()
        others = [axis for axis in range(value.ndim) if axis not in state.axes]
        lines = value.permute(*others, *state.axes).flatten(len(others)).movedim(-1, 0)
        if pool == "max":  # the place of the maximum is held
            strongest = (lines == lines.amax(dim=0)).float()
            lines = lines * strongest / strongest.sum(dim=0)
        if lines.shape[1:] != shape:  # a graph's optimiser cannot remove a reshape that changes nothing
            lines = lines.reshape(lines.shape[0], *shape)
        return self._collected(lines, None, state.before, state.after, mean=pool == "mean")

    def _expanded(self, node: Node) -> Tensor:
        state, value = self._states[node], node.value.float()
        shape = [value.shape[axis] if axis in state.axes else 1 for axis in range(value.ndim)]
        positions = self._cells + state.before + state.after
        one_hot = torch.eye(positions, device=value.device).reshape(positions, *shape)
        return self._collected(one_hot * value, None, state.before, state.after)

    def _one_row(self, node: Node, row: int) -> Tensor:
        """Compute the terms of the token in a row, which adds to no row but its own."""
        state = self._states[node]
        value = node.value.float().narrow(state.axes[0], row, 1)
        positions = self._cells + state.before + state.after
        one_hot = torch.eye(positions, device=value.device)[row].reshape(-1, *[1] * value.ndim)
        return self._collected(one_hot * value, None, state.before, state.after)

    def _applied(self, node: Node, row: int | None) -> Tensor:
        """Apply a function to the terms of its arguments."""
        state = self._states[node]
        axis = state.axes[0] if state.kind == "rows" else None
        shape = [1 if position == axis else size for position, size in enumerate(node.value.shape)]
        if _kept_in_order(node, axis) and self._states[node.parents[0]].pool:
            return self._pooled(node.parents[0], node.value.shape)

        def value(leaf: Any) -> Any:
            """The value of an argument that is held, at the row that is wanted."""
            tensor = leaf.value if isinstance(leaf, Node) else leaf
            if not isinstance(tensor, Tensor):
                return leaf
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            if axis is not None and (isinstance(leaf, Node) or node.name in _ELEMENTWISE):
                return _row(tensor, axis - len(shape), row, node.value.shape[axis])
            return tensor

        summed = [parent for parent in dict.fromkeys(node.parents) if self._states[parent].kind != "held"]
        if len(summed) > 1 and node.name in ("mul", "div", "truediv", "matmul", "bmm"):
            summed = summed[:1]  # of a product, the other factor is held
        terms = [self.of(parent, None if self._states[parent].kind == "terms" else row) for parent in summed]
        if node.name in _UNCHANGED:
            return terms[0]
        if state.selects or (axis is not None and node.name in _RESHAPING) or _kept_in_order(node, axis):
            return terms[0].reshape(terms[0].shape[0], *shape)
        if node.name in GATES:
            return self._gated(node, value(summed[0]), value, terms[0])
        if node.name in _NORMALISING:
            return self._normalised(node, value(summed[0]), terms[0])
        if node.name == "linear" and summed == [node.args[0]]:
            return self._linear(node, terms[0])
        return self._affine(node, summed, value, terms)

    def _linear(self, node: Node, terms: Tensor) -> Tensor:
        given = arguments.of(node)
        weight, bias = given["weight"], given.get("bias")
        if self._whole:  # image by image: maps in the usual format then need not be put into another order
            by_image = functional.linear(terms.transpose(0, 1), weight, bias)
            return by_image.transpose(0, 1)
        return self._plus(functional.linear(terms, weight), bias)

    def _plus(self, terms: Tensor, bias: Tensor | None) -> Tensor:
        """Add a constant to what no cell adds."""
        if bias is None:
            return terms
        if self._whole:
            return terms + bias
        return torch.cat([terms[:-1], terms[-1:] + bias])

    def _affine(self, node: Node, summed: list[Node], value: Callable[[Any], Any], terms: list[Tensor]) -> Tensor:
        """Apply an affine function: what it returns for zeros is added once, by no cell."""

        def call(*values: Tensor) -> Tensor:
            own = dict(zip(summed, values, strict=True))
            return node.call(lambda leaf: own[leaf] if isinstance(leaf, Node) and leaf in own else value(leaf))

        if self._whole:
            equal: Tensor = torch.vmap(call)(*terms)
            return equal
        results = torch.vmap(call)(*(torch.cat([each, torch.zeros_like(each[:1])]) for each in terms))
        return torch.cat([results[:-2] - results[-1:], results[-2:-1]])

    def _gated(self, node: Node, before: Tensor, value: Callable[[Any], Any], terms: Tensor) -> Tensor:
        """Hold f(x) / x of an elementwise function f."""
        first = node.parents[0]

        def at(values: Tensor) -> Tensor:
            return node.call(lambda leaf: values.clone() if leaf is first else value(leaf))

        zero = at(torch.zeros_like(before))
        gate = torch.where(before == 0, 0.0, (at(before) - zero) / before)
        return self._plus(terms * gate, zero)

    def _normalised(self, node: Node, before: Tensor, terms: Tensor) -> Tensor:
        """Hold the statistics by which a function normalises."""
        given = arguments.of(node)
        if node.name == "normalize":
            order, axis, least = given.get("p", 2.0), given.get("dim", 1), given.get("eps", 1e-12)
            length: Tensor = torch.linalg.vector_norm(before, order, dim=axis, keepdim=True).clamp_min(least)
            return terms / length
        axes = tuple(range(-len(given["normalized_shape"]), 0))
        if node.name == "layer_norm":
            before, terms = (each - each.mean(dim=axes, keepdim=True) for each in (before, terms))
        least = given.get("eps")
        power = before.square().mean(dim=axes, keepdim=True)
        terms = terms / (power + (torch.finfo(power.dtype).eps if least is None else least)).sqrt()
        weight, bias = given.get("weight"), given.get("bias")
        return self._plus(terms if weight is None else terms * weight, bias)


def _kept_in_order(node: Node, axis: int | None) -> bool:
    """Whether a function gives the numbers of one value another shape, and nothing else."""
    return axis is None and node.name in _SHAPING and node.parents[0].value.numel() == node.value.numel()


def _row(tensor: Tensor, axis: int, row: int | None, rows: int) -> Tensor:
    """Select a row of a tensor that has rows; `axis` is counted from the end, as in broadcasting."""
    if row is None or tensor.ndim < -axis or rows == 1 or tensor.shape[axis] == 1:
        return tensor
    return tensor.narrow(axis, row, 1)
