import numpy as np
import pytest

from embedcam.explain.likeness import alike_message, likeness


def test_likeness_is_the_mean_correlation_of_all_pairs():
    maps = np.random.default_rng(0).random((5, 4, 6)).astype(np.float32)
    pairs = [np.corrcoef(maps[i].ravel(), maps[j].ravel())[0, 1] for i in range(5) for j in range(i)]
    assert likeness(maps) == pytest.approx(np.mean(pairs))


def test_flat_maps_are_left_out():
    maps = np.random.default_rng(0).random((3, 4, 4)).astype(np.float32)
    with_flat = np.concatenate([maps, np.zeros((2, 4, 4), np.float32)])
    assert likeness(with_flat) == pytest.approx(likeness(maps))
    assert likeness(with_flat[2:]) == likeness(np.zeros((0, 4, 4), np.float32)) == 0


def test_maps_of_one_smear_are_named_and_others_are_not():
    rng = np.random.default_rng(0)
    smear = np.linspace(0, 1, 16).reshape(1, 4, 4)
    assert "look alike (mean correlation 0.9" in str(alike_message(smear + 0.2 * rng.random((8, 4, 4))))
    assert alike_message(rng.random((8, 4, 4))) is None
