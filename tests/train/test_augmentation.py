"""Random crops and flips."""

import numpy as np
from PIL import Image

from embedcam.data import load
from embedcam.nets import EmbeddingNet
from embedcam.train.augmentation import augment
from embedcam.train.inputs import Inputs
from embedcam.utils.distributed import Group


def numbered(width, height):
    """A picture whose red is the column and whose green is the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def test_crops_lie_in_the_picture_and_keep_half_of_it():
    picture, flipped = numbered(200, 120), 0
    for seed in range(200):
        crop = np.asarray(augment(picture, np.random.default_rng(seed))).astype(int)
        height, width = crop.shape[:2]
        assert 0.49 * 200 * 120 <= height * width <= 200 * 120
        assert 3 / 4 * 0.98 <= width / height <= 4 / 3 * 1.02 or (height, width) == (120, 200)
        step = 1 if crop[0, 1, 0] > crop[0, 0, 0] else -1
        flipped += step < 0
        assert (np.diff(crop[..., 0], axis=1) == step).all()
        assert (np.diff(crop[..., 1], axis=0) == 1).all()
    assert 70 < flipped < 130


def test_a_picture_too_long_for_a_crop_stays_whole():
    assert augment(numbered(250, 10), np.random.default_rng(0)).size == (250, 10)


def test_an_image_is_augmented_by_its_place_in_the_epoch_however_many_processes_and_threads(folder, tmp_path):
    net, samples = EmbeddingNet("tiny", 8, image_size=32), load(f"folder:{folder}", "train")
    order = np.array([3, 3, 0, 7, 7, 1])

    class Part(Group):
        """One of several processes; the others have read their images."""

        def add_up(self, values):
            return values.new_ones(values.shape)

    def seen(rank, size, workers, augment_with=(5, 1)):
        inputs = Inputs(None, net, samples, tmp_path, strict=True, workers=workers, group=Part(rank, size))
        found = {}
        for start, batch in zip((0, 4), inputs.batches(order, 4, augment_with), strict=True):
            for place, image in zip(batch.own.tolist(), batch.inputs.numpy(), strict=True):
                found[start + place] = image
        return found

    one = seen(0, 1, workers=3)
    shared = {**seen(0, 2, workers=0), **seen(1, 2, workers=1)}
    assert sorted(one) == sorted(shared) == list(range(6))
    for position, image in one.items():
        np.testing.assert_array_equal(image, shared[position])
    assert (one[0] != one[1]).any()  # the same image at two places
    assert (one[0] != seen(0, 1, 0, (5, 2))[0]).any()
    plain = seen(0, 1, 0, None)
    np.testing.assert_array_equal(plain[0], net.preprocess(samples.image(3)))
