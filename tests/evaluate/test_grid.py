"""The grid test on maps whose heat in each quarter is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from embedcam.data import load
from embedcam.data.samples import FileSamples
from embedcam.errors import DataError
from embedcam.evaluate.bootstrap import interval
from embedcam.evaluate.grid import Composites, grid_test
from embedcam.explain import Explainer


@pytest.fixture
def samples():
    digits = load("digits", "test")
    return digits.subset(np.concatenate([np.flatnonzero(digits.labels == label)[:4] for label in range(5)]))


def picture(net, samples, index):
    return torch.from_numpy(net.preprocess(samples.image(int(index))))


def test_composites_show_four_pictures_of_different_classes_in_reading_order(net, samples):
    composites = Composites.draw(net, samples, 3)
    assert all(len(set(labels)) == 4 for labels in composites.labels.tolist())
    (images,) = composites.batches(3)
    assert images.shape == (3, 3, 64, 64)
    for image, members in zip(images, composites.members, strict=True):
        for quarter, index in enumerate(members):
            top, left = 32 * (quarter // 2), 32 * (quarter % 2)
            assert torch.equal(image[:, top : top + 32, left : left + 32], picture(net, samples, index))
    with torch.no_grad():
        alone = net(picture(net, samples, composites.members[2, 1])[None])
    np.testing.assert_allclose(composites.embeddings[2, 1], alone[0], atol=1e-6)


def test_composites_depend_on_the_seed_alone_and_partners_share_the_class(net, samples):
    first, again, other = (Composites.draw(net, samples, 5, seed) for seed in (1, 1, 2))
    assert first.members.tolist() == again.members.tolist() != other.members.tolist()
    assert (samples.labels[first.partners(samples.labels)] == first.labels).all()


def test_clusters_are_those_of_the_pictures_alone(spread, samples):
    net, db = spread
    composites = Composites.draw(net, samples, 2)
    found = Explainer(net, db)(torch.stack([picture(net, samples, index) for index in composites.members.ravel()]))
    assert composites.clusters(db).ravel().tolist() == found.clusters.tolist()


def heat(*quarters):
    """One map with the given heat in the quarters, spread over their pixels."""
    return np.kron(np.reshape(quarters, (2, 2)), np.full((32, 32), 1 / 1024)).astype(np.float32)


def test_share_is_of_the_positive_heat_in_the_quarter_that_is_asked_for(net, samples):
    # Asked for the quarters in turn: 1/2, 0.6 (the negative heat is none), 0 of no heat at all, all.
    maps = np.stack([heat(2, 1, 1, 0), heat(1, 3, -5, 1), heat(0, 0, 0, 0), heat(0, 0, 0, 7)])
    composites = Composites.draw(net, samples, 3)
    asked = []

    def ask(images, questions):
        asked.append(questions.tolist())
        return np.repeat(maps[None], len(images), axis=0)

    questions = np.arange(12).reshape(3, 4)
    result = grid_test({"known": ask}, composites, questions, batch_size=2)["known"]
    assert np.concatenate(asked).tolist() == questions.tolist()
    assert result["grid_share"] == pytest.approx((0.5 + 0.6 + 0 + 1) / 4)
    assert result["grid_localised"] == 0.5  # of a half there is not more than half
    assert result["interval"]["grid_share"] == pytest.approx([0.525, 0.525])


def test_a_map_that_cannot_be_asked_scores_a_quarter(net, samples):
    def ask(images, questions):
        return np.repeat(images.abs().sum(dim=1).numpy()[:, None], 4, axis=1)

    composites = Composites.draw(net, samples, 2)
    result = grid_test({"brightness": ask}, composites, composites.members)["brightness"]
    assert result["grid_share"] == pytest.approx(0.25)


def test_what_does_not_fit_is_refused(net, samples):
    composites = Composites.draw(net, samples, 1)
    with pytest.raises(DataError, match=r"mine must give finite maps \(1, 4, 64, 64\), got \(1, 4, 2, 2\)"):
        grid_test({"mine": lambda *_: np.ones((1, 4, 2, 2))}, composites, composites.members)
    with pytest.raises(DataError, match="finite"):
        grid_test({"mine": lambda *_: np.full((1, 4, 64, 64), np.nan)}, composites, composites.members)
    with pytest.raises(DataError, match="at least 1 composite"):
        Composites.draw(net, samples, 0)
    with pytest.raises(DataError, match="at least 4 classes, found 3"):
        Composites.draw(net, samples.subset(np.flatnonzero(samples.labels < 3)), 1)
    with pytest.raises(DataError, match="labelled images"):
        Composites.draw(net, FileSamples((Path("a.png"),), ("a.png",)), 1)


def test_interval_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(values)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert interval(np.array([3.0])) == [3, 3]
