import json

import numpy as np
import pytest

from embedcam.builder import shards
from embedcam.builder.shards import Rows, Shards
from embedcam.errors import DatabaseError
from embedcam.utils.distributed import Group

ABOUT = {"network": "abc", "seed": 0}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 10)


def work(folder, about=ABOUT, images=25, group=None, resume=False):
    return Shards(folder, images, about, group or Group(), resume=resume)


def test_shards_cut_the_data_set_at_fixed_places(tmp_path):
    cut = work(tmp_path)
    assert [list(cut.rows(number)) for number in range(len(cut))] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]


def test_what_is_written_is_done_and_read_back(tmp_path):
    cut = work(tmp_path)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    cut.write("embedded", 1, embeddings=values, kept=np.array([3, 4]))
    assert list(cut.unfinished("embedded")) == [0, 2]
    np.testing.assert_array_equal(cut.read("embedded", 1)["embeddings"], values)
    assert list(cut.read("embedded", 1, "kept")) == ["kept"]
    assert not cut.done("gathered")
    cut.write("gathered", kept=values)
    assert cut.done("gathered")


def test_every_shard_belongs_to_one_process(tmp_path):
    alone = work(tmp_path)
    groups = [Group(rank, 2) for rank in range(2)]
    mine = []
    for group in groups:
        alone._group = group
        mine.append(list(alone.unfinished("embedded")))
    assert mine == [[0, 2], [1]]


def test_resuming_keeps_what_is_there_and_beginning_anew_does_not(tmp_path):
    work(tmp_path).write("embedded", 0, kept=np.array([1]))
    assert list(work(tmp_path, resume=True).unfinished("embedded")) == [1, 2]
    assert list(work(tmp_path).unfinished("embedded")) == [0, 1, 2]


def test_resuming_where_nothing_was_begun_begins(tmp_path):
    assert list(work(tmp_path / "new", resume=True).unfinished("embedded")) == [0, 1, 2]


def test_the_work_of_another_run_is_refused(tmp_path):
    work(tmp_path)
    with pytest.raises(DatabaseError, match=r"another run \(seed 0 then, 1 now\); start again without --resume"):
        work(tmp_path, {**ABOUT, "seed": 1}, resume=True)
    with pytest.raises(DatabaseError, match="images 25 then, 26 now"):
        work(tmp_path, images=26, resume=True)


def test_a_folder_that_not_all_processes_see_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Group, "wait", lambda self: None)
    with pytest.raises(DatabaseError, match=r"process 1 does not find in .* that all processes share"):
        work(tmp_path / "elsewhere", group=Group(1, 2))


def test_a_damaged_shard_is_named(tmp_path):
    cut = work(tmp_path)
    cut.write("embedded", 0, kept=np.arange(5))
    path = tmp_path / "embedded-0000000.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DatabaseError, match=r"embedded-0000000.npz cannot be read: .*; remove it and go on"):
        cut.read("embedded", 0)


def test_objects_are_never_unpickled(tmp_path):
    cut = work(tmp_path)
    np.savez(tmp_path / "gathered.npz", kept=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DatabaseError, match="cannot be read"):
        cut.read("gathered")


def test_a_damaged_description_counts_as_nothing_begun(tmp_path):
    work(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps([1]))
    assert list(work(tmp_path, resume=True).unfinished("embedded")) == [0, 1, 2]


@pytest.mark.parametrize("small", [0, 2**20])
def test_rows_are_those_of_the_file_in_any_order(tmp_path, monkeypatch, small):
    monkeypatch.setattr(shards, "_SMALL", small)
    values = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    values.tofile(tmp_path / "rows")
    wanted = np.array([[19, 0, 0], [7, 19, 3]])
    np.testing.assert_array_equal(Rows(tmp_path / "rows", 3)[wanted], values[wanted])
