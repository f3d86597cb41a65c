"""The specification of the file format says what is done: its code is run and compared with the explainer."""

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import embedcam
from embedcam.database import NetworkRecord
from embedcam.database.hdf5 import _NUMBERS
from embedcam.database.record import top_channels
from embedcam.nets.geometry import Geometry

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "file-format.md").read_text(encoding="utf-8")
GOLDEN = Path(__file__).parent / "golden"
CLUSTERS = 14  # more than are mixed


@pytest.fixture(scope="module", params=["cosine", "euclidean"])
def made(request, tmp_path_factory):
    """A network, and the path of a database of two layers for it, whose numbers are random."""
    torch.manual_seed(0)
    net = embedcam.EmbeddingNet("tiny", 8, metric=request.param, image_size=32, layer="features.14").eval()
    golden = embedcam.WeightDatabase.load(GOLDEN / "weights-1.0.0.h5")
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((CLUSTERS, golden.network.dim))
    if request.param == "cosine":
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    mean = rng.standard_normal((CLUSTERS, golden.network.channels)).astype(np.float32)
    channels, weights = top_channels(mean, golden.top_k)
    fine = rng.standard_normal((CLUSTERS, golden.fusion.weights_mean.shape[1])).astype(np.float32)
    path = tmp_path_factory.mktemp(request.param) / "weights.h5"
    replace(
        golden,
        network=NetworkRecord.of(net),
        geometry=Geometry((4.0, 4.25), (0.5, -0.75)),
        centroids=centroids.astype(np.float32),
        counts=rng.integers(1, 9, CLUSTERS),
        weights_mean=mean,
        weights_std=np.abs(mean),
        top_channels=channels,
        top_weights=weights,
        distance_quantiles=np.sort(rng.random((CLUSTERS, 5)), axis=1).astype(np.float32),
        label_names=None,
        label_histogram=None,
        exemplars=None,
        refinement=replace(golden.refinement, fusion=replace(golden.fusion, weights_mean=fine)),
    ).save(path)
    return net, path


def image(height, width):
    return np.random.default_rng(1).standard_normal((1, 3, height, width)).astype(np.float32)


def as_specified(net, path, picture):
    """Run the page's code, block by block: what it leaves behind, and the heat maps, the published one first."""
    with torch.inference_mode():
        seen = net.activations(torch.from_numpy(picture), "features.8")
    known = dict(vars(np))
    with h5py.File(path) as file:
        db = {f"clusters/{name}": item[()] for name, item in file["clusters"].items()}
        db["refinement/fusion/weights_mean"] = file["refinement/fusion/weights_mean"][()]
        for name in ("geometry", "refinement/fusion"):
            db[name] = (file[name].attrs["cell_stride"], file[name].attrs["first_cell_center"])
        known |= {"network": dict(file["network"].attrs), "refinement": dict(file["refinement"].attrs)}
        known |= {"metric": file.attrs["metric"], "db": db, "max": max, "min": min, "round": round}
    known |= {"z": seen.embeddings[0].numpy(), "A": seen.maps[0].numpy(), "B": seen.fine[0].numpy()}
    known["C"], known["T"] = db["clusters/top_channels"].shape
    (known["h"], known["w"]), (known["H"], known["W"]) = known["A"].shape[1:], picture.shape[2:]
    maps = []
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, known)
        if "heatmap" in block:
            maps.append(known["heatmap"])
    return known, maps


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 80)])
def test_the_code_of_the_page_gives_the_explainers_maps(made, size):
    net, path = made
    _, (published, transferred) = as_specified(net, path, image(*size))
    for expected, options in (
        (published, {"preset": "paper"}),
        (transferred, {"transfer": "soft-contrast", "fused": True}),
    ):
        found = embedcam.Explainer(net, path, **options)(image(*size)).heatmaps[0]
        assert found.max() == 1
        np.testing.assert_allclose(expected, found, atol=1e-5)


def test_the_code_of_the_page_tells_how_usual_an_image_is(made):
    net, path = made
    known, _ = as_specified(net, path, image(32, 32))
    db = embedcam.WeightDatabase.load(path)
    distances = np.linspace(0, 1.2, 50, dtype=np.float32)
    for cluster in range(CLUSTERS):
        expected = [known["typicality"](distance, cluster) for distance in distances]
        np.testing.assert_allclose(db.typicality(np.full(50, cluster), distances), expected, atol=1e-6)
    np.testing.assert_allclose(db.anomaly(distances), [known["anomaly"](each) for each in distances], atol=1e-6)


def test_datatypes_are_written_as_the_page_says():
    for dtype, encoding in re.findall(r"^(int\d+|float\d+) +((?:[0-9A-F]{2} +)*[0-9A-F]{2})$", PAGE, re.MULTILINE):
        assert _NUMBERS[bytes.fromhex(encoding)] == dtype
    assert all(f"\n{dtype.name} " in PAGE for dtype in _NUMBERS.values())


def test_every_item_that_is_written_is_on_the_page():
    """A row of a table for each dataset and attribute, below its group's heading."""
    sections = dict(re.findall(r"^### `(/[\w/]*)`.*?\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL))
    with h5py.File(GOLDEN / "weights-1.0.0.h5") as file:
        groups = {"/": file}
        file.visititems(lambda name, item: groups.update({f"/{name}": item}) if isinstance(item, h5py.Group) else None)
        for name, group in groups.items():
            datasets = [key for key, item in group.items() if isinstance(item, h5py.Dataset)]
            for key in {*group.attrs, *datasets} - {"encoding-type", "encoding-version"}:
                assert re.search(rf"^\| (?:attribute |dataset )?`{key}` \|", sections[name], re.MULTILINE), (name, key)
