import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcam.data.splits import check_split, rows_of, training_part
from embedcam.errors import DataError

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=6)
DATA_SETS = st.lists(st.tuples(st.integers(0, 3), NAMES), min_size=1, max_size=40, unique_by=lambda row: row[1])

few = settings(max_examples=50)


def part(rows):
    labels = np.array([label for label, _ in rows], dtype=np.int64)
    return training_part([f"{label}/{name}" for label, name in rows], labels)


@few
@given(DATA_SETS)
def test_sixty_percent_of_every_class_rounded_up_are_for_training(rows):
    training = part(rows)
    labels = np.array([label for label, _ in rows])
    for label in set(labels.tolist()):
        count = int((labels == label).sum())
        assert int(training[labels == label].sum()) == -(-60 * count // 100)


@few
@given(DATA_SETS, st.randoms())
def test_split_does_not_depend_on_the_order(rows, random):
    before = {row: bool(chosen) for row, chosen in zip(rows, part(rows), strict=True)}
    random.shuffle(rows)
    assert before == {row: bool(chosen) for row, chosen in zip(rows, part(rows), strict=True)}


@few
@given(DATA_SETS)
def test_other_classes_do_not_change_the_split_of_a_class(rows):
    label = rows[0][0]
    alone = [row for row in rows if row[0] == label]
    together = [chosen for row, chosen in zip(rows, part(rows), strict=True) if row[0] == label]
    assert part(alone).tolist() == together


@few
@given(DATA_SETS)
def test_a_new_picture_moves_at_most_one_other(rows):
    if len(rows) > 1:
        moved = part(rows)[:-1] != part(rows[:-1])
        assert moved.sum() <= 1


def test_lowest_hashes_are_for_training():
    ids = [f"cat/{i}.jpg" for i in range(10)]
    ranked = sorted(ids, key=lambda name: hashlib.sha256(f"0/{name}".encode()).digest())
    chosen = [name for name, training in zip(ids, training_part(ids, None), strict=True) if training]
    assert sorted(chosen) == sorted(ranked[:6])


def test_composed_and_decomposed_names_get_the_same_split():
    composed = [f"caf\u00e9/{i}.jpg" for i in range(50)]
    decomposed = [f"cafe\u0301/{i}.jpg" for i in range(50)]
    np.testing.assert_array_equal(training_part(composed, None), training_part(decomposed, None))


def test_rows_of_each_split():
    training = np.array([True, False, True])
    assert rows_of("train", training, "here").tolist() == [0, 2]
    assert rows_of("test", training, "here").tolist() == [1]
    assert rows_of("all", training, "here").tolist() == [0, 1, 2]


def test_empty_split_is_an_error():
    with pytest.raises(DataError, match=r"the test split of here is empty \(2 pictures in all\)"):
        rows_of("test", np.array([True, True]), "here")


def test_unknown_split_is_an_error():
    with pytest.raises(DataError, match="unknown split 'val'; choose one of train, test, all"):
        check_split("val")
