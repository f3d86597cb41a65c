import threading

import numpy as np
import pytest
from PIL import Image

from embedcam.data.loading import batches, in_order, read_batches
from embedcam.data.preprocess import Preprocess
from embedcam.data.samples import FileSamples
from embedcam.errors import DataError

PREPROCESS = Preprocess(input_size=(4, 6), mean=(0, 0, 0), std=(1, 1, 1))


def make(folder, count, damaged=()):
    files = []
    for i in range(count):
        files.append(folder / f"{i}.png")
        Image.new("RGB", (6, 4), (i, 0, 0)).save(files[-1])
        if i in damaged:
            files[-1].write_text("no picture")
    return FileSamples(files=tuple(files), ids=tuple(str(i) for i in range(count)))


def decoders(name="decode"):
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"embedcam-{name}")]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_pictures_come_in_order_whatever_the_number_of_workers(tmp_path, workers):
    got = list(batches(make(tmp_path, 10), PREPROCESS, 4, workers=workers))
    assert [indices.tolist() for indices, _ in got] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for indices, images in got:
        assert indices.dtype == np.int64 and images.dtype == np.float32
        assert images.shape == (len(indices), 3, 4, 6)
        np.testing.assert_allclose(images[:, 0, 0, 0], indices / 255, rtol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_picture_is_skipped_logged_and_recorded(tmp_path, caplog, workers):
    skipped = []
    samples = make(tmp_path, 6, damaged=(1, 4))
    got = list(batches(samples, PREPROCESS, 2, workers=workers, on_skip=lambda *what: skipped.append(what)))
    assert [indices.tolist() for indices, _ in got] == [[0, 2], [3, 5]]
    assert [index for index, _ in skipped] == [1, 4]
    assert all(isinstance(error, DataError) for _, error in skipped)
    messages = [record.getMessage() for record in caplog.records if record.name == "embedcam"]
    assert len(messages) == 2 and "1.png is not an image" in messages[0] and "4.png" in messages[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_raises_after_the_batches_before(tmp_path, workers):
    stream = batches(make(tmp_path, 6, damaged=(3,)), PREPROCESS, 2, strict=True, workers=workers)
    assert next(stream)[0].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"3\.png is not an image"):
        next(stream)
    assert not decoders()


def test_no_readable_picture_at_all_is_an_error(tmp_path):
    samples = make(tmp_path, 3, damaged=(0, 1, 2))
    with pytest.raises(DataError, match=r"none of the 3 pictures could be read; the first error: .*0\.png"):
        list(batches(samples, PREPROCESS, 2))


def test_empty_data_set_gives_no_batch(tmp_path):
    assert list(batches(make(tmp_path, 0), PREPROCESS, 2)) == []


class Counting(FileSamples):
    """Counts how many pictures were asked for."""

    asked = 0

    def image(self, index):
        Counting.asked += 1
        return Image.new("RGB", (6, 4))


def test_only_a_bounded_number_of_pictures_is_decoded_ahead(monkeypatch):
    monkeypatch.setattr(Counting, "asked", 0)
    many = Counting(files=(None,) * 1000, ids=("",) * 1000)
    stream = batches(many, PREPROCESS, 3, workers=2)
    for _ in range(4):
        next(stream)
    stream.close()
    assert 12 <= Counting.asked <= 12 + 3 + 2 + 1


def test_threads_end_when_the_consumer_stops_early(tmp_path):
    for _ in batches(make(tmp_path, 20), PREPROCESS, 2, workers=2):
        assert decoders()
        break
    stream = batches(make(tmp_path, 20), PREPROCESS, 2, workers=2)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert not decoders()


def test_error_that_is_not_about_data_is_not_hidden(tmp_path):
    def broken(image):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(batches(make(tmp_path, 3), broken, 2))
    assert not decoders()


@pytest.mark.parametrize("batch_size, workers", [(0, 2), (2, -1)])
def test_senseless_sizes_are_errors(tmp_path, batch_size, workers):
    with pytest.raises(ValueError, match="batch_size must be >= 1 and workers >= 0"):
        next(batches(make(tmp_path, 2), PREPROCESS, batch_size, workers=workers))


def test_reading_can_start_anywhere_and_make_anything_of_a_picture(tmp_path):
    samples = make(tmp_path, 8, damaged=(0, 5))
    got = list(read_batches(samples, lambda image: image.getpixel((0, 0))[0], 2, start=3))
    assert got == [[(3, 3), (4, 4)], [(6, 6), (7, 7)]]
    assert list(read_batches(samples, PREPROCESS, 2, start=8)) == []


def test_a_rest_that_cannot_be_read_is_no_error_where_something_could_be(tmp_path):
    assert list(read_batches(make(tmp_path, 4, damaged=(2, 3)), PREPROCESS, 2, start=2)) == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_their_items(workers):
    assert list(in_order(lambda item: item * item, iter(range(50)), workers, 4, "square")) == [n * n for n in range(50)]


def test_threads_work_while_the_next_item_is_made():
    done = threading.Event()

    def items():
        yield done.set
        assert done.wait(timeout=600)  # nobody has asked for the first result yet
        yield int

    assert list(in_order(lambda item: item(), items(), 1, 2, "work")) == [None, 0]


def test_an_error_comes_in_its_place_and_ends_the_threads():
    results = in_order(lambda item: 1 / item, [1, 2, 0, 4], 2, 1, "divide")
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not decoders("divide")


def test_an_error_of_the_items_ends_the_threads():
    def items():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(in_order(abs, items(), 2, 5, "items"))
    assert not decoders("items")
