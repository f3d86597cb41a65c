import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from embedcam.data.arrays import as_samples
from embedcam.errors import DataError

IMAGES = np.random.default_rng(0).random((4, 3, 5, 6), dtype=np.float32)


def test_images_alone_have_no_labels():
    samples = as_samples(IMAGES)
    assert len(samples) == 4
    assert samples.labels is None
    assert samples.ids == ("0", "1", "2", "3")
    assert not samples.has_masks
    assert samples.mask(0) is samples.ignore(0) is None
    np.testing.assert_array_equal(samples.image(2), IMAGES[2])


@pytest.mark.parametrize("pair", [tuple, list])
def test_labels_of_any_kind_become_indices_into_names(pair):
    samples = as_samples(
        [pair((image, label)) for image, label in zip(IMAGES, ["dog", "cat", "dog", "ant"], strict=True)]
    )
    assert samples.names == ("ant", "cat", "dog")
    np.testing.assert_array_equal(samples.labels, [2, 1, 2, 0])
    assert samples.labels.dtype == np.int64
    np.testing.assert_array_equal(samples.image(3), IMAGES[3])


def test_a_torch_data_set_is_read_with_its_tensor_labels():
    samples = as_samples(TensorDataset(torch.from_numpy(IMAGES), torch.tensor([7, 5, 7, 5])))
    assert samples.names == ("5", "7")
    np.testing.assert_array_equal(samples.labels, [1, 0, 1, 0])
    assert samples.image(0).dtype == np.float32


def test_numbers_keep_their_order():
    samples = as_samples([(image, label) for image, label in zip(IMAGES, [10, 9, 2, 10], strict=True)])
    assert samples.names == ("2", "9", "10")
    np.testing.assert_array_equal(samples.labels, [2, 1, 0, 2])


def test_targets_spare_reading_the_images():
    class WithTargets:
        targets = (1, 0, 1, 1)
        read = 0

        def __len__(self):
            return 4

        def __getitem__(self, index):
            self.read += 1
            return IMAGES[index], self.targets[index]

    dataset = WithTargets()
    np.testing.assert_array_equal(as_samples(dataset).labels, [1, 0, 1, 1])
    assert dataset.read == 1


def test_a_subset_keeps_ids_labels_and_order():
    samples = as_samples([(image, label) for image, label in zip(IMAGES, "abab", strict=True)])
    part = samples.subset([3, 0]).subset(np.array([1, 0]))
    assert part.ids == ("0", "3")
    assert part.names == ("a", "b")
    np.testing.assert_array_equal(part.labels, [0, 1])
    np.testing.assert_array_equal(part.image(1), IMAGES[3])


def test_samples_and_specs_are_taken_as_they_are(folder):
    samples = as_samples(f"folder:{folder}", "test")
    assert len(samples) == 12
    assert as_samples(samples) is samples


@pytest.mark.parametrize("nothing", [[], 5, {}, np.empty((0, 3, 4, 4))])
def test_what_is_no_data_set_is_an_error(nothing):
    with pytest.raises(DataError, match="is not a data set, or empty; pass a SPEC"):
        as_samples(nothing)


def test_an_image_of_another_shape_is_named():
    samples = as_samples([IMAGES[0], IMAGES[1][0]])
    with pytest.raises(DataError, match=r"item 1 of the data set has shape \(5, 6\), expected an image \(3, H, W\)"):
        samples.image(1)
    later = samples.subset([1])
    with pytest.raises(DataError, match="item 1 of the data set"):
        later.image(0)
