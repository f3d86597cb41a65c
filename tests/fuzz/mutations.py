"""Seeded mutations of files: of bytes, and of the parts of a format with valid checksums."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import onnx

Rng = np.random.Generator
INTEGERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 4095, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62)
NUMBERS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", "\0", "../../outside", "/etc/passwd", "\x1b[2J", "<script>", "x" * 5000, "\n", "é" * 50, "1e999", "tiny")


def pick(rng: Rng, things: Any) -> Any:
    return things[int(rng.integers(len(things)))]


def place(rng: Rng, data: bytes | bytearray) -> int:
    """A random offset, more often near the start, where headers are."""
    end = max(len(data), 1)
    return int(rng.integers(min(end, pick(rng, (64, 1024, end, end)))))


def flip_bits(rng: Rng, data: bytearray) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[place(rng, data)] ^= 1 << int(rng.integers(8))


def overwrite_run(rng: Rng, data: bytearray) -> None:
    start, length = place(rng, data), int(rng.integers(1, 65))
    data[start : start + length] = pick(rng, (b"\0" * length, b"\xff" * length, rng.bytes(length)))


def truncate(rng: Rng, data: bytearray) -> None:
    del data[place(rng, data) :]


def splice(rng: Rng, data: bytearray) -> None:
    """Copy, insert or cut a piece."""
    source, target, length = place(rng, data), place(rng, data), int(rng.integers(1, 257))
    piece = data[source : source + length]
    data[target : target + pick(rng, (0, len(piece)))] = pick(rng, (piece, b""))


def edit_integer(rng: Rng, data: bytearray) -> None:
    """Overwrite a possible length or offset."""
    start, form = place(rng, data), pick(rng, ("<B", "<H", "<I", "<Q", ">H", ">I", ">Q"))
    size = struct.calcsize(form)
    number = pick(rng, (*INTEGERS, len(data), len(data) - 1, len(data) + 1, start, 2**64 - 1))
    if rng.integers(2) and start + size <= len(data):
        number = struct.unpack_from(form, data, start)[0] + pick(rng, (-1, 1, 8, 256))
    data[start : start + size] = struct.pack(form, number % 2 ** (8 * size))


BYTES = (flip_bits, overwrite_run, truncate, splice, edit_integer, edit_integer, flip_bits)


def spoil_bytes(rng: Rng, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        if data:
            pick(rng, BYTES)(rng, data)
    return bytes(data)


def _values(rng: Rng, item: h5py.Dataset) -> Any:
    """Random values of another type or shape than the data set's."""
    old = np.asarray(item[()])
    shape = pick(rng, (item.shape, item.shape[1:], (*item.shape, 2), (0, *item.shape[1:]), (7,), (3, 3), (1, 1, 1)))
    if rng.integers(2) and old.dtype.kind in "fi":
        new = old.copy()
        spoiled = np.array(pick(rng, NUMBERS if old.dtype.kind == "f" else INTEGERS)).astype(old.dtype)
        new.flat[rng.integers(new.size, size=3)] = spoiled
        return new
    dtype = pick(rng, ("f4", "f8", "i4", "i8", "u1", ">f4", "S3", "bool", "c8", "f2"))
    empty = np.zeros(shape, "S1" if old.dtype == object else old.dtype)
    return pick(rng, (np.ones(shape, dtype), empty, np.array(["text"] * 3, h5py.string_dtype())))


def _exists(file: h5py.File, name: str) -> bool:
    with contextlib.suppress(RuntimeError):  # a link that leads back to itself
        return name in file
    return False


def spoil_hdf5(rng: Rng, content: bytes) -> bytes:
    """Change items and attributes with h5py, which keeps the structure valid."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+", libver="earliest") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(int(rng.integers(1, 4))):
            name = pick(rng, [name for name in names if _exists(file, name)])
            item, kind = file[name], int(rng.integers(8))
            if kind == 0:
                del file[name]
            elif kind <= 2 and item.attrs:
                key = pick(rng, list(item.attrs))
                item.attrs[key] = pick(rng, (*TEXTS[2:], *INTEGERS, *NUMBERS, [1.0, np.nan], [2**40] * 2, [0, 0, 0]))
            elif kind == 3:
                owner = pick(
                    rng, (file, *(file[at] for at in names if _exists(file, at) and isinstance(file[at], h5py.Group)))
                )
                link = pick(rng, (h5py.SoftLink("/clusters"), h5py.ExternalLink("/etc/passwd", "/")))
                owner.pop(leaf := pick(rng, (name.rpartition("/")[2], "extra")), None)
                owner[leaf] = link
            elif isinstance(item, h5py.Dataset) and _exists(file, name):
                options = pick(rng, ({}, {"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}))
                new = _values(rng, item)
                del file[name]
                options = options if new.size and new.ndim and new.dtype != object else {}
                file.create_dataset(name, data=new, **options)
            if rng.integers(4) == 0:
                key = pick(rng, list(file.attrs))
                file.attrs[key] = pick(rng, (*TEXTS[2:], *INTEGERS, "1.1.0", "2.0.0"))
    return buffer.getvalue()


def spoil_bomb(rng: Rng, content: bytes) -> bytes:
    """Let a data set declare, or unpack to, far more than the file's size."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+", libver="earliest") as file:
        name = pick(rng, ("clusters/centroids", "clusters/weights_mean", "exemplars/path", "labels/names"))
        old = file[name].dtype
        del file[name]
        shape, chunks = pick(rng, (((2**28,), (2**16,)), ((2**14, 2**14), (256, 256)), ((2**40,), (2**20,))))
        item = file.create_dataset(name, shape, old, chunks=chunks, compression=pick(rng, (None, "gzip")))
        if rng.integers(2):
            item[tuple(slice(0, side) for side in chunks)] = np.zeros(1, old)[0]
    return buffer.getvalue()


def spoil_json(rng: Rng, value: Any, depth: int = 0) -> Any:
    """Replace one value somewhere in a JSON structure."""
    if isinstance(value, dict) and value and (depth == 0 or rng.integers(4)):
        key = pick(rng, list(value))
        return {**value, key: spoil_json(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and rng.integers(2):
        at = int(rng.integers(len(value)))
        return [*value[:at], spoil_json(rng, value[at], depth + 1), *value[at + 1 :]]
    numbers = [number for number in NUMBERS if np.isfinite(number)]
    return pick(rng, (*INTEGERS, *(-i for i in INTEGERS[1:]), *numbers, *TEXTS, None, True, [], {}, [[]], [value] * 3))


def spoil_safetensors(rng: Rng, content: bytes) -> bytes:
    """Change the header and its length."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    if rng.integers(2):
        config = json.loads(header["__metadata__"]["embedcam"])
        header["__metadata__"]["embedcam"] = json.dumps(spoil_json(rng, config))
    else:
        header = spoil_json(rng, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def spoil_onnx(rng: Rng, content: bytes) -> bytes:
    """Change nodes, attributes, tensors and the record; the result is still a model."""
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    for _ in range(int(rng.integers(1, 4))):
        node = pick(rng, graph.node)
        kind = int(rng.integers(9))
        if kind == 0:
            graph.node.remove(node)
        elif kind == 1:
            node.op_type = pick(rng, (*{other.op_type for other in graph.node}, "Tile", "Range", "Loop", "Nothing"))
        elif kind == 2 and node.input:
            node.input[int(rng.integers(len(node.input)))] = pick(rng, pick(rng, graph.node).output)
        elif kind == 3 and node.attribute:
            attribute = pick(rng, node.attribute)
            attribute.i = pick(rng, INTEGERS) - pick(rng, (0, 2**31))
            if attribute.ints:
                attribute.ints[int(rng.integers(len(attribute.ints)))] = pick(rng, INTEGERS)
        elif kind == 4:
            tensor = pick(rng, graph.initializer)
            if tensor.dims:
                tensor.dims[int(rng.integers(len(tensor.dims)))] = pick(rng, INTEGERS)
        elif kind == 5:
            tensor = pick(rng, graph.initializer)
            tensor.raw_data = spoil_bytes(rng, tensor.raw_data) if rng.integers(2) else rng.bytes(len(tensor.raw_data))
        elif kind == 6:
            pick(rng, graph.initializer).data_type = int(rng.integers(0, 24))
        elif kind == 7:
            record = json.loads(model.metadata_props[0].value)
            model.metadata_props[0].value = json.dumps(spoil_json(rng, record))
        else:
            side = pick(rng, pick(rng, (*graph.input, *graph.output)).type.tensor_type.shape.dim or [None])
            if side is not None:
                side.dim_value = pick(rng, INTEGERS)
    return model.SerializeToString()


def spoil_png(rng: Rng, content: bytes) -> bytes:
    """Corrupt a chunk (sometimes its inflated content) and update its checksum."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append([content[at + 4 : at + 8], bytearray(content[at + 8 : at + 8 + length])])
        at += 12 + length
    chunk = pick(rng, chunks)
    if chunk[0] == b"IDAT" and rng.integers(2):
        chunk[1] = bytearray(zlib.compress(spoil_bytes(rng, zlib.decompress(bytes(chunk[1])))))
    elif chunk[1]:
        pick(rng, BYTES)(rng, chunk[1])
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return content[:8] + b"".join(parts)


Spoil = Callable[[Rng, bytes], bytes]
