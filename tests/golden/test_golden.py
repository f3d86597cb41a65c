"""Files of released formats, which every later version must read as they were meant; they never change.

The numbers are formulas (see make.py), worked out here again without the code that wrote the files.
"""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import embedcam
from embedcam.database.verify import verify
from embedcam.nets.geometry import Geometry
from embedcam.nets.source import NetworkSource
from embedcam.onnx.explainer import OnnxExplainer

HERE = Path(__file__).parent
SHA256 = {
    "weights-1.0.0.h5": "e7a7d12b6debe22d065d8f2881ca0e547df287d25c9c83c19a4f4906c84fa3fb",
    "net-1.safetensors": "81a37fe4e0e6da9ce6f074cb6311eb065db45f58709af19a31e6bef007c14e36",
    "explainer-1.onnx": "3521a7909356b30e42c67a2e3cc53132be506ccf5aab038f6b313ff090ba0781",
}
NETWORK = "51f5cc92d9441a7e88a7c2c785299fa748e35ca884c525ec22ec8b5948dd17a0"
C, K, D, T, N = 3, 128, 8, 10, 12


@pytest.mark.parametrize(("name", "sha256"), SHA256.items())
def test_golden_files_never_change(name, sha256):
    assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == sha256


@pytest.fixture(scope="module")
def db():
    return embedcam.WeightDatabase.load(HERE / "weights-1.0.0.h5")


def test_format_1_holds_what_it_held(db):
    assert (db.method, db.target, db.pairs, db.seed) == ("gradcam", "triplet_margin", 0, 7)
    assert (db.created, db.embedcam_version) == ("2026-01-02T03:04:05+00:00", "0.1.0")
    net = db.network
    assert (net.sha256, net.architecture, net.layer) == (NETWORK, "tiny", "features.14")
    assert (net.channels, net.dim, net.metric) == (K, D, "cosine")
    assert (net.map_size, net.number_type) == ((8, 8), "float32")
    assert net.sha256_float16.startswith("e88d23da") and net.sha256_bfloat16.startswith("ecdfad9e")
    assert net.source == NetworkSource(str(HERE / "net-1.safetensors"), file_sha256=SHA256["net-1.safetensors"])
    preprocess = net.preprocess
    assert (preprocess.crop_pct, preprocess.transform) == (None, "")
    assert (preprocess.input_size, preprocess.interpolation) == ((32, 32), "bilinear")
    assert (preprocess.mean, preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert db.geometry == Geometry((4.0, 4.0), (1.0, 1.0))
    assert db.label_names == ("Ünïcode", "東京", "<b>bold</b>")
    assert db.label_histogram.tolist() == [[4, 0, 0], [0, 3, 1], [0, 0, 3]]
    assert db.counts.tolist() == [4, 4, 4]
    assert (db.refinement.input_size, db.refinement.distance_scale) == ((64, 64), 1.5)
    assert (db.fusion.layer, db.fusion.geometry) == ("features.8", db.geometry)
    assert [(outcome.item, outcome.found) for outcome in verify(HERE / "weights-1.0.0.h5") if not outcome.sound] == []


def test_format_1_holds_the_numbers_that_it_held(db):
    for row in range(C):
        expected = [(((37 * channel + 11 * row) % K) ** 2 - 50) / 2**24 for channel in range(K)]
        assert db.weights_mean[row].tolist() == expected
        assert db.weights_std[row].tolist() == [abs(number) / 2 for number in expected]
        assert db.fusion.weights_mean[row].tolist() == [
            (((37 * ch + 11 * row) % 64) ** 2 - 50) / 2**24 for ch in range(64)
        ]
        # The largest numbers are 77, 76 ... and each is at one channel: 45 is 1 / 37 modulo 128.
        channels = [45 * (K - 1 - place - 11 * row) % K for place in range(T)]
        assert db.top_channels[row].tolist() == channels
        assert db.top_weights[row].tolist() == [((127 - place) ** 2 - 50) / 2**24 for place in range(T)]
        assert db.distance_quantiles[row].tolist() == [(row + place) / 8 for place in range(1, 6)]
        assert db.centroids[row].tolist() == [((5 * row + 3 * place) % 16 - 7) / 32 for place in range(D)]
    ex = db.exemplars
    for row in range(N):
        assert ex.embeddings[row].tolist() == [((5 * row + 3 * place) % 16 - 7) / 32 for place in range(D)]
        assert ex.top_channels[row].tolist() == [45 * (K - 1 - place - 11 * row) % K for place in range(T)]
        assert ex.top_weights[row].tolist() == [((127 - place) ** 2 - 50) / 2**24 for place in range(T)]
    assert ex.cluster.tolist() == [0, 1, 2] * 4
    assert ex.label.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2, -1]
    assert ex.path == tuple(f"class/{number}.jpg" for number in range(N))
    assert (ex.partitions.partition.tolist(), ex.partitions.probes) == ([0, 1] * 6, 1)
    np.testing.assert_array_equal(ex.partitions.centroids, ex.embeddings[:2])


def test_networks_of_format_1_hold_what_they_held():
    data = (HERE / "net-1.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    assert json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["embedcam"])["format"] == 1

    net = embedcam.EmbeddingNet.load(HERE / "net-1.safetensors")

    assert net.sha256() == NETWORK
    assert (net.architecture, net.layer, net.metric, net.dim) == ("tiny", "features.14", "cosine", D)
    for number, (name, value) in enumerate(net.state_dict().items()):
        expected = ((37 * np.arange(value.numel()) + 13 * number) % 101 - 50) / 128
        if name.endswith("running_var"):
            expected = 1 + np.abs(expected)
        elif name.endswith("num_batches_tracked"):
            expected = np.zeros(1)
        np.testing.assert_array_equal(value.numpy().ravel(), expected.astype(np.float32), err_msg=name)


def picture(times=1):
    row, column = np.indices((32, 32))
    one = np.stack([(row + column + color) % 17 / 8 - 1 for color in range(3)]).astype(np.float32)
    return one.repeat(times, axis=1).repeat(times, axis=2)[None]


def test_an_old_network_gives_the_embedding_that_it_gave():
    net = embedcam.EmbeddingNet.load(HERE / "net-1.safetensors")
    expected = [-0.161402, -0.398281, -0.366394, -0.292614, 0.178860, 0.627486, 0.365686, 0.189730]
    with torch.inference_mode():
        np.testing.assert_allclose(net(torch.from_numpy(picture()))[0], expected, atol=1e-5)


def test_old_files_explain_as_they_did(db):
    net = embedcam.EmbeddingNet.load(HERE / "net-1.safetensors")
    explainers = [
        (embedcam.Explainer(net, db, preset="paper"), 1878.3),
        (OnnxExplainer(HERE / "explainer-1.onnx"), 2463.8),  # the default when the graph was exported
    ]
    for explain, total in explainers:
        explanation = explain(picture(times=2))
        assert explanation.clusters.tolist() == [0]
        assert explanation.notes == [[]]
        np.testing.assert_allclose(explanation.distances, [0.805518], atol=1e-5)
        assert explanation.heatmaps.shape == (1, 64, 64)
        np.testing.assert_allclose(explanation.heatmaps.sum(), total, atol=0.5)
