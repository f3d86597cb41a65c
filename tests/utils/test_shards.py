import numpy as np
import pytest

from embedcam.utils import shards
from embedcam.utils.distributed import Group
from embedcam.utils.resume import Parts
from embedcam.utils.shards import Shards


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 10)


def test_shards_begin_at_fixed_images():
    cut = Shards(Parts(), "embedded", 25)
    assert [cut.images(number) for number in range(len(cut))] == [range(10), range(10, 20), range(20, 25)]


def test_steps_are_finished_shard_by_shard():
    parts = Parts()
    one, other = Shards(parts, "embedded", 25), Shards(parts, "weighed", 25)
    one.write(1, values=np.arange(3), kept=np.array([4]))
    assert one.unfinished() == [0, 2]
    assert other.unfinished() == [0, 1, 2]
    np.testing.assert_array_equal(one.read(1)["values"], [0, 1, 2])
    assert list(one.read(1, "kept")) == ["kept"]


def test_every_shard_belongs_to_one_process():
    assert [Shards(Parts(), "embedded", 25, Group(rank, 2)).unfinished() for rank in range(2)] == [[0, 2], [1]]
