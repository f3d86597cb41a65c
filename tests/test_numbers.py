"""Numbers that break careless code, through the whole online half: every one has a right answer or says what is wrong.

What concerns one module alone is tested beside it.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import embedcam
from embedcam.builder.build import build_database
from embedcam.data import load
from embedcam.data.preprocess import Preprocess
from embedcam.database import Fusion, NetworkRecord, Refinement, WeightDatabase
from embedcam.database.record import top_channels
from embedcam.errors import NetworkError
from embedcam.explain.explanation import FLAT, NOT_FINITE
from embedcam.explain.transfer import TRANSFERS
from embedcam.nets import EmbeddingNet
from embedcam.nets.geometry import Geometry
from embedcam.onnx import OnnxExplainer
from embedcam.onnx.export import export
from embedcam.train import TrainOptions, train
from embedcam.train.sampling import epoch_order

C, K, FINE, D, T = 12, 6, 5, 4, 4


class TwoLayers(nn.Module):
    """A fine layer, a coarse one, and a linear head on the means of the coarse maps."""

    def __init__(self, fine=FINE, channels=K, dim=D):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, fine, 3, 2, 1), nn.Tanh())
        self.coarse = nn.Sequential(nn.Conv2d(fine, channels, 3, 2, 1), nn.Softplus())
        self.head = nn.Linear(channels, dim)

    def forward(self, images):
        return self.head(self.coarse(self.fine(images)).mean(dim=(2, 3)))


def network(metric="cosine", size=(16, 16), **sizes):
    torch.manual_seed(1)
    return embedcam.wrap(TwoLayers(**sizes), "coarse", metric=metric, preprocess=Preprocess(size)).eval()


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- against float64 ---------------------------------------------------------------------------------------------


def database(net, metric):
    """A database of random numbers, with embeddings all around the centroids."""
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((C, K)).astype(np.float32)
    centroids = rng.standard_normal((C, D)).astype(np.float32)
    if metric == "cosine":
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    channels, weights = top_channels(mean, T)
    fusion = Fusion("fine", Geometry((2, 2), (0.5, 0.5)), rng.standard_normal((C, FINE)).astype(np.float32))
    return WeightDatabase(
        network=NetworkRecord.of(net),
        geometry=Geometry((4, 4), (0.5, 0.5)),
        method="gradcam",
        target="triplet_margin",
        pairs=5,
        seed=0,
        created="",
        centroids=centroids,
        counts=np.arange(1, C + 1),
        weights_mean=mean,
        weights_std=np.abs(mean),
        top_channels=channels,
        top_weights=weights,
        distance_quantiles=np.sort(rng.random((C, 5)).astype(np.float32), axis=1),
        refinement=Refinement((32, 32), 2.0, fusion),
    )


def placed(cells, stride, size, onto_stride=1.0):
    """Interpolate a map bilinearly between the centres of its cells, pixel by pixel."""
    height, width = cells.shape
    out = np.empty(size)
    for row in range(size[0]):
        for column in range(size[1]):
            # All cells of these layers start at pixel 0.5, as the pixels do.
            y, x = min(row * onto_stride / stride, height - 1), min(column * onto_stride / stride, width - 1)
            i, j = min(int(y), height - 2), min(int(x), width - 2)
            upper = (1 - (x - j)) * cells[i, j] + (x - j) * cells[i, j + 1]
            lower = (1 - (x - j)) * cells[i + 1, j] + (x - j) * cells[i + 1, j + 1]
            out[row, column] = (1 - (y - i)) * upper + (y - i) * lower
    return out


def reference(net, db, batch, fused):
    """What the explainer does, in float64 and one image at a time."""
    module = copy.deepcopy(net.module).double()
    size = batch.shape[2:]
    for image in batch.double()[:, None]:
        with torch.no_grad():
            fine = module.fine(image)
            coarse = module.coarse(fine)
            z = module.head(coarse.mean(dim=(2, 3)))[0].numpy()
        if net.metric == "cosine":
            z = z / np.linalg.norm(z)
            distance = 1 - db.centroids.astype(float) @ z
        else:
            distance = np.linalg.norm(db.centroids - z, axis=1)
        scale = db.refinement.distance_scale ** (np.log(size[0] * size[1] / 16**2) / np.log(32**2 / 16**2))
        closeness, medians = distance / scale, np.repeat(db.distance_quantiles[:, 0].astype(float), db.counts)
        if net.metric == "euclidean":
            closeness, medians = closeness**2 / 2, medians**2 / 2
        share = np.exp(-closeness / np.median(medians))
        share[np.argsort(distance)[10:]] = 0
        share /= share.sum()
        combined = []
        for maps, mean in ((coarse, db.weights_mean), (fine, db.fusion.weights_mean)):
            weights = share @ mean.astype(float) - mean.astype(float).mean(axis=0)
            strongest = np.argsort(-weights)[:T]
            combined.append(np.maximum(np.tensordot(weights[strongest], maps[0].numpy()[strongest], 1), 0))
        cells, stride = combined[0], 4.0
        if fused:
            cells, stride = combined[1] * placed(cells, 4.0, combined[1].shape, 2.0), 2.0
            level = np.sort(cells.ravel())[-int(np.ceil(0.015 * cells.size))]
            cells = np.minimum(cells, level) if level > 0 else cells
        raw = placed(cells, stride, size)
        yield z, distance.argmin(), distance.min(), raw, (raw - raw.min()) / np.ptp(raw)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_online_path_in_float32_is_that_in_float64(metric, fused):
    net = network(metric)
    db = database(net, metric)
    batch = images(4, 3, 24, 40)
    found = embedcam.Explainer(net, db, transfer="soft-contrast", fused=fused)(batch)

    assert (found.heatmaps.max(axis=(1, 2)) == 1).all()  # none is flat
    for index, (z, cluster, distance, raw, heatmap) in enumerate(reference(net, db, batch, fused)):
        np.testing.assert_allclose(found.embeddings[index], z, atol=1e-5)
        assert found.clusters[index] == cluster
        np.testing.assert_allclose(found.distances[index], distance, atol=1e-5)
        np.testing.assert_allclose(found.raw[index], raw, atol=1e-5 * raw.max())
        np.testing.assert_allclose(found.heatmaps[index], heatmap, atol=1e-5)


# --- odd images --------------------------------------------------------------------------------------------------

ODD = {
    "black": torch.zeros(1, 3, 16, 16),
    "constant": torch.full((1, 3, 16, 16), 2.5),
    "denormal": torch.full((1, 3, 16, 16), 1e-41),
    "huge": 1e15 * images(1, 3, 16, 16),
    "NaN": torch.full((1, 3, 16, 16), float("nan")),
    "infinite": torch.full((1, 3, 16, 16), float("inf")),
    "one infinite pixel": torch.zeros(1, 3, 16, 16).index_fill_(3, torch.tensor([7]), float("-inf")),
    "one pixel": images(1, 3, 1, 1),
    "one row": images(1, 3, 1, 8000),
    "one column": images(1, 3, 8000, 1),
    "none": images(0, 3, 16, 16),
}
UNUSABLE = ("NaN", "infinite", "one infinite pixel")


@pytest.fixture(scope="module")
def explainer():
    net = network()
    return embedcam.Explainer(net, database(net, "cosine"))


@pytest.fixture(scope="module")
def exported(explainer, tmp_path_factory):
    path = tmp_path_factory.mktemp("numbers") / "explainer.onnx"
    export(explainer, path, size=(16, 16))
    return OnnxExplainer(path)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_odd_images_get_a_map_or_a_note(explainer, exported, name):
    found = explainer(ODD[name])
    assert found.heatmaps.shape == found.raw.shape == (len(ODD[name]), *ODD[name].shape[2:])
    assert np.isfinite(found.heatmaps).all() and np.isfinite(found.raw).all()
    assert np.isfinite(found.distances).all() and np.isfinite(found.anomaly).all()
    assert ((found.clusters >= 0) & (found.clusters < C)).all()
    lit = found.heatmaps.any(axis=(1, 2))
    assert (found.heatmaps.min(axis=(1, 2)) == 0).all() and (found.heatmaps.max(axis=(1, 2)) == lit).all()
    assert [FLAT in notes for notes in found.notes] == [not on and name not in UNUSABLE for on in lit]
    assert [NOT_FINITE in notes for notes in found.notes] == [name in UNUSABLE] * len(lit)
    assert lit.all() or name in ("black", "denormal", "one pixel", *UNUSABLE)

    if ODD[name].shape[2:] == (16, 16):
        theirs = exported(ODD[name].numpy())
        assert theirs.notes == found.notes
        np.testing.assert_allclose(theirs.heatmaps, found.heatmaps, atol=1e-4)
        if name not in UNUSABLE:
            np.testing.assert_array_equal(theirs.clusters, found.clusters)


def test_an_image_that_is_not_finite_spoils_no_other(explainer, exported):
    batch = images(3, 3, 16, 16)
    batch[1] = float("nan")
    for explain in (explainer, lambda given: exported(given.numpy())):
        with_it, without = explain(batch), explain(batch[[0, 2]])
        np.testing.assert_allclose(with_it.heatmaps[[0, 2]], without.heatmaps, atol=1e-5)
        assert with_it.notes[1] == [NOT_FINITE] and [with_it.notes[0], with_it.notes[2]] == without.notes


# --- odd sizes and data sets -------------------------------------------------------------------------------------


def labelled(batch, labels):
    return [(image, label) for image, label in zip(batch, labels, strict=True)]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    "channels, dim, clusters",
    [(1, 3, 2), (5, 1, 2), (5, 3, 1), (1, 1, 1)],
    ids=["K = T = 1", "D = 1", "C = 1", "all are 1"],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_sizes_of_one_work_for_every_transfer(metric, channels, dim, clusters):
    net = network(metric, channels=channels, dim=dim)
    batch = images(12, 3, 16, 16)
    data = labelled(batch, [0, 1] * 6)
    if metric == "cosine" and dim == 1:  # embeddings of length 1 on a line are two points, which no gradient moves
        with pytest.raises(NetworkError, match="is zero everywhere"):
            build_database(net, data, clusters=clusters, top_k=channels, pairs=3, refinement=False)
        return
    db = build_database(net, data, clusters=clusters, top_k=channels, pairs=3, refinement=False)

    assert db.top_channels.shape == (db.clusters, channels)
    assert db.weights_mean.any()
    for transfer in (None, *TRANSFERS.names()):
        found = embedcam.Explainer(net, db, transfer=transfer)(batch)
        assert np.isfinite(found.heatmaps).all() and np.isfinite(found.typicality).all()
        lit = found.heatmaps.any(axis=(1, 2))
        assert [FLAT in notes for notes in found.notes] == (~lit).tolist()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_images_that_are_all_the_same_are_refused(metric, caplog):
    net = network(metric)
    batch = images(1, 3, 16, 16).expand(8, -1, -1, -1)
    with pytest.raises(NetworkError, match="weights of layer 'coarse' are zero.*all the same"):
        build_database(net, labelled(batch, [0, 1] * 4), clusters=3, top_k=2, pairs=3)
    assert "only 1 different images" in caplog.text


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_stored_weights_does_not_matter(scale):
    net = network()
    db = database(net, "cosine")
    scaled = replace(
        db,
        weights_mean=(db.weights_mean * scale).astype(np.float32),
        top_weights=(db.top_weights * scale).astype(np.float32),
        refinement=None,
    )
    batch = images(2, 3, 16, 16)
    for transfer in ("cluster", "soft-contrast"):
        expected, found = (embedcam.Explainer(net, d, transfer=transfer)(batch) for d in (db, scaled))
        assert found.notes == expected.notes == [[], []]
        np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=1e-4)


# --- batches of one ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 8, 16])
def test_no_batch_of_a_training_run_is_a_single_image(folder, tmp_path, batch_size):
    """Batch norm has no statistics of one image, nor a triplet loss a triplet."""
    samples = load(f"folder:{folder}", "train")
    for count in (9, 17):  # one more than whole batches of 8 and of 16
        rows = np.arange(len(samples))[:count]
        labels = samples.labels[rows]
        order, size = epoch_order(labels, batch_size, seed=0, epoch=1)
        assert len(order) >= count - size and len(order) % size == 0 and size >= 8
    net = EmbeddingNet("tiny", 4, image_size=32)
    options = TrainOptions(epochs=1, batch_size=batch_size)
    (_, trained) = train(net, samples.subset(np.arange(9)), None, tmp_path / "net.safetensors", options)
    assert np.isfinite(trained["loss"])
    assert all(value.isfinite().all() for value in net.state_dict().values())
