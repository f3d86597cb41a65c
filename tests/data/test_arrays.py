import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from embedcam.data.arrays import as_samples
from embedcam.data.loading import batches
from embedcam.data.preprocess import Preprocess
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
    assert dataset.read == 0


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
    with pytest.raises(DataError, match=r"item 1 of the data set has shape \(5, 6\) of float32, expected an image"):
        samples.image(1)
    later = samples.subset([1])
    with pytest.raises(DataError, match="item 1 of the data set"):
        later.image(0)


@pytest.mark.parametrize("keys", [("image", "label"), ("img", "fine_label"), ("pixel_values", "labels")])
def test_dictionaries_are_images_with_labels(keys):
    samples = as_samples([dict(zip(keys, (image, k % 2), strict=True)) for k, image in enumerate(IMAGES)])
    assert samples.names == ("0", "1")
    np.testing.assert_array_equal(samples.image(3), IMAGES[3])


def test_dictionaries_without_an_image_are_refused_with_their_keys():
    with pytest.raises(DataError, match="item 0 of the data set has the keys text, label, none of which is an image"):
        as_samples([{"text": "cat", "label": 1}])


def as_path(picture, folder):
    picture.save(folder / "picture.png")
    return folder / "picture.png"


@pytest.mark.parametrize(
    "given",
    [
        lambda picture, folder: picture,
        lambda picture, folder: as_path(picture, folder),
        lambda picture, folder: str(as_path(picture, folder)),
        lambda picture, folder: np.asarray(picture),
        lambda picture, folder: np.asarray(picture).transpose(2, 0, 1),
        lambda picture, folder: torch.from_numpy(np.array(picture)).permute(2, 0, 1),
    ],
    ids=["Pillow", "path", "text", "uint8 (H, W, 3)", "uint8 (3, H, W)", "uint8 tensor"],
)
def test_pictures_of_every_form_are_preprocessed_alike(given, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    samples, preprocess = as_samples([(given(picture, tmp_path), 0)]), Preprocess((8, 8))
    np.testing.assert_array_equal(preprocess(samples.image(0)), preprocess(picture))


def test_half_precision_tensors_are_images():
    samples = as_samples([torch.from_numpy(IMAGES[0]).bfloat16().requires_grad_()])
    np.testing.assert_allclose(samples.image(0), IMAGES[0], atol=0.004)


def test_integers_that_are_no_pixels_are_refused():
    with pytest.raises(DataError, match=r"item 0 .* of int64, expected .* uint8 pixels"):
        as_samples([np.ones((3, 4, 4), np.int64)]).image(0)


class Broken(list):
    def __getitem__(self, index):
        if index == 1:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


@pytest.mark.parametrize("labelled", [True, False])
def test_an_item_that_cannot_be_read_is_left_out_with_a_warning_and_stops_a_strict_run(labelled, caplog):
    samples = as_samples(Broken((image, 0) if labelled else image for image in IMAGES))
    read = list(batches(samples, Preprocess((5, 6)), 2))
    assert [samples.ids[row] for rows, _ in read for row in rows] == ["0", "2", "3"]
    (record,) = caplog.records
    message = "cannot read item 1 of the data set: OSError: image file is truncated; repair or remove it"
    assert record.getMessage() == f"skipped: {message}"
    with pytest.raises(DataError, match=message):
        list(batches(samples, Preprocess((5, 6)), 2, strict=True))


def test_images_of_two_sizes_are_one_error_that_names_the_first_of_another_size():
    samples = as_samples([np.zeros((3, 4, 4 + (k == 3)), np.float32) for k in range(5)])
    with pytest.raises(DataError, match=r"image 3 has shape \(3, 4, 5\), those before it \(3, 4, 4\); bring all"):
        list(batches(samples, Preprocess((4, 4)), 2))


@pytest.mark.parametrize("label", [{"boxes": [1]}, np.arange(2), [1, 2]])
def test_a_label_that_is_no_number_or_name_is_refused(label):
    with pytest.raises(DataError, match="the label of item 0 of the data set is a"):
        as_samples([(IMAGES[0], label)])
