import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torchvision.models import mobilenet_v2  # noqa: E402

from embedcam.builder.build import build_database  # noqa: E402
from embedcam.data.preprocess import Preprocess  # noqa: E402
from embedcam.data.sets.folder import folder as read_folder  # noqa: E402
from embedcam.database.weight_database import WeightDatabase  # noqa: E402
from embedcam.errors import DataError  # noqa: E402
from embedcam.explain.explanation import Explanation  # noqa: E402
from embedcam.nets import EmbeddingNet  # noqa: E402
from embedcam.show.boxes import Box, find_boxes  # noqa: E402

SHARED = Path(__file__).parents[2] / "../shared"
JANKEN, WEIGHTS = SHARED / "data/janken", SHARED / "weights/mobilenet_v2_imagenet.safetensors"


# Faster-Grad-CAM, one picture at a time. Of a weight database, "channel adress" and "channel weight" of a cluster are
# the top channels and their weights, and k-means is the centroids.


def faster_gradcam(channel_out, vector, size, centroids, channel_adress, channel_weight):
    """From feature maps (h, w, K) and an embedding (D,) to the cluster and the heat map at (width, height)."""
    cluster = np.argmin(((centroids - vector) ** 2).sum(axis=1))
    cam = np.dot(channel_out[:, :, channel_adress[cluster]], channel_weight[cluster])
    cam = np.asarray(Image.fromarray(cam).resize(size, Image.Resampling.BILINEAR))
    cam = np.maximum(cam, 0)
    return cluster, cam / cam.max()


def box_of(heatmap, threshold=0.8):
    """The first and last column and row of all that is hotter: x_min, y_min, x_max, y_max."""
    rows, columns = np.where(heatmap > threshold)
    return columns.min(), rows.min(), columns.max(), rows.max()


def score(stored, vector):
    """The largest cosine of an embedding (D,) to the stored ones (N, D)."""
    return max(float(np.dot(other, vector) / (np.linalg.norm(other) * np.linalg.norm(vector))) for other in stored)


def seen_by_a_hook(net, images):
    """Feature maps (B, h, w, K) and embeddings (B, D), without the package's own capturing."""
    grabbed = []
    module = dict(net.backbone.named_modules())[net.layer]
    handle = module.register_forward_hook(lambda _module, _inputs, output: grabbed.append(output.clone()))
    with torch.no_grad():
        vectors = net.eval()(images)
    handle.remove()
    return grabbed[0].permute(0, 2, 3, 1).numpy(), vectors.numpy()


def write_hands(root, classes=("gu", "pa", "choki"), pictures=8):
    """Pictures of a bar on noise, in a place and a colour of its class."""
    random = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / "images" / name).mkdir(parents=True)
        for picture in range(pictures):
            pixels = random.integers(0, 80, (60, 80, 3))
            left = 10 + 20 * number + int(random.integers(0, 8))
            pixels[10:50, left : left + 12] = np.roll([230, 120, 30], number)
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / name / f"{picture}.png")
    return root


@pytest.fixture(scope="module")
def hands(tmp_path_factory):
    return write_hands(tmp_path_factory.mktemp("hands"))


@pytest.fixture(scope="module")
def weights(hands, tmp_path_factory):
    """Random weights; with batch norms that fit the pictures, or else all of these would look alike to the network."""
    torch.manual_seed(0)
    model = mobilenet_v2()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    samples, preprocess = read_folder(hands, "all"), Preprocess((96, 96))
    with torch.no_grad():
        model(torch.from_numpy(np.stack([preprocess(samples.image(index)) for index in range(len(samples))])))
    file = tmp_path_factory.mktemp("weights") / "mobilenet_v2.safetensors"
    save_file(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def made(script, hands):
    """A small random network, its database, and test images."""
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32).eval()
    database = build_database(
        net, script.only(read_folder(hands), ["gu", "pa"]), clusters=4, top_k=12, refinement=False
    )
    return net, database, script.images_of(net, read_folder(hands, "test"))


@pytest.fixture(scope="module")
def janken(script):
    """Real pictures and a real network, with a head that is not trained."""
    if not (JANKEN.is_dir() and WEIGHTS.is_file()):
        pytest.skip("needs the janken pictures and ImageNet weights of MobileNetV2")
    torch.manual_seed(0)
    net = EmbeddingNet("mobilenet_v2", script.DIM, weights=WEIGHTS, image_size=script.IMAGE_SIZE, layer=script.LAYER)
    training, test = (script.only(read_folder(JANKEN, split), ["gu", "pa"]) for split in ("train", "test"))
    database = build_database(net, training, clusters=script.CLUSTERS, top_k=script.TOP_K, refinement=False)
    return net.eval(), database, script.images_of(net, test)


@pytest.fixture(scope="module")
def run(script, hands, weights, tmp_path_factory):
    """The folder that the script has written to, from made pictures and random weights."""
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "ROUNDS", 2)
        assert script.main([*arguments(hands, weights, out), "--epochs", "1"]) == 0
    return out


def arguments(data, weights, out):
    return ["--data", str(data), "--weights", str(weights), "--out", str(out)]


@pytest.fixture
def trained(script, hands, run):
    """What the script has trained and stored."""
    net = EmbeddingNet.load(run / "net.safetensors")
    test = read_folder(hands, "test")
    return net, WeightDatabase.load(run / "weights.h5"), script.images_of(net, test)


@pytest.mark.parametrize("source", ["made", "trained", "janken"])
def test_maps_clusters_boxes_and_scores_are_those_of_faster_gradcam(script, source, request):
    net, db, images = request.getfixturevalue(source)
    # Then the order of ReLU and resizing, in which the two differ, does not matter: no channel's maps are negative.
    assert (db.top_weights > 0).all()
    explanation = script.transfer(net, db)(images)
    heat = script.heat(explanation)
    distance = script.distance(db.exemplars.embeddings, explanation.embeddings)
    size = (images.shape[3], images.shape[2])
    maps, vectors = seen_by_a_hook(net, images)
    assert maps.min() >= 0 and maps.shape[3] == db.weights_mean.shape[1]
    clusters = set()
    for index, (channel_out, vector) in enumerate(zip(maps, vectors, strict=True)):
        cluster, cam = faster_gradcam(channel_out, vector, size, db.centroids, db.top_channels, db.top_weights)
        assert explanation.clusters[index] == cluster
        np.testing.assert_allclose(heat[index], cam, rtol=0, atol=1e-5)
        # The package's own heat maps start at 0, too.
        np.testing.assert_allclose(explanation.heatmaps[index], (cam - cam.min()) / np.ptp(cam), rtol=0, atol=1e-5)
        box, (left, top, right, bottom) = script.box_mode(heat[index]), box_of(cam)
        assert (box.left, box.top, box.right - 1, box.bottom - 1) == (left, top, right, bottom)
        parts = find_boxes(heat[index], script.BOX_ABOVE)
        assert min(part.left for part in parts) == left and max(part.bottom for part in parts) == bottom + 1
        assert distance[index] == pytest.approx(1 - score(db.exemplars.embeddings, vector), abs=1e-5)
        clusters.add(int(cluster))
    assert len(clusters) > 1


def test_top_channels_are_the_largest_of_a_clusters_mean_weights(made):
    _, db, _ = made
    for adress, weight, mean in zip(db.top_channels, db.top_weights, db.weights_mean, strict=True):
        strongest = np.argsort(mean)[-len(adress) :]
        assert set(adress.tolist()) == set(strongest.tolist())
        np.testing.assert_array_equal(weight, mean[adress])


def test_flat_map_stays_zero_and_has_no_box(script):
    flat = script.heat(Explanation.of(np.zeros((1, 4, 4), np.float32)))
    assert not flat.any()
    assert script.box_mode(flat[0]) is None


def test_one_box_holds_all_that_is_hot(script):
    heat = np.zeros((9, 9), np.float32)
    heat[2, 3], heat[6, 7], heat[8, 8] = 1.0, 0.81, 0.8
    assert script.box_mode(heat) == Box(3, 2, 8, 7, score=1.0, area=2)


def test_grad_cam_is_told_the_mean_of_the_own_class_and_of_the_others(script, made):
    net, db, images = made
    explanation = script.transfer(net, db)(images)
    known, target = db.exemplars, script.margin(db, explanation)
    for index, neighbor in enumerate(explanation.neighbors):
        own = known.label == known.label[neighbor]
        np.testing.assert_allclose(target.positive[index], known.embeddings[own].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(target.negative[index], known.embeddings[~own].mean(axis=0), atol=1e-6)


def test_classes_are_labelled_in_the_order_in_which_they_are_named(script, hands):
    everything = read_folder(hands, "all")
    kept = script.only(everything, ["pa", "choki"])
    assert kept.names == ("pa", "choki")
    assert [kept.names[label] for label in kept.labels] == [name.partition("/")[0] for name in kept.ids]
    assert kept.labels.tolist() == [1] * 8 + [0] * 8  # files stay sorted
    assert not len(script.only(everything, []))


def test_unknown_hands_are_parted_by_their_distance(script, hands, monkeypatch):
    parts = [script.only(read_folder(hands, "all"), [name]) for name in ("gu", "pa", "choki")]
    # One training picture; test pictures at cosines 1 and 0.8, unknown ones at 0.6 and 0.9.
    vectors = {"gu": [(1, 0)], "pa": [(1, 0), (0.8, 0.6)], "choki": [(0.6, 0.8), (0.9, 0.19**0.5)]}

    class Embedded:
        def __init__(self, samples):
            self.embeddings = np.array(vectors[samples.names[0]], np.float32)

    monkeypatch.setattr(script, "embed", lambda _net, samples, strict: Embedded(samples))
    scores = script.unknown_scores(None, *parts)
    assert scores["auc_unknown"] == pytest.approx(3 / 4)  # 0.1 > 0, 0.4 > 0, 0.4 > 0.2, but 0.1 < 0.2
    assert scores["distance_test"] == pytest.approx(0.1) and scores["distance_unknown"] == pytest.approx(0.25)


def test_script_writes_network_database_figure_and_scores(script, run):
    scores = json.loads((run / "scores.json").read_text())
    assert [scores[f"{part}_pictures"] for part in ("training", "test", "unknown")] == [10, 6, 8]
    assert all(0 <= scores[name] <= 1 for name in ("recall_at_1", "auc_unknown", "auc_unknown_untrained"))
    assert scores["transfer_ms"] > 0 and scores["transfer_by_forward"] > 0 and scores["gradcam_by_forward"] > 0
    database = WeightDatabase.load(run / "weights.h5")
    assert database.network.layer == script.LAYER
    assert database.label_names == ("gu", "pa") and database.top_k == script.TOP_K
    sheet = Image.open(run / "hands.png")
    # Two pictures in four columns each; three and three test pictures, four unknown ones: two rows a class.
    assert sheet.width > 8 * 160 and sheet.height > 6 * 120


def test_without_unknown_hands_their_scores_are_left_open(script, hands, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "ROUNDS", 2)
    given = [*arguments(hands, weights, tmp_path), "--epochs", "0", "--classes", "gu", "pa", "choki"]
    assert script.main(given) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["auc_unknown"] is None and scores["unknown_pictures"] == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.split() == ["auc_unknown", "-"]]


@pytest.mark.parametrize(
    ("classes", "message"),
    [(["gu", "po"], "no class po; available: choki, gu, pa"), (["gu"], "training needs two classes")],
)
def test_classes_that_cannot_be_trained_get_one_clear_error(script, hands, weights, tmp_path, capsys, classes, message):
    assert script.main([*arguments(hands, weights, tmp_path), "--classes", *classes]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_missing_class_is_a_data_error(script, hands):
    with pytest.raises(DataError, match="--classes"):
        script.only(read_folder(hands, "all"), ["gu", "chi"])
