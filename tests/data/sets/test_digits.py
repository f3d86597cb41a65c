import sys

import numpy as np
import pytest

from embedcam.data.sets import digits as module
from embedcam.data.sets.digits import SIZE, digits
from embedcam.errors import DataError, MissingDependencyError

pytest.importorskip("sklearn")


def test_every_digit_of_scikit_learn_is_in_exactly_one_split_thrice_for_training_and_once_for_test():
    from sklearn.datasets import load_digits

    train, test, everything = digits("train"), digits("test"), digits("all")
    target = load_digits().target
    assert not set(train.sources) & set(test.sources)
    assert set(train.sources) | set(test.sources) == set(range(1797))
    assert np.unique(train.sources, return_counts=True)[1].tolist() == [3] * (len(train) // 3)
    assert np.unique(test.sources, return_counts=True)[1].tolist() == [1] * len(test)
    for samples in (train, test, everything):
        np.testing.assert_array_equal(samples.labels, target[samples.sources])
    for label in range(10):
        assert int((train.labels == label).sum()) == 3 * -(-3 * int((target == label).sum()) // 5)
    assert train.names == tuple("0123456789")
    assert len(set(everything.ids)) == len(everything) == len(train) + len(test)
    assert train.ids[:4] == tuple(f"{target[s]}/{s:04d}{d}" for s, d in zip(train.sources[:4], "abca", strict=True))


def test_picture_depends_only_on_seed_source_and_drawing():
    everything, test = digits("all"), digits("test")
    rows = [200, 3, 77]
    backwards = {row: np.asarray(test.image(row)) for row in reversed(rows)}
    for row in rows:
        place = everything.ids.index(test.ids[row])
        np.testing.assert_array_equal(backwards[row], np.asarray(everything.image(place)))
        np.testing.assert_array_equal(test.mask(row), everything.mask(place))
    assert np.any(np.asarray(digits("test", seed=1).image(3)) != backwards[3])
    assert digits("test", seed=1).ids == test.ids
    train = digits("train")
    assert train.sources[0] == train.sources[1]
    assert np.any(np.asarray(train.image(0)) != np.asarray(train.image(1)))


def test_picture_is_the_photograph_outside_the_digit_and_one_colour_inside():
    photographs = module._material()[2]
    for source in range(0, 1797, 150):
        picture, opacity = module._draw(0, source, 0)
        solid = picture[opacity == 1]
        assert len(solid) and np.all(solid == solid[0])
        outside = opacity == 0
        top, left = np.argwhere(outside)[0]
        pixel = picture[top, left]
        assert any(
            np.array_equal(photograph[y - top : y - top + SIZE, x - left : x - left + SIZE][outside], picture[outside])
            for photograph in photographs
            for y, x in np.argwhere((photograph == pixel).all(axis=2))
            if y >= top and x >= left and y - top + SIZE <= 427 and x - left + SIZE <= 640
        )


def test_mask_is_where_the_digit_covers_half_of_the_pixel():
    samples = digits("all")
    for place in range(0, len(samples), 100):
        _, opacity = module._draw(0, int(samples.sources[place]), int(samples.drawings[place]))
        assert opacity.min() == 0 and opacity.max() == 1
        np.testing.assert_array_equal(samples.mask(place), opacity >= 0.5)


def test_digits_are_of_the_promised_size_whole_and_in_varied_places():
    samples = digits("all")
    boxes = []
    for source in range(0, 1797, 9):
        rows, columns = np.nonzero(samples.mask(source))
        boxes.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
    top, left, bottom, right = np.array(boxes).T
    heights = bottom - top
    assert heights.min() >= 34 and heights.max() <= 76 and np.ptp(heights) > 20
    assert min(top.min(), left.min()) >= 0 and max(bottom.max(), right.max()) <= SIZE
    assert np.ptp((top + bottom) / 2) > 30 and np.ptp((left + right) / 2) > 40


def test_colour_stands_out_from_what_is_around_it():
    samples = digits("all")
    for source in range(0, 1797, 60):
        mask, picture = samples.mask(source), np.asarray(samples.image(source)).astype(float)
        difference = np.abs(np.median(picture[mask], axis=0) - picture[~mask].mean(axis=0)).sum()
        assert difference > 100


def test_picture_is_rgb_and_every_one_has_a_mask_and_ignores_nothing():
    samples = digits().subset([5, 1])
    assert samples.image(0).mode == "RGB" and samples.image(0).size == (SIZE, SIZE)
    assert samples.has_masks and samples.mask(0).shape == (SIZE, SIZE) and samples.ignore(0) is None
    assert samples.ids == (digits().ids[5], digits().ids[1])
    assert samples.labels.tolist() == [int(name[0]) for name in samples.ids]


def test_unknown_split_is_an_error():
    with pytest.raises(DataError, match="unknown split 'val'"):
        digits("val")


def test_missing_scikit_learn_names_what_to_install(monkeypatch):
    module._material.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"needs scikit-learn.*embedcam\[train\]"):
        digits()
