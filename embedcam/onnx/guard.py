"""Look through an ONNX file of a stranger before onnxruntime sees it. Needs no library.

onnxruntime reads whatever other files a model names, loads operators of other domains, and runs loops. An explainer
uses none of that: here the protocol buffer is walked once, and what leads out of the file, repeats or declares more
than it holds is refused. What the graph computes stays its own: it is a program, though a harmless kind of one.

Source:
    onnx/onnx.proto3 for the numbers of the fields, and protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NetworkError
from .record import INPUT, OUTPUTS, OnnxRecord

if TYPE_CHECKING:
    import onnxruntime

# The standard operators, by either of their names, and those that quantised convolutions may use.
DOMAINS = (b"", b"ai.onnx", b"com.microsoft")
MOST_NODES = 2**16

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Fields by message: model, operator set, graph, node, attribute, tensor.
_GRAPH, _OPSET, _TRAINING, _FUNCTIONS = 7, 8, 20, 25
_SET_DOMAIN = 1
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15
_ATTRIBUTE, _NODE_DOMAIN = 5, 7
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23
_DIMS, _EXTERNAL, _LOCATION = 1, 13, 14
_DATA = (4, 5, 6, 7, 9, 10, 11)


def look_through(model: bytes) -> None:
    """Refuse a model that leads out of its file, repeats parts of itself, or declares more than it holds.

    Args:
        model: A serialised ModelProto.

    Raises:
        NetworkError: Saying what it has that an explainer has not.
    """
    nodes = 0
    for field, value in _fields(memoryview(model)):
        if field in (_TRAINING, _FUNCTIONS):
            raise NetworkError("it has functions or training steps, which no explainer has")
        if field == _OPSET:
            _require_domain(value, _SET_DOMAIN)
        elif field == _GRAPH:
            for part, content in _fields(_message(value)):
                if part == _NODE:
                    nodes += 1
                    _node(_message(content))
                elif part == _INITIALIZER:
                    _tensor(_message(content))
                elif part == _SPARSE_INITIALIZER:
                    raise NetworkError("it has sparse tensors, which no explainer has")
                if nodes > MOST_NODES:
                    raise NetworkError(f"its graph has more than {MOST_NODES} nodes, which no explainer has")


def require_signature(session: onnxruntime.InferenceSession, record: OnnxRecord) -> None:
    """Make sure that a model takes and names what its record says.

    Args:
        session: The model.
        record: What it says of itself.

    Raises:
        NetworkError: If it takes or gives something else.
    """
    found = [item.name for item in session.get_outputs()]
    if found != list(OUTPUTS):
        raise NetworkError(f"expected the outputs {', '.join(OUTPUTS)}, found {', '.join(found)}")
    inputs = [(item.name, item.type, len(item.shape)) for item in session.get_inputs()]
    wanted = (INPUT, "tensor(uint8)" if record.uint8_input else "tensor(float)", 4)
    if inputs != [wanted]:
        raise NetworkError(f"expected one input {wanted}, found {inputs}")


def require_outputs(found: Mapping[str, Any], images: int, size: tuple[int, int], record: OnnxRecord) -> None:
    """Make sure that a model gave what its record says; what it declares may be anything.

    Args:
        found: Its outputs by name.
        images: How many it was given.
        size: (H, W) of their heat maps.
        record: What it says of itself.

    Raises:
        NetworkError: If an output has another form, or a cluster is none.
    """
    for name, text in OUTPUTS.items():
        dtype, sides = np.dtype(text.split()[0]), text.partition("(")[2].partition(")")[0].strip(",").count(",") + 1
        output = found[name]
        if not isinstance(output, np.ndarray) or output.dtype != dtype or output.ndim != sides:
            raise NetworkError(f"its output {name!r} is no {text}")
        maps = name in ("heatmap", "raw") and record.heatmap == "image"
        if len(output) != images or 0 in output.shape or (maps and output.shape[1:] != size):
            raise NetworkError(f"its output {name!r} has shape {output.shape}, for {images} images {size}")
    if not 0 <= found["cluster"].min() <= found["cluster"].max() < record.database["clusters"]:
        raise NetworkError(f"it found a cluster outside of 0..{record.database['clusters'] - 1}")
    if not (np.isfinite(found["raw"]).all() and 0 <= found["heatmap"].min() <= found["heatmap"].max() <= 1):
        raise NetworkError("its heat maps are not finite, or not in 0 to 1")


def _node(message: memoryview) -> None:
    _require_domain(message, _NODE_DOMAIN)
    for field, attribute in _fields(message):
        if field != _ATTRIBUTE:
            continue
        for part, value in _fields(_message(attribute)):
            if part in (_SUBGRAPH, _SUBGRAPHS):
                raise NetworkError("it has a loop or a branch, which no explainer has")
            if part in (_SPARSE, _SPARSES):
                raise NetworkError("it has sparse tensors, which no explainer has")
            if part in (_TENSOR, _TENSORS):
                _tensor(_message(value))


def _tensor(message: memoryview) -> None:
    """Refuse a tensor whose data lie in another file, or that is larger than its data."""
    elements, held = 1, 0
    for field, value in _fields(message):
        if field == _EXTERNAL or (field == _LOCATION and value):
            raise NetworkError("it keeps data in other files, which no explainer does")
        if field == _DIMS:
            sides = [value] if isinstance(value, int) else list(_varints(value))
            elements *= math.prod(sides)
        elif field in _DATA:
            held += 1 if isinstance(value, int) else len(value)
    if elements > 2 * held:  # two elements of 4 bits a byte
        raise NetworkError(f"it has a tensor of {elements:,} elements with {held:,} bytes of data")


def _require_domain(message: int | memoryview, wanted: int) -> None:
    for field, value in _fields(_message(message)):
        if field == wanted and bytes(_message(value)) not in DOMAINS:
            raise NetworkError(f"it needs operators of {bytes(_message(value))[:40]!r}, which no explainer needs")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise NetworkError("it is damaged: a number stands where a message should")
    return value


def _fields(message: int | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Walk a message: number and content of each field."""
    data = _message(message)
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            number, place = _varint(data, place)
            yield field, number
            continue
        if kind == _BYTES:
            size, place = _varint(data, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise NetworkError(f"it is damaged: a field is of kind {kind}")
        if place + size > len(data):
            raise NetworkError(f"it is damaged: a field of {size:,} bytes does not end within it")
        yield field, data[place : place + size]
        place += size


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        number, place = _varint(data, place)
        yield number


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
    raise NetworkError("it is damaged: a number does not end")
