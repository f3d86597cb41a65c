"""ONNX files of strangers: what an explainer never has is refused before onnxruntime sees it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from embedcam.errors import NetworkError
from embedcam.onnx.explainer import OnnxExplainer, with_checksum
from embedcam.onnx.guard import validate_model

GOLDEN = Path(__file__).parents[1] / "golden" / "explainer-1.onnx"
IMAGES = np.zeros((1, 3, 64, 64), np.float32)


@pytest.fixture
def model():
    return onnx.load(GOLDEN)


@pytest.fixture
def opened(tmp_path):
    """Write a model with a true checksum, as a stranger can, and open it."""

    def open_it(model):
        (tmp_path / "e.onnx").write_bytes(with_checksum(model.SerializeToString()))
        return OnnxExplainer(tmp_path / "e.onnx")

    return open_it


def branch():
    nothing = helper.make_graph([], "g", [], [])
    return helper.make_node("If", ["c"], ["x"], then_branch=nothing, else_branch=nothing)


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_in_an_attribute(model):
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    tensor.external_data.add(key="location", value="../outside")
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))


def huge(model):
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**31, 2**31])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "has data in other files"),
        (external_in_an_attribute, "has data in other files"),
        (huge, "a tensor of 4,611,686,018,427,387,904 elements with"),
        (lambda m: m.graph.initializer[0].dims.append(-1), "elements with"),
        (lambda m: m.graph.node.append(branch()), "a loop or a branch"),
        (lambda m: m.graph.node.append(helper.make_node("Evil", [], ["x"], domain="evil.org")), r"operators of b'evil"),
        (lambda m: m.opset_import.append(helper.make_opsetid("evil.org", 1)), r"operators of b'evil.org'"),
        (lambda m: m.functions.add(name="f"), "functions or training steps"),
        (lambda m: m.training_info.add(), "functions or training steps"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse tensors"),
        (
            lambda m: m.graph.node.extend(helper.make_node("Relu", [], []) for _ in range(2**16)),
            "more than 65536 nodes",
        ),
    ],
)
def test_what_no_explainer_has_is_refused(model, opened, change, message):
    change(model)
    with pytest.raises(NetworkError, match=rf"e\.onnx: its? .*{message}.*export it again"):
        opened(model)


def test_every_cut_of_a_model_is_refused_or_looked_through():
    whole, refused = GOLDEN.read_bytes(), 0
    for end in range(0, len(whole), 997):
        try:
            validate_model(whole[:end])
        except NetworkError:
            refused += 1
    assert refused > 250
    validate_model(whole)


@pytest.mark.parametrize(
    "data", [b"\x38\x01", b"\x3a\xff", b"\x80" * 20, b"\x3a\x02\x08", b"\x0b", b"\x42\x02\x08\x01"]
)
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(NetworkError, match="damaged"):
        validate_model(data)


def record(model, **changes):
    """Change what the file says of itself; a function changes the old value."""
    known = json.loads(model.metadata_props[0].value)
    known |= {key: value(known[key]) if callable(value) else value for key, value in changes.items()}
    model.metadata_props[0].value = json.dumps(known)


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": lambda old: old | {"input_size": [10**6, 10**6]}},
        {"preprocess": lambda old: old | {"input_size": [float("inf"), 1]}},
        {"preprocess": lambda old: old | {"std": [0, 1, 1]}},
        {"geometry": lambda old: old | {"cell_stride": [0, 4]}},
        {"geometry": lambda old: old | {"first_cell_center": [float("nan"), 4]}},
        {"database": lambda old: old | {"clusters": "3"}},
        {"database": lambda old: old | {"clusters": 4}},
        {"database": 5},
        {"labels": [[["name"]]] * 3},
        {"labels": [[["name", float("inf")]]] * 3},
        {"heatmap": "none"},
        {"schema": 2},
    ],
)
def test_a_record_that_cannot_be_is_refused(model, opened, changes):
    record(model, **changes)
    with pytest.raises(NetworkError, match=r"e\.onnx: its metadata is damaged|has schema 2"):
        opened(model)


@pytest.mark.parametrize("text", ["", "[" * 10**6, "{" + " " * 2**24])
def test_a_record_of_no_use_is_refused(model, opened, text):
    model.metadata_props[0].value = text
    with pytest.raises(NetworkError, match=r"e\.onnx: its metadata"):
        opened(model)


def test_an_input_of_another_kind_is_refused(model, opened):
    record(model, uint8_input=True)
    with pytest.raises(NetworkError, match=r"expected one input .*uint8.*got .*float"):
        opened(model)


def overwrite(model, name, value):
    """Let the graph put out a constant instead."""
    for node in model.graph.node:
        node.output[:] = ["was_" + output if output == name else output for output in node.output]
        node.input[:] = ["was_" + given if given == name else given for given in node.input]
    model.graph.node.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
    (output,) = (item for item in model.graph.output if item.name == name)
    output.type.CopyFrom(helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), None))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("heatmap", np.zeros((1, 5, 5), np.float32), r"'heatmap' has shape \(1, 5, 5\), for 1 images \(64, 64\)"),
        ("heatmap", np.full((1, 64, 64), 2, np.float32), "not in 0 to 1"),
        ("raw", np.full((1, 64, 64), np.nan, np.float32), "not finite"),
        ("raw", np.zeros((1, 64, 64), np.float64), "'raw' is no float32"),
        ("embedding", np.zeros((2, 8), np.float32), r"'embedding' has shape \(2, 8\)"),
        ("embedding", np.zeros(8, np.float32), "'embedding' is no float32"),
        ("cluster", np.array([3]), r"a cluster outside of 0\.\.2"),
        ("cluster", np.array([-1]), r"a cluster outside of 0\.\.2"),
        ("finite", np.array([1.0], np.float32), "'finite' is no bool"),
    ],
)
def test_outputs_that_are_not_what_the_record_says_are_refused(model, opened, name, value, message):
    overwrite(model, name, value)
    with pytest.raises(NetworkError, match=message):
        opened(model)(IMAGES)


def test_the_file_itself_is_accepted(model, opened):
    explanation = opened(model)(IMAGES)
    assert explanation.heatmaps.shape == (1, 64, 64)
    assert len(opened(model)(IMAGES[:0])) == 0
