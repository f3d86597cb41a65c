"""Every exported file explains as the explainer that it was made of."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import embedcam
from embedcam.builder.build import build_database
from embedcam.data.preprocess import Preprocess
from embedcam.errors import DatabaseError, DataError, NetworkError
from embedcam.explain.explanation import Explanation, Outputs
from embedcam.explain.module import ExplainerModule
from embedcam.nets import DenseNet
from embedcam.nets.network import Network
from embedcam.onnx import export as export_module
from embedcam.onnx.export import export
from embedcam.onnx.record import OUTPUTS

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()
NUMBERS = ("heatmaps", "raw", "embeddings", "distances", "typicality", "anomaly")


@pytest.fixture(scope="module")
def written(fused, tmp_path_factory):
    """The default explainer of two fused layers, as a file."""
    explainer = embedcam.Explainer(*fused, explain_size=64)
    path = tmp_path_factory.mktemp("export") / "explainer.onnx"
    return explainer, path, export(explainer, path)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_file_explains_batches_of_any_length_as_the_explainer_does(written, count):
    explainer, path, _ = written
    images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count)).numpy()
    ours, theirs = explainer(images), embedcam.OnnxExplainer(path)(images)
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(theirs.clusters, ours.clusters)
    assert theirs.notes == ours.notes


def test_the_documentation_names_the_outputs_and_versions_of_the_file(written):
    _, path, _ = written
    model, page = onnx.load(path), (Path(__file__).parents[2] / "docs/how-to/onnx.md").read_text()
    table = page[page.index("| Output |") :].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == [output.name for output in model.graph.output]
    assert f"operator set {model.opset_import[0].version} and IR version {model.ir_version}" in page


def test_the_report_says_what_was_checked(written):
    _, path, report = written
    assert report.path == path
    assert report.size == path.stat().st_size
    assert report.images >= 4
    assert 0 < report.map_difference <= 1e-4


def test_the_file_is_valid_and_says_where_it_comes_from(written, fused):
    _, path, _ = written
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == list(OUTPUTS) == list(Outputs._fields)
    assert (model.ir_version, [opset.version for opset in model.opset_import]) == (8, [18])
    record = json.loads({item.key: item.value for item in model.metadata_props}["embedcam"])
    net, db = fused
    assert record["network"]["sha256"] == net.sha256()
    assert record["network"]["layer"] == "layer4"
    assert record["fused"] == db.fusion.layer
    assert record["database"]["created"] == db.created
    assert record["database"]["clusters"] == 4
    assert record["transfer"] == "cells"
    assert record["preprocess"]["input_size"] == [64, 64]
    assert b"/site-packages/" not in path.read_bytes()


def test_equal_explainers_give_equal_bytes_and_the_network_is_left_as_it_was(spread, exported, tmp_path):
    net, _ = spread
    net.train()
    export(embedcam.Explainer(*spread), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    net.eval()


def test_pictures_are_prepared_in_the_graph_as_preprocess_prepares_them(spread, tmp_path):
    explainer = embedcam.Explainer(*spread)
    export(explainer, tmp_path / "e.onnx", uint8_input=True)
    written = embedcam.OnnxExplainer(tmp_path / "e.onnx")
    rng = np.random.default_rng(0)
    exact = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    prepared = np.stack([explainer.preprocess(Image.fromarray(picture)) for picture in exact])
    np.testing.assert_allclose(written(exact).heatmaps, explainer(prepared).heatmaps, atol=1e-4)
    np.testing.assert_allclose(written(prepared).heatmaps, explainer(prepared).heatmaps, atol=1e-4)

    spots = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    for size in ((97, 61), (20, 45)):
        picture = spots.resize(size, Image.Resampling.BICUBIC)
        ours = explainer(explainer.preprocess(picture)[None])
        theirs = written(np.asarray(picture)[None])
        np.testing.assert_allclose(theirs.embeddings, ours.embeddings, atol=0.01)
        assert np.corrcoef(theirs.heatmaps.ravel(), ours.heatmaps.ravel())[0, 1] > 0.99


def test_height_and_width_can_be_left_open(fused, tmp_path):
    explainer = embedcam.Explainer(*fused, explain_size=64)
    assert export(explainer, tmp_path / "e.onnx", dynamic=True).images == 12
    written = embedcam.OnnxExplainer(tmp_path / "e.onnx")
    assert written.record.dynamic
    for shape in ((64, 64), (160, 96)):
        images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(2)).numpy()
        np.testing.assert_allclose(written(images).heatmaps, explainer(images).heatmaps, atol=1e-4)
    sides = onnx.load(tmp_path / "e.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param for side in sides] == ["batch", "", "height", "width"]
    with pytest.raises(DataError, match=r"onnxruntime cannot explain images \(1, 3, 0, 64\)"):
        written(np.zeros((1, 3, 0, 64), np.float32))


def test_a_file_that_explains_otherwise_is_refused_and_not_left_behind(spread, tmp_path, monkeypatch):
    monkeypatch.setattr(ExplainerModule, "forward", _brighter)
    with pytest.raises(
        NetworkError, match=r"results of the exported graph differ from the explainer's: heat maps by .*nothing was"
    ):
        export(embedcam.Explainer(*spread), tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []


def test_of_two_clusters_at_the_same_distance_either_is_accepted():
    def found(clusters, distances):
        numbers = np.array(distances, np.float32)
        return Explanation(*np.zeros((2, 4, 1, 1)), [], clusters=np.array(clusters), distances=numbers)

    ours = found([3, 3, 3, 3], [0.5, 0.5, 1e-7, 400])
    assert export_module._elsewhere(ours, found([3, 7, 7, 7], [0.6, 0.500001, 2e-7, 400.001])) == 0
    assert export_module._elsewhere(ours, found([3, 7, 7, 7], [0.5, 0.5001, 1e-4, 401])) == 3


def _brighter(module, images):
    found = module.explain(module.run(images), (images.shape[2], images.shape[3]))
    return found._replace(heatmap=(found.heatmap + 2e-4).clip(max=1))


def test_exemplars_cannot_be_exported(spread, tmp_path):
    with pytest.raises(DatabaseError, match=r"searches all training images.*choose --transfer cluster"):
        export(embedcam.Explainer(*spread, transfer="nearest"), tmp_path / "e.onnx")


def test_a_size_of_maps_or_a_mixture_that_does_not_exist_is_refused(spread, tmp_path):
    explainer = embedcam.Explainer(*spread)
    with pytest.raises(DatabaseError, match="unknown size of the maps 'huge'"):
        export(explainer, tmp_path / "e.onnx", heatmap="huge")
    with pytest.raises(DatabaseError, match="leave out the dynamic size"):
        export(explainer, tmp_path / "e.onnx", uint8_input=True, dynamic=True)


def test_an_explainer_of_low_precision_is_refused(spread, tmp_path):
    with pytest.raises(NetworkError, match="computes in float32; export an explainer without autocast"):
        export(embedcam.Explainer(*spread, autocast=torch.bfloat16), tmp_path / "e.onnx")


def test_a_network_too_large_for_a_file_is_refused_before_anything_is_done(spread, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "LARGEST", 1000)
    with pytest.raises(NetworkError, match=r"tiny has 0.0 GB of parameters; an ONNX file holds 2 GB"):
        export(embedcam.Explainer(*spread), tmp_path / "e.onnx")


def test_a_network_that_torch_cannot_follow_is_refused(tmp_path, folder):
    net = _Counting()
    db = build_database(net, f"folder:{folder}", clusters=2, top_k=4, pairs=2)
    with pytest.raises(NetworkError, match="_Counting cannot be written as an ONNX graph"):
        export(embedcam.Explainer(net, db), tmp_path / "e.onnx")


class _Counting(Network):
    """Looks into the numbers, which a graph cannot."""

    def __init__(self):
        super().__init__("_Counting", "cosine", Preprocess((16, 16)))
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.layer = "conv"

    @property
    def body(self):
        return self

    def embed(self, images):
        maps = self.conv(images).relu()
        vector = maps.mean(dim=(2, 3)) if float(maps.detach().sum()) > 1e-3 else maps.amax(dim=(2, 3))
        return torch.nn.functional.normalize(vector)

    def finish(self, output):
        return output


@pytest.mark.parametrize("dynamic", [False, True])
def test_denser_cells_are_exported(spread, tmp_path, dynamic):
    net, database = spread
    explainer = embedcam.Explainer(DenseNet(net), database, fused=False)
    report = export(explainer, tmp_path / "dense.onnx", heatmap="map", dynamic=dynamic)
    assert report.map_difference <= 1e-4
    assert embedcam.OnnxExplainer(report.path).record.geometry == database.geometry.denser((2, 2))
