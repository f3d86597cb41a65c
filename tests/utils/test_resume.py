import json

import numpy as np
import pytest

from embedcam.errors import OutputError
from embedcam.utils import resume
from embedcam.utils.distributed import Group
from embedcam.utils.locks import locked
from embedcam.utils.resume import Parts, SavedParts, work_folder

RUN = {"network": "abc", "size": (2, 3), "seed": 0}
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(params=["memory", "folder"])
def parts(request, tmp_path):
    return Parts() if request.param == "memory" else SavedParts(tmp_path / "parts", RUN)


def test_a_part_is_there_once_it_is_written(parts):
    assert "a" not in parts
    parts.write("a", values=VALUES, count=np.array(3))
    assert "a" in parts
    np.testing.assert_array_equal(parts.read("a")["values"], VALUES)
    assert list(parts.read("a", "count")) == ["count"]
    parts.write("a", values=VALUES + 1)
    np.testing.assert_array_equal(parts.read("a")["values"], VALUES + 1)


@pytest.mark.parametrize("small", [0, 2**20])
def test_rows_are_stored_once_and_read_in_any_order(parts, monkeypatch, small):
    monkeypatch.setattr(resume, "_SMALL", small)
    values = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    parts.rows("rows", iter([values[:8], values[8:8], values[8:]]), 3)
    rows = parts.rows("rows", iter([]), 3)
    indices = np.array([[19, 0, 0], [7, 19, 3]])
    np.testing.assert_array_equal(rows[indices], values[indices])


def test_resuming_keeps_the_parts_and_starting_again_does_not(tmp_path):
    SavedParts(tmp_path, RUN).write("a", values=VALUES)
    assert "a" in SavedParts(tmp_path, RUN, resume=True)
    assert "a" not in SavedParts(tmp_path, RUN)


def test_resuming_without_an_interrupted_run_starts_one(tmp_path):
    assert "a" not in SavedParts(tmp_path / "new", RUN, resume=True)


def test_the_work_of_another_run_is_refused_and_left_as_it_is(tmp_path):
    SavedParts(tmp_path, RUN).write("a", values=VALUES)
    with pytest.raises(OutputError, match=r"another run \(size \[2, 3\] then, \[2, 4\] now; seed 0 then, 1 now\); use"):
        SavedParts(tmp_path, {**RUN, "seed": 1, "size": (2, 4)}, resume=True)
    assert "a" in SavedParts(tmp_path, RUN, resume=True)


def test_a_folder_that_not_all_processes_see_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Group, "wait", lambda self: None)
    with pytest.raises(OutputError, match=r"process 1 does not find in .* that all processes share"):
        SavedParts(tmp_path / "elsewhere", RUN, group=Group(1, 2))


def test_a_damaged_part_is_named(tmp_path):
    parts = SavedParts(tmp_path, RUN)
    parts.write("a", values=VALUES)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(OutputError, match=r"a.npz cannot be read: .*; remove it and resume"):
        parts.read("a")


def test_objects_are_never_unpickled(tmp_path):
    parts = SavedParts(tmp_path, RUN)
    np.savez(tmp_path / "a.npz", values=np.array([{"a": 1}], dtype=object))
    with pytest.raises(OutputError, match="cannot be read"):
        parts.read("a")


def test_a_damaged_description_counts_as_no_run(tmp_path):
    SavedParts(tmp_path, RUN).write("a", values=VALUES)
    (tmp_path / "run.json").write_text(json.dumps([1]))
    assert "a" not in SavedParts(tmp_path, RUN, resume=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        SavedParts(tmp_path / "file", RUN)


def test_the_work_folder_is_gone_at_the_end(tmp_path):
    with work_folder(tmp_path / "out.h5") as work:
        SavedParts(work, RUN).write("a", values=VALUES)
        with pytest.raises(OutputError, match="another process"), locked(tmp_path / "out.h5"):
            pass
        assert work == tmp_path / "out.h5.parts"
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_the_work_folder_only_with_finished_parts(tmp_path):
    for finished in (False, True):
        with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "out.h5") as work:
            parts = SavedParts(work, RUN)
            (work / ".a.0123abcd.npz").touch()  # as `atomic_path` names an unfinished file
            if finished:
                parts.write("a", values=VALUES)
            raise KeyboardInterrupt
        assert work.exists() == finished


def test_other_processes_leave_the_work_folder_to_the_first(tmp_path):
    with work_folder(tmp_path / "out.h5") as work:
        SavedParts(work, RUN)
        with work_folder(tmp_path / "out.h5", Group(1, 2)) as shared:
            assert shared == work
        assert work.exists()
