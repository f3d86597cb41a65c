"""The parts of the demo that show something; the whole takes minutes."""

import dataclasses

import numpy as np
import pytest
import torch

from embedcam import demo
from embedcam.data import load
from embedcam.database import WeightDatabase
from embedcam.errors import OutputError
from embedcam.explain import Explainer
from embedcam.nets import EmbeddingNet
from embedcam.show.report import Report, write_report


@pytest.fixture
def db(trained):
    return WeightDatabase.load(trained / "weights.h5")


@pytest.fixture
def training(folder):
    return load(f"folder:{folder}", "train")


@pytest.fixture
def examples(trained, db, folder):
    samples = load(f"folder:{folder}", "test")
    net = EmbeddingNet.load(trained / "net.safetensors")
    images = torch.from_numpy(np.stack([net.preprocess(samples.image(i)) for i in range(len(samples))]))
    explainer = Explainer(net, db)
    explanation = explainer(images)
    answer = explainer(images, versus=demo._rivals(explanation, db))
    return samples, explanation, demo._example_cards(samples, explanation, answer, db)


def test_a_cluster_is_shown_by_its_nearest_training_images(db, training):
    cards = demo._cluster_cards(db, training)
    assert [card.number for card in cards] == list(range(4))
    assert sum(card.size for card in cards) == 18
    for card in cards:
        members = np.flatnonzero(db.exemplars.cluster == card.number)
        similarity = db.exemplars.embeddings[members] @ db.centroids[card.number]
        nearest = members[np.argsort(-similarity, kind="stable")][:6]
        assert [t.caption for t in card.thumbnails] == [db.label_names[db.exemplars.label[i]] for i in nearest]
        place = training.ids.index(db.exemplars.path[nearest[0]])
        np.testing.assert_array_equal(card.thumbnails[0].image, np.asarray(training.image(place)))
        assert card.channels[0] == (db.top_channels[card.number, 0], db.top_weights[card.number, 0])
        assert len(card.channels) == 10


def test_a_database_without_exemplars_shows_no_training_images(db, training):
    cards = demo._cluster_cards(dataclasses.replace(db, exemplars=None), training)
    assert all(list(card.thumbnails) == [] for card in cards)


def test_training_images_that_are_gone_are_left_out(db, training):
    cards = demo._cluster_cards(db, training.subset([0]))
    assert sum(len(card.thumbnails) for card in cards) <= 1


def test_an_example_carries_its_picture_mask_and_explanation(db, examples):
    samples, explanation, cards = examples
    assert [card.name for card in cards] == list(samples.ids)
    for i, card in enumerate(cards):
        np.testing.assert_array_equal(card.image, np.asarray(samples.image(i)))
        np.testing.assert_array_equal(card.mask, samples.mask(i))
        assert card.overlay.shape == card.image.shape
        assert card.cluster == explanation.clusters[i]
        assert card.label == samples.names[samples.labels[i]]
        assert card.cluster_label == db.labels_of(card.cluster, most=1)[0][0]
        assert card.notes == explanation.notes[i]


def test_an_examples_evidence_is_against_the_nearest_cluster_of_another_label(db, examples):
    _, explanation, cards = examples
    labels = db.label_histogram.argmax(axis=1)
    for z, cluster, card in zip(explanation.embeddings, explanation.clusters, cards, strict=True):
        others = [other for other in range(db.clusters) if labels[other] != labels[cluster]]
        assert card.versus == db.describe(max(others, key=lambda other: z @ db.centroids[other]))
        assert card.evidence.shape == card.image.shape


def test_the_gallery_has_four_images_a_row(examples):
    _, _, cards = examples
    whole, row = demo._gallery(cards), demo._gallery(cards[:4])
    assert whole.width == row.width > 12 * 112
    assert 2.5 < whole.height / row.height < 3.5


def test_the_cards_make_a_report(db, training, examples, tmp_path):
    report = Report(
        title="squares",
        facts=db.facts(),
        clusters=demo._cluster_cards(db, training),
        examples=examples[2],
        scores=[],
        retrieval={"recall_at_1": 1.0},
    )
    write_report(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert all(card.name in page for card in examples[2])


def test_a_sample_is_drawn_by_the_seed_and_never_larger_than_the_set(training):
    first, again, other = (demo._sample(training, 5, seed).ids for seed in (0, 0, 1))
    assert first == again != other
    assert demo._sample(training, 100, 0).ids == training.ids


def test_a_place_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        demo.demo(tmp_path / "file")
