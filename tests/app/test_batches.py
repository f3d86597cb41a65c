"""Images that wait at the same time, explained by a real explainer that stops where the test wants it."""

import threading
from concurrent.futures import wait

import numpy as np
import pytest

from embedcam.app.batches import Batches
from embedcam.errors import DataError


class Held:
    """An explainer that waits for the test, and tells the sizes of the batches; NaN is an error."""

    def __init__(self, explainer):
        self.explainer, self.sizes = explainer, []
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()

    def __call__(self, images):
        self.sizes.append(len(images))
        self.begun.release()
        self.go_on.wait()
        if np.isnan(images).any():
            raise DataError("bad picture")
        return self.explainer(images)


@pytest.fixture
def held(explainer):
    held = Held(explainer)
    yield held
    held.go_on.set()


@pytest.fixture
def batches():
    batches = Batches(4, 1)
    yield batches
    batches.close()


def images(count):
    return list(np.random.default_rng(0).normal(size=(count, 3, 32, 32)).astype(np.float32))


def test_what_waits_is_explained_together_up_to_the_limit_and_in_order(batches, held, explainer):
    inputs = images(8)
    first = batches.explain(held, inputs[0])
    held.begun.acquire()  # it was not held back to fill a batch
    rest = [batches.explain(held, each) for each in inputs[1:]]
    held.go_on.set()
    found = [each.result() for each in [first, *rest]]
    assert held.sizes == [1, 4, 3]
    for each, image in zip(found, inputs, strict=True):
        alone = explainer(image[None])
        assert each.clusters.tolist() == alone.clusters.tolist()
        assert each.notes == alone.notes
        np.testing.assert_allclose(each.heatmaps, alone.heatmaps, atol=1e-5)
        np.testing.assert_allclose(each.embeddings, alone.embeddings, atol=1e-5)


def test_an_error_is_that_of_its_own_image(batches, held, caplog):
    inputs = images(4)
    inputs[2][0, 5, 5] = np.nan
    first = batches.explain(held, inputs[0])
    held.begun.acquire()
    rest = [batches.explain(held, each) for each in inputs[1:]]
    held.go_on.set()
    wait([first, *rest])
    assert [type(each.exception()) for each in [first, *rest]] == [type(None), type(None), DataError, type(None)]
    assert caplog.messages == ["a batch of 3 images failed and is explained image by image: bad picture"]


def test_images_of_different_explainers_do_not_share_a_batch(batches, held, explainer):
    other = Held(explainer)
    other.go_on.set()
    inputs = images(5)
    first = batches.explain(held, inputs[0])
    held.begun.acquire()
    rest = [batches.explain(each, image) for each, image in zip([held, other, other, held], inputs[1:], strict=True)]
    held.go_on.set()
    wait([first, *rest])
    assert (held.sizes, other.sizes) == ([1, 1, 1], [2])


def test_a_cancelled_image_is_not_computed(batches, held):
    inputs = images(3)
    first = batches.explain(held, inputs[0])
    held.begun.acquire()
    rest = [batches.explain(held, each) for each in inputs[1:]]
    assert rest[0].cancel()
    held.go_on.set()
    wait([first, rest[1]])
    assert held.sizes == [1, 1]
