"""The table against the same scores worked out image by image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from embedcam.builder import embedding
from embedcam.builder.build import build_database
from embedcam.data import load
from embedcam.data.samples import FileSamples
from embedcam.database import WeightDatabase
from embedcam.errors import DatabaseError, DataError
from embedcam.evaluate.asking import of_explainer
from embedcam.evaluate.grid import Composites, grid_test
from embedcam.evaluate.table import evaluate
from embedcam.explain import Explainer
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed


@pytest.fixture
def pair(trained):
    return EmbeddingNet.load(trained / "net.safetensors"), WeightDatabase.load(trained / "weights.h5")


@pytest.fixture
def digits():
    """A network, its database, and test and training images of five classes."""
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32).eval()
    test, training = (
        samples.subset(np.concatenate([np.flatnonzero(samples.labels == label)[:5] for label in range(5)]))
        for samples in (load("digits", "test"), load("digits", "train"))
    )
    return net, build_database(net, training, clusters=4, top_k=12, pairs=5), test, training


@pytest.fixture
def test_images(folder):
    return load(f"folder:{folder}", "test")


@pytest.fixture
def training(folder):
    return load(f"folder:{folder}", "train")


def images_of(net, samples):
    return torch.from_numpy(np.stack([net.preprocess(samples.image(i)) for i in range(len(samples))]))


def rows_by_name(result):
    return {row["method"]: row for row in result["rows"]}


def test_scores_are_those_of_the_explainer_image_by_image(pair, test_images, training):
    net, db = pair
    result = evaluate(net, db, test_images, training, batch_size=5)

    rows = rows_by_name(result)
    options = {"embedcam": {}, "cluster transfer (paper)": {"preset": "paper"}}
    assert list(rows) == list(options)
    for name, chosen in options.items():
        assert_row(rows[name], Explainer(net, db, **chosen), test_images)
        assert not rows[name]["backprop"]
        assert rows[name]["correlation"] is None
    assert [row["method"] for row in result["rows"] if row["default"]] == ["embedcam"]
    assert (result["schema"], result["images"], result["masks"], result["skipped"]) == (1, 12, 12, 0)


def test_pooled_vectors_are_kept_only_where_rows_need_them(pair, test_images, training, monkeypatch):
    net, db = pair
    asked = []

    def counted(*args, pooled=True, **options):
        asked.append(pooled)
        return embed(*args, pooled=pooled, **options)

    monkeypatch.setattr(embedding, "embed", counted)
    evaluate(net, db, test_images, training)
    evaluate(net, db, test_images, training, compare=True, brief=True)
    evaluate(net, db, test_images, training, compare=True)
    # The last is of the network with an untrained head.
    assert asked == [False, False, True, True]


def assert_row(row, explainer, samples):
    preprocess = explainer.preprocess
    images = torch.from_numpy(np.stack([preprocess(samples.image(i)) for i in range(len(samples))]))
    truth = [preprocess.mask(samples.mask(i)) for i in range(len(samples))]
    heatmaps = explainer(images).heatmaps
    ratios = [heat[mask].sum() / heat.sum() for heat, mask in zip(heatmaps, truth, strict=True)]
    ious = [((heat >= 0.5) & m).sum() / ((heat >= 0.5) | m).sum() for heat, m in zip(heatmaps, truth, strict=True)]
    assert row["mean_ratio"] == pytest.approx(np.mean(ratios), abs=1e-4)
    assert row["iou_50"] == pytest.approx(np.mean(ious), abs=1e-2)
    assert row["ms_per_image"] > 0
    low, high = row["interval"]["mean_ratio"]
    assert low <= row["mean_ratio"] <= high


def test_the_default_is_scored_at_the_size_that_explains_best(fused, test_images, training):
    net, db = fused
    result = evaluate(net, db, test_images, training)
    rows = rows_by_name(result)
    assert result["explain_size"] == rows["embedcam"]["input_size"] == [128, 128]
    assert rows["cluster transfer (paper)"]["input_size"] == [64, 64]
    assert_row(rows["embedcam"], Explainer(net, db), test_images)
    assert_row(rows["cluster transfer (paper)"], Explainer(net, db, preset="paper"), test_images)
    other = evaluate(net, db, test_images, training, explain_size=64)
    assert_row(rows_by_name(other)["embedcam"], Explainer(net, db, explain_size=64), test_images)
    # Neighbours are looked for at the size that the network was trained at, whatever is explained.
    assert result["recall_at_1"] == other["recall_at_1"]


def test_recall_is_of_the_nearest_training_image(pair, test_images, training):
    net, db = pair
    result = evaluate(net, db, test_images, training)
    with torch.no_grad():
        query, known = (net(images_of(net, samples)).numpy() for samples in (test_images, training))
    nearest = (query @ known.T).argmax(axis=1)
    assert result["recall_at_1"] == pytest.approx(np.mean(training.labels[nearest] == test_images.labels))


def test_classes_that_training_lacks_are_looked_for_among_the_test_images(pair, test_images, training):
    net, db = pair
    lacking = training.subset(np.flatnonzero(training.labels != 1))
    result = evaluate(net, db, test_images, lacking)
    with torch.no_grad():
        query = net(images_of(net, test_images)).numpy()
    similarity = query @ query.T
    np.fill_diagonal(similarity, -np.inf)
    expected = np.mean(test_images.labels[similarity.argmax(axis=1)] == test_images.labels)
    assert result["recall_at_1"] == pytest.approx(expected)


def test_compare_adds_all_transfers_and_methods_with_backprop(fused, test_images, training):
    net, db = fused
    result = evaluate(net, db, test_images, training, compare=True)
    rows = rows_by_name(result)
    assert [name for name, row in rows.items() if row["backprop"]] == [
        "gradcam, similarity to a partner",
        "gradcam, 5 triplets",
        "gradcam, 5 triplets, top 12",
        "gradcam, 1 triplet",
        "gradcam, 5 triplets, two layers",
        "gradcam++, 5 triplets",
        "gradcam++-exact, 5 triplets",
        "gradcam++-elementwise, 5 triplets",
        "EmbeddingCAM (nearest class's proxy)",
    ]
    assert rows["gradcam, 5 triplets"]["correlation"] == pytest.approx(1)
    assert all(-1 <= row["correlation"] <= 1 for row in rows.values())
    assert [row["default"] for row in result["rows"]].count(True) == 1
    assert all(parameter.grad is None for parameter in net.parameters())
    with pytest.raises(DataError, match="--compare needs labels, and training images"):
        evaluate(net, db, test_images, None, compare=True)


def test_the_grid_test_asks_every_method_that_can_be_asked(digits):
    net, db, test_images, training = digits
    result = evaluate(net, db, test_images, training, compare=True, grid=2)
    rows, composites = rows_by_name(result), Composites.draw(net, test_images, 2)
    assert result["composites"] == 2
    asks = {"embedcam": of_explainer(Explainer(net, db))}
    expected = grid_test(asks, composites, composites.clusters(db))["embedcam"]
    for key in ("grid_share", "grid_localised"):
        assert rows["embedcam"][key] == pytest.approx(expected[key])
        assert rows["embedcam"]["interval"][key] == pytest.approx(expected["interval"][key])
    assert rows["embedcam"]["grid_share_partner"] != rows["embedcam"]["grid_share"]
    by_partner = rows["gradcam, similarity to a partner"]
    assert by_partner["grid_share"] == by_partner["grid_share_partner"] > 0
    for name in ("EigenCAM", "Gaussian in the centre"):
        assert rows[name]["grid_share"] == pytest.approx(0.25)
        assert rows[name]["grid_share_partner"] is None
    for name in ("nearest", "gradcam, 5 triplets"):
        assert rows[name]["grid_share"] is rows[name]["interval"]["grid_share"] is None


def test_compare_in_brief_adds_what_transfers_imitate(fused, test_images, training):
    result = evaluate(*fused, test_images, training, compare=True, brief=True)
    assert list(rows_by_name(result)) == ["embedcam", "cluster transfer (paper)", "gradcam, 5 triplets"]


def test_without_labels_and_masks_the_scores_are_null(pair, folder):
    files = tuple(sorted((folder / "images" / "class0").iterdir()))
    result = evaluate(*pair, FileSamples(files=files, ids=tuple(file.name for file in files)))
    assert result["recall_at_1"] is result["map_at_r"] is result["nmi"] is None
    assert (result["images"], result["masks"]) == (10, 0)
    row = rows_by_name(result)["embedcam"]
    assert row["mean_ratio"] is row["pixel_ap"] is row["best_threshold"] is None
    assert row["ms_per_image"] > 0


def test_images_without_a_mask_count_for_retrieval_only(pair, test_images):
    without = replace(test_images, mask_files=(None, *test_images.mask_files[1:]))
    result = evaluate(*pair, without)
    assert (result["images"], result["masks"]) == (12, 11)


def test_an_unreadable_image_is_left_out_and_counted(pair, test_images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(test_images.files[0].read_bytes()[:100])
    damaged = replace(test_images, files=(test_images.files[0], broken, *test_images.files[2:]))
    result = evaluate(*pair, damaged)
    assert (result["images"], result["masks"], result["skipped"]) == (11, 11, 1)
    with pytest.raises(DataError, match=r"cannot read .*broken.png"):
        evaluate(*pair, damaged, strict=True)


@pytest.fixture(params=["empty", "ignored", "another size", "damaged", "missing"])
def one_bad_mask(request, test_images, tmp_path):
    bad, everything = tmp_path / "mask.png", tmp_path / "ignore.png"
    Image.new("L", (40, 40), 255).save(everything)
    if request.param == "ignored":
        return replace(test_images, ignore_files=(everything, *[None] * (len(test_images) - 1)))
    if request.param == "damaged":
        bad.write_bytes(everything.read_bytes()[:50])
    elif request.param != "missing":
        Image.new("L", (40, 40) if request.param == "empty" else (48, 48), 255 * (request.param != "empty")).save(bad)
    return replace(test_images, mask_files=(bad, *test_images.mask_files[1:]))


def test_a_bad_mask_is_left_out_with_one_warning_and_a_count_and_stops_a_strict_run(pair, one_bad_mask, caplog):
    result = evaluate(*pair, one_bad_mask)
    assert (result["images"], result["masks"]) == (12, 11)
    first, *_, last = [record.getMessage() for record in caplog.records]
    assert first.startswith(f"mask of {one_bad_mask.ids[0]} left out: ")
    assert last == "1 of 12 masks could not be used and were left out"
    with pytest.raises(DataError):
        evaluate(*pair, one_bad_mask, strict=True)


def test_masks_of_which_none_can_be_used_are_an_error(pair, test_images, tmp_path):
    everything = tmp_path / "ignore.png"
    Image.new("L", (40, 40), 255).save(everything)
    ignored = replace(test_images, ignore_files=(everything,) * len(test_images))
    with pytest.raises(DataError, match="none of the 12 masks can be used; see the warnings above"):
        evaluate(*pair, ignored)


def test_a_database_of_another_network_is_an_error(pair, test_images):
    with pytest.raises(DatabaseError, match="made for another network"):
        evaluate(EmbeddingNet("tiny", 8, image_size=48), pair[1], test_images)


def test_maps_that_look_alike_are_reported(digits, caplog):
    net, db, test, training = digits
    evaluate(net, db, test.subset(np.zeros(6, int)), training)
    assert "the maps of 6 images look alike" in caplog.text
