import numpy as np
import pytest

from embedcam.train.sampling import epoch_order


def test_batches_hold_several_images_of_several_classes():
    labels = np.repeat(np.arange(5), 30)
    order, size = epoch_order(labels, 16, seed=0, epoch=1)

    assert size == 16
    for start in range(0, len(order), size):
        classes, counts = np.unique(labels[order[start : start + size]], return_counts=True)
        assert len(classes) == 4
        assert (counts == 4).all()


@pytest.mark.parametrize("classes", [2, 3, 50])
def test_batches_can_be_made_of_few_and_of_many_classes(classes):
    labels = np.repeat(np.arange(classes), 3)
    order, size = epoch_order(labels, 32, seed=0, epoch=1)
    assert len(order) % size == 0
    assert len(np.unique(labels[order[:size]])) >= 2


def test_classes_of_one_image_are_in_no_batch():
    labels = np.array([5, 0, 0, 1, 7, 1, 2, 2, 2])
    order, size = epoch_order(labels, 8, seed=0, epoch=1)
    assert set(labels[order].tolist()) <= {0, 1, 2}
    assert len(order) % size == 0


def test_an_epoch_is_drawn_from_its_number_and_the_seed():
    labels = np.arange(40) % 5
    orders = [epoch_order(labels, 16, seed, epoch)[0].tolist() for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]
