"""Validate an untrusted ONNX file before onnxruntime reads it. Needs no library.

onnxruntime reads other files that a model names, loads operators of other domains, and runs loops. An explainer needs
none of these: the protocol buffer is parsed once, and external data, loops, and tensors that are larger than their data
are refused. The graph itself is not restricted otherwise.

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

# The two names of the standard operators, and the domain of quantised convolutions.
_DOMAINS = (b"", b"ai.onnx", b"com.microsoft")
_MAX_NODES = 2**16

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Fields by message: model, operator set, graph, node, attribute, tensor.
_GRAPH, _OPSET, _TRAINING, _FUNCTIONS = 7, 8, 20, 25
_SET_DOMAIN = 1
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15
_ATTRIBUTE, _NODE_DOMAIN = 5, 7
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23
_DIMS, _EXTERNAL, _LOCATION = 1, 13, 14
_DATA = (4, 5, 6, 7, 9, 10, 11)


def _type_and_sides(text: str) -> tuple[np.dtype[Any], int]:
    """Read type and number of dimensions from the description of an output."""
    return np.dtype(text.split()[0]), text.partition("(")[2].partition(")")[0].strip(",").count(",") + 1


_EXPECTED = {name: (text, *_type_and_sides(text)) for name, text in OUTPUTS.items()}


def validate_model(model: bytes) -> None:
    """Refuse a model with external data, loops, foreign operators, or tensors larger than their data.

    Args:
        model: A serialised ModelProto.

    Raises:
        NetworkError: If the model has something that no explainer has.
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
                if nodes > _MAX_NODES:
                    raise NetworkError(f"its graph has more than {_MAX_NODES} nodes, which no explainer has")


def require_signature(session: onnxruntime.InferenceSession, record: OnnxRecord) -> None:
    """Check the inputs and outputs of a model against its record.

    Args:
        session: The model.
        record: Its record.

    Raises:
        NetworkError: If they differ.
    """
    outputs = [item.name for item in session.get_outputs()]
    if outputs != list(OUTPUTS):
        raise NetworkError(f"expected the outputs {', '.join(OUTPUTS)}, got {', '.join(outputs)}")
    inputs = [(item.name, item.type, len(item.shape)) for item in session.get_inputs()]
    expected = (INPUT, "tensor(uint8)" if record.uint8_input else "tensor(float)", 4)
    if inputs != [expected]:
        raise NetworkError(f"expected one input {expected}, got {inputs}")


def require_outputs(outputs: Mapping[str, Any], images: int, size: tuple[int, int], record: OnnxRecord) -> None:
    """Check the computed outputs of a model against its record.

    Args:
        outputs: Outputs by name.
        images: Number of images.
        size: (H, W) of their heat maps.
        record: The model's record.

    Raises:
        NetworkError: If an output has another type or shape, or a value is out of range.
    """
    for name, (text, dtype, sides) in _EXPECTED.items():
        output = outputs[name]
        if not isinstance(output, np.ndarray) or output.dtype != dtype or output.ndim != sides:
            raise NetworkError(f"its output {name!r} is no {text}")
        maps = name in ("heatmap", "raw") and record.heatmap == "image"
        if len(output) != images or 0 in output.shape or (maps and output.shape[1:] != size):
            raise NetworkError(f"its output {name!r} has shape {output.shape}, for {images} images {size}")
    if not 0 <= outputs["cluster"].min() <= outputs["cluster"].max() < record.database["clusters"]:
        raise NetworkError(f"it returns a cluster outside of 0..{record.database['clusters'] - 1}")
    if not (
        -np.inf < outputs["raw"].min() <= outputs["raw"].max() < np.inf
        and 0 <= outputs["heatmap"].min() <= outputs["heatmap"].max() <= 1
    ):
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
    """Refuse a tensor with data in another file, or larger than its data."""
    elements, held = 1, 0
    for field, value in _fields(message):
        if field == _EXTERNAL or (field == _LOCATION and value):
            raise NetworkError("it has data in other files, which no explainer has")
        if field == _DIMS:
            sides = [value] if isinstance(value, int) else list(_varints(value))
            elements *= math.prod(sides)
        elif field in _DATA:
            held += 1 if isinstance(value, int) else len(value)
    if elements > 2 * held:  # a byte holds two elements of 4 bits
        raise NetworkError(f"it has a tensor of {elements:,} elements with {held:,} bytes of data")


def _require_domain(message: int | memoryview, domain_field: int) -> None:
    for field, value in _fields(_message(message)):
        if field == domain_field and bytes(_message(value)) not in _DOMAINS:
            raise NetworkError(f"it needs operators of {bytes(_message(value))[:40]!r}, which no explainer needs")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise NetworkError("it is damaged: a number where a message is expected")
    return value


def _fields(message: int | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and content of each field of a message."""
    data = _message(message)
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            yield field, number
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise NetworkError(f"it is damaged: a field is of kind {kind}")
        if position + size > len(data):
            raise NetworkError(f"it is damaged: a field of {size:,} bytes does not end within it")
        yield field, data[position : position + size]
        position += size


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        number, position = _varint(data, position)
        yield number


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
    raise NetworkError("it is damaged: a number does not end")
