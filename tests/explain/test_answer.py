"""Asking: signed contributions that add up to similarities, beside the map that explains the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import embedcam
from embedcam.data import load
from embedcam.errors import DataError, NetworkError
from embedcam.explain import CompiledExplainer, Explainer
from embedcam.explain.answer import Answer
from embedcam.explain.comparison import Against
from embedcam.explain.contributions import common_embedding
from embedcam.explain.explanation import FLAT, NOT_FINITE
from embedcam.nets import EmbeddingNet, wrap
from embedcam.nets.inference import embed
from embedcam.show.overlay import overlay_signed

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["cosine", "euclidean", "hidden", "wrapped"])
def setting(request, folder):
    """A network whose embeddings point everywhere, and its database."""
    torch.manual_seed(0)
    metric = "euclidean" if request.param == "euclidean" else "cosine"
    net = EmbeddingNet("tiny", 8, image_size=32, metric=metric, hidden=16 if request.param == "hidden" else None).eval()
    with torch.no_grad():
        last = net.head if isinstance(net.head, nn.Linear) else net.head[-1]
        last.bias -= net.head(torch.from_numpy(embed(net, load(f"folder:{folder}")).pooled)).mean(dim=0) * 0.95
    if request.param == "wrapped":
        net = wrap(nn.Sequential(net.backbone, net.head), "0.features", preprocess=net.preprocess)
    return net, embedcam.build_database(net, f"folder:{folder}", clusters=4, top_k=12)


def similarity(net, db, z, other):
    """In float64: the cosine, or the product of what differs from the mean training image."""
    common = common_embedding(db).astype(float) if net.metric == "euclidean" else 0
    return ((z - common) * (other - common)).sum(axis=1)


def assert_adds_up(answer, expected):
    total = answer.contributions.sum(axis=(1, 2), dtype=float) + answer.rest
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answer.similarity, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("versus", [None, 3])
def test_contributions_and_rest_add_up_to_the_similarity_with_a_cluster_or_the_difference_of_two(setting, versus):
    net, db = setting
    answer = Explainer(net, db)(IMAGES, towards=1, versus=versus)

    z = answer.embeddings.astype(float)
    expected = similarity(net, db, z, db.centroids[1].astype(float))
    if versus is not None:
        expected = expected - similarity(net, db, z, db.centroids[3].astype(float))
    assert isinstance(answer, Answer)
    assert_adds_up(answer, expected)
    if versus is not None:
        assert (answer.contributions > 0).any()
        assert (answer.contributions < 0).any()
    assert answer.towards == [db.describe(1)] * 4
    assert answer.versus == (None if versus is None else [db.describe(3)] * 4)


def test_a_question_without_a_target_is_about_each_images_own_cluster(setting):
    net, db = setting
    explainer = Explainer(net, db)
    own = explainer(IMAGES).clusters
    by_default, by_name = explainer(IMAGES, versus=0), explainer(IMAGES, towards=own, versus=0)
    np.testing.assert_array_equal(by_default.contributions, by_name.contributions)
    assert by_default.towards == [db.describe(cluster) for cluster in own]


def test_a_label_is_asked_for_by_its_nearest_cluster(setting):
    net, db = setting
    explainer, label = Explainer(net, db), db.label_names[1]
    answer = explainer(IMAGES, towards=label)
    clusters = db.clusters_of(label)
    away = np.linalg.norm(answer.embeddings[:, None] - db.centroids[clusters], axis=2)
    nearest = clusters[away.argmin(axis=1)]
    np.testing.assert_allclose(answer.contributions, explainer(IMAGES, towards=nearest).contributions, atol=1e-6)
    assert answer.towards == [f"label {label}, {db.describe(cluster)}" for cluster in nearest]


def test_asking_by_an_image_is_comparing_with_it(setting):
    net, db = setting
    explainer = Explainer(net, db)
    answer, comparison = explainer(IMAGES, towards=IMAGES[:1]), Against(explainer)(IMAGES, IMAGES[:1])
    np.testing.assert_allclose(answer.contributions, comparison.contributions.images, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(answer.similarity, comparison.similarity, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(answer.signed.clip(min=0), comparison.shared.images.raw, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((-answer.signed).clip(min=0), comparison.differs.images.raw, rtol=1e-4, atol=1e-5)


def test_every_image_may_have_a_question_of_its_own(setting):
    net, db = setting
    explainer = Explainer(net, db)
    together = explainer(IMAGES, towards=[0, 1, 2, 3], versus=IMAGES.flip(0))
    for row in range(4):
        alone = explainer(IMAGES[row : row + 1], towards=row, versus=IMAGES[3 - row])
        np.testing.assert_allclose(together.contributions[row], alone.contributions[0], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(together.heatmaps[row], alone.heatmaps[0], atol=1e-3)
    with pytest.raises(DataError, match="got 3 references for 4 images"):
        explainer(IMAGES, towards=[0, 1, 2])


def test_the_heat_map_is_the_one_asked_for_and_the_rest_is_the_images_own(setting):
    net, db = setting
    explainer = Explainer(net, db)
    plain = explainer(IMAGES)
    asked, own = explainer(IMAGES, towards=(plain.clusters + 1) % 4), explainer(IMAGES, towards=plain.embeddings)
    np.testing.assert_array_equal(asked.clusters, plain.clusters)
    np.testing.assert_array_equal(asked.distances, plain.distances)
    np.testing.assert_allclose(own.heatmaps, plain.heatmaps, atol=1e-3)
    assert not np.allclose(asked.heatmaps, plain.heatmaps, atol=0.05)


def test_the_signed_map_is_the_contributions_placed():
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32).eval()
    db = embedcam.build_database(net, [(image, i % 2) for i, image in enumerate(IMAGES)], clusters=2, top_k=4)
    answer = Explainer(net, db, placement="stretch")(IMAGES, towards=0)
    density = torch.from_numpy(answer.contributions * answer.contributions[0].size)[:, None]
    placed = nn.functional.interpolate(density, (32, 32), mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(answer.signed, placed, rtol=1e-3, atol=1e-5)
    strongest = np.abs(answer.signed).max(axis=(1, 2))
    np.testing.assert_allclose(answer.scaled, answer.signed / strongest[:, None, None], rtol=1e-6)


def test_a_fixed_question_is_asked_of_every_batch_and_the_explainer_stays_as_it_was(spread):
    explainer = Explainer(*spread)
    asking = explainer.asking(towards="class1", versus="class2")
    for batch in (IMAGES, IMAGES[:1]):
        expected = explainer(batch, towards="class1", versus="class2")
        np.testing.assert_array_equal(asking(batch).contributions, expected.contributions)
    assert not isinstance(explainer(IMAGES), Answer)
    assert isinstance(asking.to("cpu")(IMAGES), Answer)


def test_notes_say_where_nothing_is_told_apart_and_where_the_rest_dominates(spread):
    explainer = Explainer(*spread)
    assert explainer(IMAGES[:1], towards=2, versus=2).notes == [
        [FLAT, f"nothing to tell apart: {spread[1].describe(2)} was compared with itself"]
    ]
    explanation = explainer(IMAGES[:2])
    parts = np.array([[[0.1, 0.1]], [[0.5, 0.1]]]), np.array([0.3, 0.3]), np.zeros((2, 32, 32))
    answer = Answer.of_evidence(explanation, np.array([0.5, 0.9]), *parts, towards=["a", "b"], versus=None)
    assert answer.notes[0][-1] == "mostly not of the cells: +0.300 of the similarity +0.500 is the rest"
    assert not any("mostly" in note for note in answer.notes[1])


def test_an_image_that_is_not_finite_spoils_its_own_answer_only(spread):
    explainer, images = Explainer(*spread), IMAGES.clone()
    images[1, 0, 3, 3] = float("nan")
    answer, fine = explainer(images, towards=0), explainer(IMAGES, towards=0)
    assert NOT_FINITE in answer.notes[1]
    assert answer.similarity[1] == answer.rest[1] == 0
    assert not answer.contributions[1].any()
    assert not answer.signed[1].any()
    np.testing.assert_allclose(answer.contributions[[0, 2, 3]], fine.contributions[[0, 2, 3]], atol=1e-5)
    assert FLAT not in fine.notes[0]


def test_evidence_is_drawn_in_two_colours(spread):
    answer = Explainer(*spread)(IMAGES, towards=0, versus=1)
    grey = np.full((4, 32, 32, 3), 128, dtype=np.uint8)
    drawn = np.stack(answer.signed_overlay(grey)).astype(int)
    warmer = drawn[..., 0] - drawn[..., 2]
    assert (warmer[answer.scaled > 0.1] > 0).all()
    assert (warmer[answer.scaled < -0.1] < 0).all()
    with pytest.raises(DataError, match="give the same batch"):
        answer.signed_overlay(grey[:2])


def test_transfers_from_exemplars_are_asked_too(spread):
    explainer = Explainer(*spread, transfer="nearest")
    plain = explainer(IMAGES)
    np.testing.assert_allclose(explainer(IMAGES, towards=plain.embeddings).heatmaps, plain.heatmaps, atol=1e-3)


def test_networks_that_are_not_decomposable_are_refused_with_the_reason(folder):
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32, layer="features.8").eval()
    db = embedcam.build_database(net, f"folder:{folder}", clusters=4, top_k=12)
    with pytest.raises(NetworkError, match=r"cannot be decomposed over the cells of layer 'features.8': .* mixes"):
        Explainer(net, db)(IMAGES, towards=0)


def test_a_compiled_explainer_refuses_questions(spread):
    with pytest.raises(NetworkError, match="compiled explainer cannot be asked"):
        CompiledExplainer(*spread)(IMAGES, towards=0)


def test_images_of_another_size_than_the_networks_add_up_too(spread):
    net, db = spread
    images = nn.functional.interpolate(IMAGES, (48, 56))
    answer = Explainer(net, db)(images, versus=0)
    expected = answer.embeddings.astype(float) @ (db.centroids[answer.clusters].astype(float) - db.centroids[0]).T
    assert_adds_up(answer, np.diag(expected))
    assert answer.signed.shape == (4, 48, 56)


def test_evidence_of_a_centre_crop_is_drawn_where_it_lies_in_the_whole_picture(spread):
    answer = Explainer(*spread)(IMAGES[:1], towards=0)
    cropped = replace(answer, preprocess=replace(answer.preprocess, crop_pct=0.5))
    picture = np.full((64, 64, 3), 128, dtype=np.uint8)
    (drawn,) = cropped.signed_overlay([picture])
    evidence = np.zeros((64, 64), dtype=np.float32)
    evidence[16:48, 16:48] = answer.scaled[0]
    np.testing.assert_array_equal(drawn, overlay_signed(picture, evidence))
    assert not np.array_equal(drawn, answer.signed_overlay([picture])[0])
