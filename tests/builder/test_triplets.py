import numpy as np
import pytest

from embedcam.builder.triplets import ClassSums, Partners, count_members
from embedcam.errors import DataError

LABELS = np.array([2, 0, 1, 0, 2, 2, 1, 0], dtype=np.int64)
NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("anchor", range(len(LABELS)))
def test_positives_share_the_label_and_are_other_images_and_negatives_do_not_share_it(anchor):
    positives, negatives = Partners(LABELS, NAMES, pairs=200).draw(anchor)

    assert set(positives) == set(np.flatnonzero(LABELS[anchor] == LABELS)) - {anchor}
    assert set(negatives) == set(np.flatnonzero(LABELS[anchor] != LABELS))


def test_partners_depend_on_seed_and_index_alone():
    first = Partners(LABELS, NAMES, pairs=9, seed=3)
    later = Partners(LABELS, NAMES, pairs=9, seed=3)
    for index in (5, 0, 3):
        later.draw(index)

    assert all(np.array_equal(a, b) for a, b in zip(first.draw(4), later.draw(4), strict=True))
    other = Partners(LABELS, NAMES, pairs=9, seed=4)
    assert not all(np.array_equal(a, b) for a, b in zip(first.draw(4), other.draw(4), strict=True))


def test_partners_are_drawn_uniformly():
    positives, negatives = Partners(LABELS, NAMES, pairs=30_000).draw(1)

    assert np.bincount(positives, minlength=8)[[3, 7]] == pytest.approx([15_000] * 2, rel=0.05)
    assert np.bincount(negatives, minlength=8)[[0, 2, 4, 5, 6]] == pytest.approx([6_000] * 5, rel=0.08)


def test_negative_seeds_are_seeds_too():
    Partners(LABELS, NAMES, pairs=2, seed=-1).draw(0)


def test_an_image_alone_in_its_class_is_its_own_positive():
    partners = Partners(np.array([0, 0, 1, 2, 2]), NAMES, pairs=50)
    positives, negatives = partners.draw(2)

    assert set(positives) == {2}
    assert set(negatives) == {0, 1, 3, 4}


def test_one_class_only_is_an_error():
    with pytest.raises(DataError, match="two classes, found one only: 'a'"):
        Partners(np.array([0, 0]), NAMES, pairs=1)


def test_the_images_of_each_class_are_counted():
    different, counts = count_members(np.array([4, 1, 4]), NAMES)
    assert different.tolist() == [1, 4]
    assert counts.tolist() == [1, 2]


def test_an_anchor_from_outside_may_have_every_image_of_its_label():
    positives, negatives = Partners(LABELS, NAMES, pairs=300).draw_outside(label=2, index=0)

    assert set(positives) == set(np.flatnonzero(LABELS == 2))
    assert set(negatives) == set(np.flatnonzero(LABELS != 2))


def test_an_anchor_from_outside_is_drawn_for_as_if_it_stood_behind_the_images():
    outside = Partners(LABELS, NAMES, pairs=9, seed=3).draw_outside(label=1, index=4)
    behind = Partners(np.append(LABELS, 1), NAMES, pairs=9, seed=3 + 4).draw(len(LABELS))
    assert all(np.array_equal(a, b) for a, b in zip(outside, behind, strict=True))


def test_every_anchor_has_a_generator_of_its_own():
    partners = Partners(LABELS, NAMES, pairs=6, seed=-3)
    for index, label in enumerate(LABELS):
        generator = np.random.Generator(np.random.Philox(key=np.array([2**64 - 3, index], dtype=np.uint64)))
        others = np.setdiff1d(np.flatnonzero(label == LABELS), index)
        ordered = np.argsort(LABELS, kind="stable")
        different = ordered[LABELS[ordered] != label]
        positives, negatives = partners.draw(index)
        np.testing.assert_array_equal(positives, others[generator.integers(len(others), size=6)])
        np.testing.assert_array_equal(negatives, different[generator.integers(len(different), size=6)])


def summed(labels, embeddings, classes=4):
    sums = ClassSums.zeros(classes, embeddings.shape[1])
    for part in (slice(3), slice(3, None)):
        sums.add(labels[part], embeddings[part])
    return sums


def test_mean_partners_are_the_means_over_all_triplets():
    embeddings = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    positives, negatives = summed(LABELS, embeddings).mean_partners(LABELS, embeddings)

    for anchor, label in enumerate(LABELS):
        triplets = [
            (p, n) for p in range(8) for n in range(8) if p != anchor and LABELS[p] == label and LABELS[n] != label
        ]
        mean = embeddings[triplets].mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose([positives[anchor], negatives[anchor]], mean, rtol=1e-12, atol=1e-15)


def test_mean_partners_of_an_image_alone_in_its_class_are_itself_and_all_others():
    labels, embeddings = np.array([0, 0, 3]), np.eye(3, 2, dtype=np.float32)
    positives, negatives = summed(labels, embeddings).mean_partners(labels[2:], embeddings[2:])

    np.testing.assert_array_equal(positives, embeddings[2:])
    np.testing.assert_array_equal(negatives, [[0.5, 0.5]])


def test_mean_partners_of_an_anchor_from_outside_are_the_means_of_its_class_and_of_the_others():
    embeddings = np.arange(16, dtype=np.float32).reshape(8, 2) ** 2
    positives, negatives = summed(LABELS, embeddings).mean_partners(np.array([1]))

    np.testing.assert_allclose(positives, embeddings[LABELS == 1].mean(axis=0, keepdims=True))
    np.testing.assert_allclose(negatives, embeddings[LABELS != 1].mean(axis=0, keepdims=True))
