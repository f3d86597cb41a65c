"""Methods that are asked for other clusters and partners, against what they are made of."""

import numpy as np
import pytest
import torch

from embedcam.data import load
from embedcam.evaluate import asking
from embedcam.explain import Explainer
from embedcam.explain.comparison import Against
from embedcam.gradient import GradCAM, Similarity


@pytest.fixture(scope="module")
def images(spread, folder):
    net, _ = spread
    samples = load(f"folder:{folder}", "test")
    return torch.from_numpy(np.stack([net.preprocess(samples.image(i)) for i in range(3)]))


@pytest.mark.parametrize("transfer", [None, "cluster", "soft"])
def test_an_explainer_asked_for_where_an_image_lies_gives_its_ordinary_map(spread, images, transfer):
    net, db = spread
    explainer = Explainer(net, db, transfer=transfer)
    explanation = explainer(images)
    ask = asking.of_explainer(explainer)
    if transfer != "cluster":
        found = ask(images, torch.from_numpy(explanation.embeddings)[:, None])
        np.testing.assert_allclose(found[:, 0], explanation.raw, atol=1e-5)
    else:
        other = (explanation.clusters + 1) % db.clusters
        found = ask(images, torch.from_numpy(np.stack([explanation.clusters, other], axis=1)))
        np.testing.assert_allclose(found[:, 0], explanation.raw, atol=1e-5)
        assert not np.allclose(found[:, 1], explanation.raw, atol=1e-3)


def test_contributions_and_similarity_are_asked_for_partners(spread, images):
    net, db = spread
    with torch.no_grad():
        partners = net(images).roll(1, dims=0)
    compare, cam = Against(net), GradCAM(net, net.layer)
    contributions = asking.of_contributions(net, db)(images, torch.stack([partners, -partners], dim=1))
    similarity = asking.of_similarity(net, net.layer)(images, partners[:, None])
    for index, partner in enumerate(images.roll(1, dims=0)):
        pair = compare(images[index : index + 1], partner[None])
        np.testing.assert_allclose(contributions[index, 0], pair.shared.images.raw[0], atol=1e-5)
        np.testing.assert_allclose(contributions[index, 1], pair.differs.images.raw[0], atol=1e-5)
    np.testing.assert_allclose(similarity[:, 0], cam(images, Similarity(partners)).raw, atol=1e-7)


def test_what_cannot_be_asked_gives_the_same_map(spread, images):
    explainer = Explainer(*spread)
    found = asking.unasked(explainer)(images, torch.zeros(3, 2, dtype=torch.int64))
    assert (found == explainer(images).raw[:, None]).all()
