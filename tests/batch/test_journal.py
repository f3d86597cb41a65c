import json

import pytest

from embedcam.batch.journal import Journal, remove_unfinished
from embedcam.errors import OutputError

RUN = {"images": "ab", "batch_size": 2, "boxes": False, "alpha": 0.5}
BATCHES = [(2, [{"image": "a", "heat": 0.1}, {"image": "b", "heat": 1e-9}]), (5, [{"image": "d"}, {"image": "ü"}])]


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "a.journal", RUN) as journal:
        for batch in BATCHES:
            journal.add(*batch)
    return tmp_path / "a.journal"


def test_a_run_goes_on_where_it_stood(path):
    journal = Journal(path, RUN, resume=True)
    assert (journal.done, journal.count, journal.interrupted) == (5, 4, True)
    assert list(journal.lines()) == [line for _, lines in BATCHES for line in lines]


def test_wherever_the_file_ends_only_whole_batches_count(path):
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = Journal(path, RUN, resume=True)
        finished = max(sum(end <= length for end in ends) - 1, 0)
        assert (journal.done, journal.count) == [(0, 0), (2, 2), (5, 4)][finished]
        for batch in BATCHES[finished:]:
            journal.add(*batch)
        assert path.read_bytes() == whole


def test_finishing_writes_the_lines_and_removes_the_journal(path):
    with Journal(path, RUN, resume=True) as journal:
        journal.add(6, [{"image": "f"}])
        lines = journal.finish(path.with_name("a.jsonl"))
    assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]
    assert len(lines) == 5
    expected = [line for _, batch in [*BATCHES, (6, [{"image": "f"}])] for line in batch]
    assert list(lines) == list(lines) == expected
    assert lines.path.read_text() == "".join(json.dumps(line) + "\n" for line in expected)


def test_without_resuming_an_older_journal_is_replaced(path):
    journal = Journal(path, {**RUN, "batch_size": 3})
    assert (journal.done, journal.count, journal.interrupted) == (0, 0, True)
    assert list(journal.lines()) == []


def test_another_run_is_refused_and_left_as_it_is(path):
    before = path.read_bytes() + b'{"torn'
    path.write_bytes(before)
    with pytest.raises(OutputError) as refused:
        Journal(path, {**RUN, "batch_size": 3, "alpha": 0.25}, resume=True)
    assert f"{path} is of another run (batch_size 2 then, 3 now; alpha 0.5 then, 0.25 now); resume" in str(
        refused.value
    )
    assert path.read_bytes() == before


HEADER = b'{"embedcam-journal": 1, "run": %s}\n'
DAMAGED = [b"no json\n", b"[]\n", b'{"run": {}}\n', HEADER.replace(b"1", b"2") % b"{}", HEADER % b"3"]


@pytest.mark.parametrize("damaged", [*DAMAGED, HEADER % b"{}" + b'{"done": 2}\n'])
def test_a_damaged_journal_is_named(tmp_path, damaged):
    (tmp_path / "a.journal").write_bytes(damaged)
    with pytest.raises(OutputError, match=r"a\.journal is not a readable journal: .*; start again, without resuming"):
        Journal(tmp_path / "a.journal", {}, resume=True)


def test_a_journal_without_a_finished_batch_does_not_stay(tmp_path):
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "a.journal", RUN) as journal:
        assert not journal.interrupted
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a.journal").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*a\.journal"):
        Journal(tmp_path / "a.journal", RUN)
    with pytest.raises(OutputError, match=r"cannot resume from .*a\.journal"):
        Journal(tmp_path / "a.journal", RUN, resume=True)


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    for name in ("a.png", ".a.png", ".a.0123abcd.png", ".a.b.89ef0123.npz", ".a.jsonl.0123abcd", "a.0123abcd.png"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.png", "a.0123abcd.png", "a.png"]
