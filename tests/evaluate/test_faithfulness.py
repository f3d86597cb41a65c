"""Faithfulness of a network whose embedding is four known pixels: every curve can be worked out by hand."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from embedcam import wrap
from embedcam.data.preprocess import Preprocess
from embedcam.errors import DataError, NetworkError
from embedcam.evaluate.faithfulness import RANDOM, _blur, _noise, _order, faithfulness
from embedcam.explain.explanation import Explanation

SIDE, STEPS = 16, 64  # so that a step is four pixels


class FourPixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.look = nn.Identity()

    def forward(self, images):
        return self.look(images)[:, :, 1:3, 4:6].flatten(1)


def network(metric="cosine"):
    return wrap(FourPixels(), "look", metric=metric, preprocess=Preprocess((SIDE, SIDE)))


@pytest.fixture
def images():
    noise = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    # What all have in common, and blurring takes away: then another image can be nearer than the image itself.
    noise[:, :, 1:3, 4:6] += torch.tensor([[2.0, -2.0], [-2.0, 2.0]])
    return noise


def method(heatmap):
    return lambda images: Explanation.of(np.tile(np.float32(heatmap), (len(images), 1, 1)))


def pointing():
    heatmap = np.zeros((SIDE, SIDE))
    heatmap[1:3, 4:6] = 1
    return heatmap


def batched(images, size=2):
    return [(np.arange(i, min(i + size, len(images))), images[i : i + size]) for i in range(0, len(images), size)]


def score(images, metric="cosine", heatmap=None, **options):
    heatmap = pointing() if heatmap is None else heatmap
    return faithfulness(
        network(metric),
        {"good": method(heatmap), "bad": method(1 - heatmap)},
        batched(images),
        **{"steps": STEPS, **options},
    )


def rows(result):
    return {row["method"]: row for row in result["rows"]}


def embedded(images):
    return images[:, :, 1:3, 4:6].flatten(1).double().numpy()


def area(curve):
    return sum((a + b) / 2 / STEPS for a, b in itertools.pairwise(curve))


def ranks(seen, own, known):
    return [
        1 + sum(np.linalg.norm(s - k) < np.linalg.norm(s - o) for k in known) for s, o in zip(seen, own, strict=True)
    ]


def test_four_hidden_pixels_change_everything_and_the_others_nothing(images):
    result = score(images)
    own, hidden = embedded(images), embedded(_blur(images))
    own, hidden = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, hidden))
    left = float((own * hidden).sum(axis=1).mean())
    place = float(np.mean(ranks(hidden, own, own)))
    assert left < 0.9
    assert place > 1.5
    good, bad = rows(result)["good"], rows(result)["bad"]
    for curve, similarity, rank in (
        (good["deletion"], [1.0] + [left] * STEPS, [1.0] + [place] * STEPS),
        (good["insertion"], [left] + [1.0] * STEPS, [place] + [1.0] * STEPS),
        (bad["deletion"], [1.0] * STEPS + [left], [1.0] * STEPS + [place]),
        (bad["insertion"], [left] * STEPS + [1.0], [place] * STEPS + [1.0]),
    ):
        assert curve["similarity"] == pytest.approx(similarity, abs=1e-6)
        assert curve["rank"] == pytest.approx(rank)
        assert curve["similarity_area"] == pytest.approx(area(similarity), abs=1e-6)
        assert curve["rank_area"] == pytest.approx(area(rank))
    assert good["deletion"]["similarity_area"] < bad["deletion"]["similarity_area"]
    assert good["insertion"]["similarity_area"] > bad["insertion"]["similarity_area"]
    error = np.std((own * hidden).sum(axis=1) * (STEPS - 0.5) / STEPS, ddof=1) / np.sqrt(5)
    assert good["deletion"]["similarity_error"] == pytest.approx(error, abs=1e-6)
    assert (result["images"], result["candidates"], result["share"][:2]) == (5, 5, [0, 1 / STEPS])


def test_differences_to_the_first_method_are_paired(images):
    result = rows(score(images))
    own, hidden = embedded(images), embedded(_blur(images))
    own, hidden = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, hidden))
    # Of "good", all but half a step is at the cosine of what is left; of "bad", all but half a step is at 1.
    gained = (1 - (own * hidden).sum(axis=1)) * (STEPS - 1) / STEPS
    for kind, sign in (("deletion", 1), ("insertion", -1)):
        assert result["good"][kind]["difference"] == 0
        assert result["good"][kind]["interval"] == [0, 0]
        assert result["bad"][kind]["difference"] == pytest.approx(sign * gained.mean(), abs=1e-6)
        low, high = sorted(sign * bound for bound in result["bad"][kind]["interval"])
        assert gained.min() <= low < gained.mean() < high <= gained.max()


def test_euclidean_similarity_is_in_units_of_the_distance_between_images(images):
    own, hidden = embedded(images), embedded(_blur(images))
    between = np.mean([np.linalg.norm(a - b) for i, a in enumerate(own) for j, b in enumerate(own) if i != j])
    left = 1 - np.linalg.norm(own - hidden, axis=1).mean() / between
    curve = rows(score(images, "euclidean"))["good"]["deletion"]
    assert curve["similarity"] == pytest.approx([1.0] + [left] * STEPS, abs=1e-6)
    assert curve["rank"][-1] == np.mean(ranks(hidden, own, own))


def test_rank_is_among_the_gallery_and_the_image_itself(images):
    own, hidden = embedded(images), embedded(_blur(images))
    # One as near to what is left of the first image as can be, one far from all.
    gallery = np.stack([hidden[0], np.full(12, 50.0)]).astype(np.float32)
    result = score(images, "euclidean", gallery=gallery)
    curve = rows(result)["good"]["deletion"]
    assert result["candidates"] == 3
    assert curve["rank"][0] == 1
    assert curve["rank"][1] == np.mean(ranks(hidden, own, gallery)) > 1


def test_one_image_is_ranked_in_a_gallery_but_not_alone(images):
    gallery = np.ones((1, 12), np.float32)
    curve = rows(score(images[:1], gallery=gallery))["good"]["deletion"]
    assert curve["similarity_error"] is None
    with pytest.raises(DataError, match="another image"):
        score(images[:1])


def test_flat_maps_fare_as_the_random_order(images):
    result = faithfulness(network(), {"flat": method(np.zeros((SIDE, SIDE)))}, batched(images))
    flat, chance = result["rows"]
    assert chance["method"] == RANDOM
    assert flat["deletion"] == chance["deletion"]
    assert flat["insertion"] == chance["insertion"]


def test_result_depends_on_the_seed_and_not_on_the_batches(images):
    def areas(size, seed):
        found = faithfulness(network(), {}, batched(images, size), seed=seed)
        json.dumps(found, allow_nan=False)
        return found["rows"][0]["deletion"]["similarity"]

    assert areas(2, 0) == areas(2, 0)
    assert areas(2, 0) == pytest.approx(areas(5, 0), abs=1e-6)
    assert areas(2, 0) != pytest.approx(areas(2, 1), abs=1e-3)


def test_equally_strong_pixels_favour_no_side():
    noise = np.stack([_noise((24, 24), 0, index) for index in range(400)])
    places = _order(np.full((400, 24, 24), 0.3, np.float32), noise).mean(axis=0)
    middle = (24 * 24 - 1) / 2
    assert places.mean() == pytest.approx(middle)
    for side in (places[:6], places[-6:], places[:, :6], places[:, -6:], places[6:18, 6:18]):
        assert side.mean() == pytest.approx(middle, rel=0.05)
    # Nor do some places come first or last more often than others.
    assert noise[:, :3].std() == pytest.approx(noise[:, 10:14, 10:14].std(), rel=0.05)
    # Neighbours go together: single pixels would break every texture.
    assert np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1] > 0.7


def test_strongest_come_first_and_rounding_does_not_part_equals():
    heatmaps = np.array([[[0.5, 0.5 + 1e-7], [0.9, 0.1]]], np.float32)
    noise = np.array([[[1.0, 0.0], [0.0, 9.0]]])
    assert _order(heatmaps, noise).tolist() == [[[1, 2], [0, 3]]]


def test_blur_keeps_a_flat_image_and_is_the_same_from_all_sides():
    assert torch.allclose(_blur(torch.full((1, 3, 9, 12), 0.7)), torch.tensor(0.7))
    image = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    blurred = _blur(image)
    assert blurred.std() < 0.3 * image.std()
    assert torch.allclose(_blur(image.flip(2, 3)), blurred.flip(2, 3), atol=1e-6)


def test_network_and_images_are_left_as_they_are(images):
    net = network().train()
    before = images.clone()
    faithfulness(net, {"good": method(pointing())}, batched(images), steps=2)
    assert net.training
    assert torch.equal(images, before)


def test_what_does_not_fit_is_refused(images):
    with pytest.raises(DataError, match="at least one batch"):
        faithfulness(network(), {}, [])
    with pytest.raises(DataError, match="steps must be at least 1"):
        score(images, steps=0)
    with pytest.raises(DataError, match=r"gallery must be finite embeddings \(M, 12\)"):
        score(images, gallery=np.ones((2, 4), np.float32))
    with pytest.raises(DataError, match="must have the images' shape"):
        score(images, heatmap=np.ones((4, 4)))
    images[0, 0, 1, 4] = float("nan")
    with pytest.raises(NetworkError, match="not finite"):
        score(images)
