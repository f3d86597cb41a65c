import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from embedcam.data.arrays import as_samples
from embedcam.data.items import resized
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
        targets = (1, 0) * 50
        classes = ("cat", ("great dane", "dog"))
        read = 0

        def __len__(self):
            return 100

        def __getitem__(self, index):
            self.read += 1
            return IMAGES[index % 4], self.targets[index]

    dataset = WithTargets()
    samples = as_samples(dataset)
    np.testing.assert_array_equal(samples.labels, dataset.targets)
    assert samples.names == ("cat", "great dane, dog")
    assert dataset.read == 16  # of 100, for their size


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


@pytest.mark.parametrize(
    "keys", [("image", "label"), ("img", "fine_label"), ("pixel_values", "labels"), ("path", "category")]
)
def test_dictionaries_are_images_with_labels(keys):
    samples = as_samples([dict(zip(keys, (image, k % 2), strict=True)) for k, image in enumerate(IMAGES)])
    assert samples.names == ("0", "1")
    np.testing.assert_array_equal(samples.image(3), IMAGES[3])


def test_dictionaries_without_an_image_are_refused_with_their_keys():
    with pytest.raises(DataError, match="item 0 of the data set has the keys text, label, none of which is an image"):
        as_samples([{"text": "cat", "label": 1}])


class HuggingFace:
    """What embedcam uses of `datasets.Dataset`: rows are dictionaries, columns are read without decoding images."""

    def __init__(self, rows, names):
        self.rows, self.decoded = rows, 0
        self.features = {"image": SimpleNamespace(), "label": SimpleNamespace(names=names)}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        if isinstance(key, str):
            return [row[key] for row in self.rows]
        self.decoded += 1
        return self.rows[key]


def test_a_hugging_face_data_set_names_its_classes_and_is_not_decoded_for_labels():
    pictures = [Image.fromarray(np.full((5, 6, 3), value, np.uint8)) for value in range(100)]
    dataset = HuggingFace([{"image": p, "label": 1 + k % 2} for k, p in enumerate(pictures)], ["ant", "bee", "cow"])
    samples = as_samples(dataset)
    assert samples.names == ("bee", "cow")
    np.testing.assert_array_equal(samples.labels[:3], [0, 1, 0])
    assert dataset.decoded == 16
    assert np.asarray(samples.image(7)).max() == 7


def test_an_image_that_is_missing_or_cannot_be_decoded_is_left_out_with_a_warning(tmp_path, caplog):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(content, "png")
    (tmp_path / "cut.png").write_bytes(content.getvalue()[:2000])
    rows = [{"image": IMAGES[0], "label": 0}, {"image": None, "label": 1}]
    rows += [{"image": Image.open(tmp_path / "cut.png"), "label": 0}, {"image": {"bytes": b"no image"}, "label": 1}]
    read = list(batches(as_samples(rows), Preprocess((5, 6)), 4, workers=0))
    assert [rows.tolist() for rows, _ in read] == [[0]]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "item 1 of the data set has no image" in messages[0]
    assert "cannot read item 2 of the data set: " in messages[1]
    assert "item 3 of the data set is not an image in a supported format" in messages[2]


def as_path(picture, folder):
    picture.save(folder / "picture.png")
    return folder / "picture.png"


def as_bytes(picture):
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


def as_tensor(picture):
    return torch.from_numpy(np.array(picture))


@pytest.mark.parametrize(
    "given",
    [
        lambda picture, folder: picture,
        lambda picture, folder: as_path(picture, folder),
        lambda picture, folder: str(as_path(picture, folder)),
        lambda picture, folder: as_bytes(picture),
        lambda picture, folder: {"bytes": as_bytes(picture), "path": "a.png"},
        lambda picture, folder: {"bytes": None, "path": str(as_path(picture, folder))},
        lambda picture, folder: picture.convert("RGBA"),
        lambda picture, folder: np.asarray(picture),
        lambda picture, folder: np.asarray(picture.convert("RGBA")),
        lambda picture, folder: np.asarray(picture).transpose(2, 0, 1),
        lambda picture, folder: as_tensor(picture).permute(2, 0, 1),
        lambda picture, folder: as_tensor(picture),
    ],
    ids=[
        *("Pillow", "path", "text", "bytes", "bytes of Hugging Face", "path of Hugging Face", "Pillow with alpha"),
        *("uint8 (H, W, 3)", "uint8 (H, W, 4)", "uint8 (3, H, W)", "uint8 tensor", "uint8 tensor (H, W, 3)"),
    ],
)
def test_pictures_of_every_form_are_preprocessed_alike(given, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    samples, preprocess = as_samples([(given(picture, tmp_path), 0)]), Preprocess((8, 8))
    np.testing.assert_array_equal(preprocess(samples.image(0)), preprocess(picture))


@pytest.mark.parametrize(
    "given", [Image.fromarray, lambda gray: gray, lambda gray: gray[None], lambda gray: gray[..., None]]
)
def test_grayscale_pixels_are_three_equal_channels(given):
    gray = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    picture = np.asarray(as_samples([given(gray)]).image(0))
    np.testing.assert_array_equal(picture, np.broadcast_to(gray[..., None], (5, 6, 3)))


def test_a_normalised_channel_is_repeated():
    image = as_samples([IMAGES[0][:1]]).image(0)
    np.testing.assert_array_equal(image, np.repeat(IMAGES[0][:1], 3, axis=0))


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


@pytest.mark.parametrize(("asked", "expected"), [(None, (4, 4)), ((2, 6), (2, 6))])
@pytest.mark.parametrize("labelled", [True, False])
def test_normalised_images_of_several_sizes_are_resized_with_one_warning(asked, expected, labelled, caplog):
    images = [torch.full((3, 4, 4 + (k > 2)), k, dtype=torch.float32) for k in range(5)]
    samples = as_samples([(image, 0) for image in images] if labelled else images, size=asked)
    read = np.concatenate([images for _, images in batches(samples, Preprocess((9, 9)), 2, workers=0)])
    np.testing.assert_allclose(read, np.broadcast_to(np.arange(5)[:, None, None, None], (5, 3, *expected)), rtol=1e-6)
    (record,) = caplog.records
    assert f"of other sizes are resized to {expected[0]} x {expected[1]}" in record.getMessage()


def test_resizing_a_normalised_image_averages_its_pixels():
    image = np.arange(12, dtype=np.float32).reshape(3, 2, 2) - 6
    np.testing.assert_allclose(resized(image, (1, 1))[:, 0, 0], image.mean(axis=(1, 2)))


@pytest.mark.parametrize("label", [{"boxes": [1]}, np.arange(2), [1, 2]])
def test_a_label_that_is_no_number_or_name_is_refused(label):
    with pytest.raises(DataError, match="the label of item 0 of the data set is a"):
        as_samples([(IMAGES[0], label)])
