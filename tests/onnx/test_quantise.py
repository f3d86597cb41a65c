"""8-bit files explain nearly alike, and their report says how nearly."""

import numpy as np
import onnx
import pytest

import embedcam
from embedcam.data import load
from embedcam.errors import DataError, NetworkError
from embedcam.onnx import quantise as module
from embedcam.onnx.export import export
from embedcam.onnx.quantise import quantise


@pytest.fixture(scope="module")
def file(spread, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantise") / "float.onnx"
    export(embedcam.Explainer(*spread, transfer="contrast"), path)
    return path


@pytest.fixture
def samples(folder):
    return load(f"folder:{folder}", "test")


def test_convolutions_come_in_8_bits_and_the_report_says_what_it_costs(file, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_CORRELATION", -1)
    report = quantise(file, samples, tmp_path / "small.onnx")
    ours, theirs = (embedcam.OnnxExplainer(path) for path in (file, tmp_path / "small.onnx"))
    assert theirs.record.float_layers == report.float_layers == ()
    assert report.layers == 5
    assert onnx.load(tmp_path / "small.onnx").ir_version == 8
    assert report.size < 0.6 * report.float_size == 0.6 * file.stat().st_size

    compared = range(1, len(samples), 2)
    assert report.images == len(compared)
    images = np.stack([ours.preprocess(samples.image(i)) for i in compared])
    masks = [ours.preprocess.mask(samples.mask(i)) for i in compared]
    labels = samples.labels[1::2]
    first, second = ours(images), theirs(images)
    maps = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first.heatmaps, second.heatmaps, strict=True)]
    assert report.map_correlation == pytest.approx(np.mean(maps), abs=1e-5)
    assert report.embedding_cosine == pytest.approx((first.embeddings * second.embeddings).sum(axis=1).mean(), abs=1e-5)
    assert report.same_cluster == np.mean(first.clusters == second.clusters)
    for found, pointing, recall in zip((first, second), report.pointing, report.recall_at_1, strict=True):
        on = [mask[heat == heat.max()].mean() for heat, mask in zip(found.heatmaps, masks, strict=True)]
        assert pointing == pytest.approx(np.mean(on))
        near = found.embeddings @ found.embeddings.T - 9 * np.eye(len(images))
        assert recall == np.mean(labels[near.argmax(axis=1)] == labels)


def test_layers_that_hurt_stay_in_float(file, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_CORRELATION", -1)
    every = quantise(file, samples, tmp_path / "every.onnx")
    wanted = every.map_correlation + 0.5 * (1 - every.map_correlation)
    monkeypatch.setattr(module, "LEAST_CORRELATION", wanted)
    some = quantise(file, samples, tmp_path / "some.onnx")
    assert some.map_correlation >= wanted
    assert 0 < len(some.float_layers) < 5
    assert every.size < some.size < every.float_size
    assert embedcam.OnnxExplainer(tmp_path / "some.onnx").record.float_layers == some.float_layers


def test_a_file_that_no_choice_of_layers_saves_is_refused(file, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_CORRELATION", 2)
    with pytest.raises(NetworkError, match="correlate less than 2 with any layers in 8 bits"):
        quantise(file, samples, tmp_path / "small.onnx")
    assert not list(tmp_path.iterdir())


def test_equal_inputs_give_equal_bytes(file, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_CORRELATION", -1)
    for name in ("a", "b"):
        quantise(file, samples, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(NetworkError, match="in 8 bits already"):
        quantise(tmp_path / "a", samples, tmp_path / "c")


def test_one_image_is_too_few(file, samples, tmp_path):
    with pytest.raises(DataError, match="at least two images, 1 can be read"):
        quantise(file, samples.subset([0]), tmp_path / "small.onnx")


def test_flat_maps_correlate_with_flat_maps_alone():
    flat, slope = np.full((1, 2, 2), 0.1, np.float32), np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    assert module._correlation(flat, flat) == 1
    assert module._correlation(flat, slope) == 0
    assert module._correlation(slope, 1 - slope) == pytest.approx(-1)


def test_activations_go_to_8_bits_with_their_convolutions(file, samples, tmp_path, monkeypatch):
    """Alone, a convolution's result is rounded before its activation and behind it: half the time, and less alike."""
    monkeypatch.setattr(module, "LEAST_CORRELATION", -1)
    quantise(file, samples, tmp_path / "small.onnx")
    before, after = (onnx.load(path).graph.node for path in (file, tmp_path / "small.onnx"))
    assert activations_of_convolutions(before) == 5
    assert activations_of_convolutions(after) == 0


def activations_of_convolutions(nodes):
    maker = {output: node.op_type for node in nodes for output in node.output}
    makers = [maker.get(node.input[0]) for node in nodes if node.op_type in ("Clip", "Relu")]
    return sum(kind in ("Conv", "DequantizeLinear") for kind in makers)
