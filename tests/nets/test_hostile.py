"""Untrusted network files."""

import json
import resource
import struct

import pytest
from safetensors.torch import load_file, save_file

from embedcam.errors import NetworkError
from embedcam.nets import EmbeddingNet


@pytest.fixture
def path(net, tmp_path):
    net.save(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def configured(path, **changes):
    """Write the file again with another configuration; a function changes the old value."""
    config = EmbeddingNet.load(path).config()
    config |= {key: value(config[key]) if callable(value) else value for key, value in changes.items()}
    save_file(load_file(path), path, {"embedcam": json.dumps(config)})


def preprocess(**changes):
    return lambda old: old | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 10**12}, r"its head has \[8\] rows, the configuration says \[1000000000000\]"),
        ({"dim": "8"}, "its head has"),
        ({"hidden": 10**12}, "its head has"),
        ({"backbone": "vit_h_14"}, r"vit_h_14 needs 2,\d+,\d+,\d+ bytes, too many for a file of \d"),
        ({"backbone": "resnet18"}, "does not match its own configuration"),
        ({"backbone": "no_such_net"}, "unknown backbone 'no_such_net'"),
        ({"backbone": ["tiny"]}, r"unknown backbone \['tiny'\]"),
        ({"layer": "no.such.layer"}, "no layer"),
        ({"layer": 5}, "damaged"),
        ({"metric": "none"}, "unknown metric"),
        ({"preprocess": None}, "damaged"),
        ({"preprocess": preprocess(input_size=[10**6, 10**6])}, "image_size 8 to 4096"),
        ({"preprocess": preprocess(input_size=["32", 32])}, "damaged"),
        ({"preprocess": preprocess(input_size=[])}, "damaged"),
        ({"preprocess": preprocess(std=[1, 0, 1])}, "std positive"),
        ({"preprocess": preprocess(mean=[0, 0])}, "three numbers"),
        ({"preprocess": preprocess(interpolation="none")}, "interpolation must be one of"),
        ({"format": 2}, "has network format 2, this embedcam reads 1; update embedcam"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_it_is_made(path, changes, message):
    configured(path, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkError, match=message):
        EmbeddingNet.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kilobytes: a vit_h_14 has 2.5 GB


@pytest.mark.parametrize("text", ["[" * 10**6, '{"format": 1', "null", "1", "", '{"format": 1}' + " " * 10**6])
def test_metadata_that_is_no_configuration_is_refused(path, text):
    save_file(load_file(path), path, {"embedcam": text})
    with pytest.raises(NetworkError, match=r"net\.safetensors"):
        EmbeddingNet.load(path)


def rewritten(path, change):
    """Change the header of a safetensors file, and its length with it."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["head.weight"].update(data_offsets=[0, 10**15]),
        lambda header: header["head.weight"].update(data_offsets=[-8, 10]),
        lambda header: header["head.weight"].update(shape=[8, 2**62]),
        lambda header: header["head.weight"].update(shape=[8, -128]),
        lambda header: header["head.weight"].update(shape=[]),
        lambda header: header["head.weight"].update(dtype="F64"),
        lambda header: header["head.weight"].update(dtype="Q9"),
        lambda header: header.update({"head.bias": header["head.weight"]}),
        lambda header: header.pop("head.weight"),
        lambda header: header.update({"../../outside": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    ],
)
def test_tensors_that_do_not_lie_in_the_file_are_refused(path, change):
    rewritten(path, change)
    with pytest.raises(NetworkError, match=r"net\.safetensors"):
        EmbeddingNet.load(path)


@pytest.mark.parametrize("length", [0, 10, 10**8 + 1, 2**62, 2**64 - 1])
def test_a_header_of_another_length_is_refused(path, length):
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(NetworkError, match="not a readable safetensors file"):
        EmbeddingNet.load(path)


def test_too_many_tensors_are_refused(path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    rewritten(path, lambda header: header.update({f"extra.{number}": empty for number in range(2**14)}))
    with pytest.raises(NetworkError, match=r"it has 16\d+ tensors, at most 16384 are read"):
        EmbeddingNet.load(path)
