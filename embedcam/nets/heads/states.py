"""Measure how each recorded value depends on the cells of the feature layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import NetworkError
from . import arguments
from .tape import Node

# Functions whose result is held at its value, so that what is multiplied or divided by it stays a sum over cells.
HELD = {"softmax", "sigmoid", "exp", "log", "sqrt", "rsqrt", "reciprocal", "norm", "linalg_vector_norm", "vector_norm",
        "matrix_norm", "std", "var", "var_mean", "std_mean", "argmax", "eq", "ne", "gt", "lt", "ge", "le"}  # fmt: skip
# Functions that become a factor at their value: f(x) = x (f(x) / x).
GATES = {"relu", "relu6", "gelu", "silu", "leaky_relu", "prelu", "elu", "selu", "celu", "mish", "softplus", "tanh",
         "hardtanh", "hardswish", "hardsigmoid", "pow", "square", "abs", "clamp", "clamp_min", "clamp_max"}  # fmt: skip
JOINING = {"cat", "concat", "concatenate"}

_OTHER, _FIRST = 1, 2  # numbers of what is no cell, and of the first cell: positive, so that ReLU leaves them
_LARGEST = 2**22  # numbers per image where each cell needs a copy of the maps


class State(NamedTuple):
    """How a value depends on the cells.

    Attributes:
        kind: "local": at each cell, on that cell only. "rows": each row is a sum over cells, as those that attention
            weighs.
            "terms": a sum over cells. "held": not at all, or held at its value. "mixed": in another way.
        axes: Of a local value, the axes along which the cells lie, row by row; of rows, their axis.
        before: Number of other positions along a local value's axis before its cells, such as a class token's; of terms
            made of a local value, those of that value.
        after: Number of those after them.
        row: Of terms made of rows, the row.
        selects: Of terms, whether they are that row among others.
        attention: Of rows, whether this is the attention's output itself.
        pool: Of terms made of a local value, "mean", "sum" or "max" over all positions; "" for any other function.
    """

    kind: str
    axes: tuple[int, ...] = ()
    before: int = 0
    after: int = 0
    row: int = 0
    selects: bool = False
    attention: bool = False
    pool: str = ""


def measure(nodes: list[Node], numbers: Tensor, cells: int) -> list[State]:
    """Measure the states of recorded values.

    A function keeps cells apart if a change of one cell of its input changes its output at that cell only. Where that
    is, follows from the function's result for the numbers of the cells, or from its input.

    Args:
        nodes: Of `Tape.path`.
        numbers: Number of the cell at each position of the feature layer's output, -1 where none is.
        cells: Number n of cells.

    Returns:
        One state per node.

    Raises:
        NetworkError: If the result is no sum over the cells that this module can compute.
    """
    return _Measured(cells).run(nodes, numbers)


class _Measured:
    def __init__(self, cells: int) -> None:
        self.cells, self.attends = cells, False
        self.states: dict[Node, State] = {}
        self.numbers: dict[Node, Tensor] = {}  # of cells or rows, for values that keep them apart

    def run(self, nodes: list[Node], numbers: Tensor) -> list[State]:
        self.attends = any(isinstance(arguments.attended(node), Node) for node in nodes)
        for node in nodes:
            if node.function is None:
                self.numbers[node] = numbers + _FIRST
                source = self._in_order(self.numbers[node])
                if source is None:
                    raise NetworkError("its cells are not in order, row by row")
                self.states[node] = source
            else:
                self.states[node] = self._state(node)
        if self.states[nodes[-1]].kind != "terms":
            mixing = next((node.name for node in nodes if self.states[node].kind == "mixed"), None)
            raise NetworkError(f"{mixing} mixes its cells" if mixing else "no cell of it adds to the embedding")
        return list(self.states.values())

    def _in_order(self, numbers: Tensor) -> State | None:
        """The state of a local value whose cells lie row by row, with nothing but others before and after them."""
        axes, line = _axes(numbers)
        cells = (line >= _FIRST).nonzero().flatten()
        if not axes or len(cells) != self.cells or not torch.equal(line[cells], torch.arange(self.cells) + _FIRST):
            return None
        before, last = int(cells[0]), int(cells[-1])
        return State("local", axes, before, len(line) - 1 - last) if last - before == self.cells - 1 else None

    def _state(self, node: Node) -> State:
        kinds = {self.states[parent].kind for parent in node.parents}
        if kinds == {"held"}:
            return State("held")
        attended = self._attended(node)
        if attended is not None:
            return attended
        if "rows" in kinds:
            return self._of_rows(node)
        if node.name in JOINING and kinds == {"local", "terms"} and not self.attends:
            return self._joined(node)
        if "local" in kinds:
            numbers = self._kept_apart(node, "local")
            if numbers is not None and (numbers == _OTHER).all():  # a class token's
                return State("held")
            local = None if numbers is None else self._in_order(numbers)
            if numbers is not None and local is not None:
                self.numbers[node] = numbers
                return local
            pool = self._pool(node)
            merged = next(self.states[parent] for parent in node.parents if self.states[parent].kind == "local")
            kind = "terms" if pool or self._connected(node) else "mixed"
            return State(kind, before=merged.before, after=merged.after, pool=pool)
        if node.name in HELD:
            return State("held")
        return State("mixed" if "mixed" in kinds else "terms")

    def _attended(self, node: Node) -> State | None:
        """The state of a product with attention weights, over all tokens."""
        value = arguments.attended(node)
        if not isinstance(value, Node) or self.states[value].kind != "local" or node.item:
            return None
        first = node.name == "multi_head_attention_forward"  # (L, B, E), others (..., L, d)
        axis, along = (0, 0) if first else (node.value.ndim - 2, value.value.ndim - 2)
        if self.states[value].axes != (along,):
            return None
        self._number_rows(node, axis)
        return State("rows", (axis,), attention=True)

    def _joined(self, node: Node) -> State:
        """The state of pooled cells beside the cells themselves, as a token before the others."""
        axis = arguments.joined(node)
        for part in node.args[0]:
            state = self.states.get(part)
            if state is None or (state.axes != (axis,) if state.kind == "local" else part.value.shape[axis] != 1):
                return State("mixed")
        self._number_rows(node, axis)
        return State("rows", (axis,))

    def _number_rows(self, node: Node, axis: int) -> None:
        shape = [1] * node.value.ndim
        shape[axis] = -1
        rows = torch.arange(node.value.shape[axis]).view(shape) + _FIRST
        self.numbers[node] = rows.expand(node.value.shape)

    def _of_rows(self, node: Node) -> State:
        if node.name in HELD or node.name in GATES:  # the effect of an MLP belongs to no cell
            return State("held")
        numbers = self._kept_apart(node, "rows")
        if numbers is None:
            raise NetworkError(f"{node.name} mixes the rows of the attention after it")
        axes, line = _axes(numbers)
        attended = next(parent for parent in node.parents if self.states[parent].kind == "rows")
        rows = attended.value.shape[self.states[attended].axes[0]]
        if not axes:
            return State("terms", row=int(numbers.flatten()[0]) - _FIRST, selects=rows > 1)
        if len(axes) > 1 or len(line) != rows:
            raise NetworkError(f"{node.name} does not keep all rows of the attention after it")
        self.numbers[node] = numbers
        return State("rows", axes)

    def _kept_apart(self, node: Node, kind: str) -> Tensor | None:
        """Return the numbers of cells or rows at each position of a value; None if a function mixes them."""
        tracked = {}
        for parent in node.parents:
            state = self.states[parent]
            if state.kind == kind:
                tracked[parent] = self.numbers[parent]
            elif state.kind == "local":  # among rows: token i is added to row i
                shape = [1] * parent.value.ndim
                shape[state.axes[0]] = -1
                positions = torch.arange(parent.value.shape[state.axes[0]]).view(shape) + _FIRST
                tracked[parent] = positions.expand(parent.value.shape)
        for numbers in (_same_axes(node, tracked), _moved(node, tracked)):
            if numbers is not None and numbers.shape == node.value.shape and _confirmed(node, tracked, numbers):
                return numbers
        return None

    def _connected(self, node: Node) -> bool:
        """Whether a function takes all cells at once, as flattening and large kernels do, and they are few."""
        largest = max(parent.value[0].numel() for parent in node.parents)
        few = node.value.ndim == 2 or (node.value.ndim == 4 and node.value[0, 0].numel() < self.cells / 4)
        return few and self.cells * largest <= _LARGEST

    def _pool(self, node: Node) -> str:
        local = [parent for parent in node.parents if self.states[parent].kind == "local"]
        axes, value = self.states[local[0]].axes, local[0].value
        if len(node.parents) == 1:
            for name, pool in _POOLS.items():
                pooled = pool(value, axes)
                if pooled.numel() == node.value.numel() and torch.allclose(
                    pooled.flatten().float(), node.value.flatten().float(), rtol=1e-4, atol=1e-5
                ):
                    return name
        return ""


_POOLS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "mean": lambda value, axes: value.mean(dim=axes),
    "sum": lambda value, axes: value.sum(dim=axes),
    "max": lambda value, axes: value.amax(dim=axes),
}


def _axes(numbers: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Return the axes along which numbers vary, and the numbers along them, in one line."""
    axes = tuple(
        axis for axis in range(numbers.ndim) if numbers.shape[axis] and (numbers != numbers.narrow(axis, 0, 1)).any()
    )
    line = numbers
    for axis in range(numbers.ndim):
        if axis not in axes:
            line = line.narrow(axis, 0, 1)
    return axes, line.flatten()


def _same_axes(node: Node, tracked: dict[Node, Tensor]) -> Tensor | None:
    """Suppose that the cells lie along the same axes as in the input."""
    numbers = max(tracked.values(), key=Tensor.numel)
    axes, line = _axes(numbers)
    if numbers.ndim != node.value.ndim:
        return None
    shape = [numbers.shape[axis] if axis in axes else 1 for axis in range(numbers.ndim)]
    try:
        return line.view(shape).expand(node.value.shape)
    except RuntimeError:
        return None


def _moved(node: Node, tracked: dict[Node, Tensor]) -> Tensor | None:
    """Suppose that the function only moves values."""

    def number(leaf: object) -> object:
        if isinstance(leaf, Node):
            return tracked[leaf].clone() if leaf in tracked else torch.full(leaf.value.shape, _OTHER)
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.full(leaf.shape, _OTHER)
        return leaf

    try:
        numbers = node.call(number)
    except Exception:  # a function of floating-point numbers
        return None
    return numbers if numbers.dtype == torch.int64 else None


def _confirmed(node: Node, tracked: dict[Node, Tensor], numbers: Tensor) -> bool:
    """Test that a change of one cell of the input changes the output at that cell only."""
    generator = torch.Generator().manual_seed(0)
    present = torch.unique(torch.cat([each.flatten() for each in tracked.values()]))
    before = node.call(lambda leaf: leaf.value.clone() if isinstance(leaf, Node) else leaf)
    for cell in present[[0, 1 % len(present), len(present) // 2, -1]].tolist():

        def disturbed(leaf: object, cell: int = cell) -> object:
            if not isinstance(leaf, Node):
                return leaf
            value = leaf.value.clone()
            if leaf in tracked:
                noise = torch.randn(value.shape, generator=generator).to(value)
                value = torch.where((tracked[leaf] == cell).to(value.device), value + noise, value)
            return value

        after = node.call(disturbed)
        changed = ((after - before).abs() > 1e-5 * before.abs().amax()).cpu()
        if (changed & (numbers != cell)).any():
            return False
    return True
