import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import embedcam
from embedcam.builder.faster_gradcam import import_faster_gradcam
from embedcam.data import load
from embedcam.database.checks import agreement
from embedcam.errors import DatabaseError
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed

CLUSTERS, TOP = 3, 6


@pytest.fixture(scope="module", params=["euclidean", "cosine"])
def made(request, folder, tmp_path_factory):
    """A network, and files as Faster-Grad-CAM would have written them for it."""
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32, metric=request.param).eval()
    embeddings = embed(net, load(f"folder:{folder}")).embeddings
    rng = np.random.default_rng(1)
    centroids = embeddings[[0, 7, 14]] + rng.normal(0, 1e-3, (CLUSTERS, 8))
    channels = np.stack([rng.permutation(net.channels)[:TOP] for _ in range(CLUSTERS)])
    weights = np.sort(rng.random((CLUSTERS, TOP)) * 1e-7, axis=1)  # the strongest last, as argsort gives them
    out = tmp_path_factory.mktemp("model")
    for name, table in (
        ("channel_adress", channels.astype(float)),
        ("channel_weight", weights),
        ("centroids", centroids),
    ):
        np.savetxt(out / f"{name}.csv", table, delimiter=",")
    return net, out, (channels, weights, centroids)


@pytest.fixture
def files(made, tmp_path):
    """A copy of the files that a test may change."""
    for path in made[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def imported(made, folder):
    return import_faster_gradcam(made[1], made[0], f"folder:{folder}")


def test_channels_and_weights_are_those_of_the_files_strongest_first(made, imported):
    channels, weights, _ = made[2]
    np.testing.assert_array_equal(imported.top_channels, channels[:, ::-1])
    np.testing.assert_array_equal(imported.top_weights, weights[:, ::-1].astype(np.float32))
    np.testing.assert_array_equal(
        np.take_along_axis(imported.weights_mean, channels, axis=1), weights.astype(np.float32)
    )
    assert np.count_nonzero(imported.weights_mean) == CLUSTERS * TOP


def test_maps_of_the_paper_preset_are_those_of_faster_gradcam(made, imported, folder):
    net, _, (channels, weights, centroids) = made
    samples = load(f"folder:{folder}", "test")
    images = torch.from_numpy(np.stack([net.preprocess(samples.image(index)) for index in range(len(samples))]))
    with torch.no_grad():
        maps, vectors = net.activations(images)[:2]
    explanation = embedcam.Explainer(net, imported, preset="paper")(images)
    for index, (cells, vector) in enumerate(zip(maps.numpy(), vectors.numpy(), strict=True)):
        cluster = np.argmin(((centroids - vector) ** 2).sum(axis=1))
        cam = np.dot(cells.transpose(1, 2, 0)[:, :, channels[cluster]], weights[cluster])
        cam = np.asarray(Image.fromarray(cam.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR))
        assert explanation.clusters[index] == cluster
        np.testing.assert_allclose(explanation.raw[index], np.maximum(cam, 0), rtol=1e-4, atol=1e-12)


def test_counts_distances_and_labels_are_measured_on_the_images(made, imported, folder):
    net, _, (_, _, centroids) = made
    samples = load(f"folder:{folder}")
    vectors = embed(net, samples).embeddings.astype(float)
    if net.metric == "cosine":
        centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
        distances = 1 - vectors @ centroids.T
    else:
        distances = np.linalg.norm(vectors[:, None] - centroids, axis=2)
    nearest = distances.argmin(axis=1)
    np.testing.assert_array_equal(imported.counts, np.bincount(nearest))
    for cluster in range(CLUSTERS):
        own = distances[nearest == cluster, cluster]
        expected = np.quantile(own, [0.5, 0.9, 0.95, 0.99, 1])
        np.testing.assert_allclose(imported.distance_quantiles[cluster], expected, atol=1e-5)
        histogram = np.bincount(samples.labels[nearest == cluster], minlength=3)
        np.testing.assert_array_equal(imported.label_histogram[cluster], histogram)
    assert imported.label_names == samples.names


def test_it_is_a_database_like_any_other(imported, tmp_path):
    assert [check.item for check in agreement(imported) if not check.true] == []
    imported.save(tmp_path / "weights.h5")
    again = embedcam.WeightDatabase.load(tmp_path / "weights.h5")
    np.testing.assert_array_equal(again.weights_mean, imported.weights_mean)
    assert (again.target, again.pairs, again.network) == ("class_score", 0, imported.network)


def test_the_default_preset_explains_with_it(made, imported, folder):
    net, samples = made[0], load(f"folder:{folder}", "test")
    explanation = embedcam.Explainer(net, imported)(net.preprocess(samples.image(0))[None])
    assert explanation.heatmaps.max() == 1
    assert explanation.typicality_in_words(0)


def test_other_weights_are_taken_for_at_most_the_weakest_known(made, files, folder):
    np.savetxt(files / "channel_weight.csv", -np.arange(1.0, 1 + CLUSTERS * TOP).reshape(CLUSTERS, TOP), delimiter=",")
    database = import_faster_gradcam(files, made[0], f"folder:{folder}")
    np.testing.assert_array_equal(database.weights_mean.min(axis=1), -np.arange(1, 1 + CLUSTERS) * TOP)
    assert [check.item for check in agreement(database) if not check.true] == []


def test_tables_are_read_in_the_encoding_of_their_mark(made, files, folder, imported):
    text = (files / "centroids.csv").read_text()
    (files / "centroids.csv").write_text(text, encoding="utf-16")
    database = import_faster_gradcam(files, made[0], f"folder:{folder}")
    np.testing.assert_array_equal(database.centroids, imported.centroids)


def test_centroids_may_be_an_array_file(made, files, folder, imported):
    np.save(files / "centroids.npy", np.loadtxt(files / "centroids.csv", delimiter=","))
    (files / "centroids.csv").unlink()
    database = import_faster_gradcam(files, made[0], f"folder:{folder}")
    np.testing.assert_array_equal(database.centroids, imported.centroids)


def test_files_with_spaces_or_of_a_spreadsheet_are_read(made, files, folder, imported):
    for path in files.iterdir():
        spaced = path.read_bytes().replace(b",", b", ").replace(b"\n", b"\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + spaced + b"\r\n")
    database = import_faster_gradcam(files, made[0], f"folder:{folder}")
    np.testing.assert_array_equal(database.top_weights, imported.top_weights)


def test_a_single_cluster_is_a_single_row(made, files, folder):
    for path in files.iterdir():
        path.write_text(path.read_text().splitlines()[0])
    assert import_faster_gradcam(files, made[0], f"folder:{folder}").top_channels.shape == (1, TOP)


class Trap:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_the_pickled_k_means_is_not_loaded_and_the_error_says_how_to_export_it(made, files, folder):
    (files / "centroids.csv").unlink()
    (files / "k-means.pkl.cmp").write_bytes(pickle.dumps(Trap(files / "sprung")))
    with pytest.raises(DatabaseError, match=r"never loaded.*savetxt.*cluster_centers_") as raised:
        import_faster_gradcam(files, made[0], f"folder:{folder}")
    assert not (files / "sprung").exists()
    assert "\n" not in str(raised.value)


def test_a_pickle_in_an_array_file_is_not_loaded(made, files, folder):
    (files / "centroids.csv").unlink()
    np.save(files / "centroids.npy", np.array([[Trap(files / "sprung")]]), allow_pickle=True)
    with pytest.raises(DatabaseError, match=r"cannot read .*centroids\.npy"):
        import_faster_gradcam(files, made[0], f"folder:{folder}")
    assert not (files / "sprung").exists()


def table(rows, columns, value=1.0):
    return "\n".join(",".join([str(value)] * columns) for _ in range(rows))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("channel_adress.csv", None, "has no channel_adress.csv"),
        ("channel_weight.csv", None, "has no channel_weight.csv"),
        ("channel_weight.csv", "", "holds shape"),
        ("channel_weight.csv", "1,2,3\n4,5", "cannot read .*channel_weight.csv"),
        ("channel_weight.csv", "a,b\nc,d", "cannot read .*channel_weight.csv"),
        ("channel_weight.csv", b"\x80\x04\x95\xff\xfe", "cannot read .*channel_weight.csv"),
        ("channel_weight.csv", table(CLUSTERS, TOP, "nan"), "holds nan"),
        ("channel_weight.csv", table(CLUSTERS, TOP, "1e39"), "holds 1e\\+39"),
        ("channel_weight.csv", table(CLUSTERS, TOP - 1), r"is \(3, 6\), channel_weight.csv \(3, 5\)"),
        ("channel_adress.csv", table(CLUSTERS, TOP, 2.5), "holds 2.5, but layer 'features' has channels 0 to 127"),
        ("channel_adress.csv", table(CLUSTERS, TOP, 128), "holds 128, .*features.17.conv.0"),
        ("channel_adress.csv", table(CLUSTERS, TOP, -1), "holds -1"),
        ("channel_adress.csv", table(CLUSTERS, TOP, 5), "names a channel of a cluster twice"),
        ("centroids.csv", table(CLUSTERS, 7), r"is \(3, 7\), expected \(3, 8\)"),
        ("centroids.csv", table(CLUSTERS - 1, 8), r"is \(2, 8\), expected \(3, 8\)"),
        ("centroids.csv", table(CLUSTERS, 8), "has none of the 18 images"),
    ],
)
def test_files_that_cannot_be_used_are_named(made, files, folder, name, content, says):
    if content is None:
        (files / name).unlink()
    else:
        (files / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DatabaseError, match=says):
        import_faster_gradcam(files, made[0], f"folder:{folder}")


@pytest.mark.parametrize("made", ["cosine"], indirect=True)
def test_a_centroid_without_direction_is_refused(made, files, folder):
    (files / "centroids.csv").write_text(table(CLUSTERS, 8, 0.0))
    with pytest.raises(DatabaseError, match="no direction"):
        import_faster_gradcam(files, made[0], f"folder:{folder}")
