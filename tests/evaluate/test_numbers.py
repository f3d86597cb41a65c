"""Scores of maps, images and embeddings that break careless code."""

import numpy as np
import pytest
import torch

from embedcam.errors import DataError
from embedcam.evaluate.faithfulness import faithfulness
from embedcam.evaluate.localization import Localization
from embedcam.evaluate.method import Method
from embedcam.evaluate.randomisation import randomisation
from embedcam.evaluate.retrieval import retrieval
from embedcam.explain.explanation import Explanation


def scores(heatmaps, masks):
    localization = Localization()
    localization.add(np.asarray(heatmaps, dtype=np.float32), np.asarray(masks, dtype=bool))
    return localization.result()


def noise(images):
    return Explanation.of(np.random.default_rng(0).random((len(images), *images.shape[2:]), dtype=np.float32))


def test_one_pixel_is_all_hit_or_all_missed():
    hot, cold = scores([[[1]]], [[[1]]]), scores([[[0]]], [[[1]]])
    for score in ("mean_ratio", "iou_50", "best_iou", "pointing", "box_50"):
        assert (hot[score], cold[score]) == (1, 0)


def test_a_strip_is_scored_as_any_map():
    heatmap, mask = np.zeros((1, 1, 8000)), np.zeros((1, 1, 8000))
    heatmap[..., :3000], mask[..., 2000:4000] = 1, 1
    for turned in (0, 1):
        found = scores(*(np.swapaxes(each, 1, 2) if turned else each for each in (heatmap, mask)))
        assert found["mean_ratio"] == pytest.approx(1 / 3) and found["iou_50"] == pytest.approx(1 / 4)


def test_denormal_heat_is_heat():
    assert scores(np.full((1, 3, 3), 1e-41), np.eye(3)[None])["mean_ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_heat_that_is_not_finite_is_refused(bad):
    with pytest.raises(DataError, match=r"heat map 0 must lie in \[0, 1\]"):
        scores([[[bad, 1]]], [[[1, 0]]])


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_flat_maps_correlate_with_nothing():
    method = Method("flat", lambda images, _: noise(images))
    for size in ((1, 1), (3, 4)):
        flat = Explanation.of(np.ones((1, *size), np.float32))
        method.correlate(flat, flat)
        method.correlate(flat, noise(torch.zeros(1, 3, *size)))
    assert method.row()["correlation"] == 0


def test_empty_batches_are_passed_over(net):
    batch, none = torch.rand(3, 3, 32, 32), torch.rand(0, 3, 32, 32)
    rows, nothing = np.arange(3), np.arange(0)
    for check in (
        lambda batches: faithfulness(net, {"noise": noise}, batches, steps=2),
        lambda batches: randomisation(net, lambda _: {"noise": noise}, batches, stages=2),
    ):
        assert check([(nothing, none), (rows, batch), (nothing, none)]) == check([(rows, batch)])
        with pytest.raises(DataError, match="no image was given"):
            check([(nothing, none)])


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "batch",
    [torch.ones(3, 3, 32, 32), torch.rand(3, 3, 1, 1), torch.rand(3, 3, 1, 200)],
    ids=["all the same", "one pixel", "strips"],
)
def test_faithfulness_of_odd_images_is_finite(net, batch):
    found = faithfulness(net, {"noise": noise}, [(np.arange(3), batch)], steps=2)
    for row in found["rows"]:
        for kind in ("deletion", "insertion"):
            assert np.isfinite([*row[kind]["similarity"], *row[kind]["rank"], row[kind]["similarity_error"]]).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_retrieval_of_odd_embeddings():
    labels = np.array([0, 0, 1, 1])
    line = np.array([[0], [1], [5], [6]], np.float32)
    assert retrieval(line, labels) == {"recall_at_1": 1, "map_at_r": 1, "nmi": 1}
    for same in (np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)):
        found = retrieval(same, labels)
        assert found["nmi"] == 0 and all(0 <= score <= 1 for score in found.values())
    found = retrieval(1e-41 * line, labels)  # their squares underflow, and all are equally near
    assert 0 <= found["nmi"] <= 1 and 0 <= found["map_at_r"] <= found["recall_at_1"] <= 1
