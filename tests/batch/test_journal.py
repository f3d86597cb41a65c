import json

import pytest

from embedcam.batch.journal import Journal
from embedcam.utils.resume import Parts, SavedParts

BATCHES = [(2, [{"image": "a", "heat": 0.1}, {"image": "b", "heat": 1e-9}]), (5, [{"image": "d"}, {"image": "ü"}])]


@pytest.fixture(params=["memory", "folder"])
def parts(request, tmp_path):
    return Parts() if request.param == "memory" else SavedParts(tmp_path / "parts", {})


def test_a_run_is_resumed_after_its_last_batch(parts):
    journal = Journal(parts)
    for batch in BATCHES:
        journal.add(*batch)
    assert (journal.done, journal.count) == (5, 4)

    journal = Journal(parts)
    assert (journal.done, journal.count) == (5, 4)
    assert list(journal.lines()) == [line for _, lines in BATCHES for line in lines]


def test_a_batch_may_have_no_readable_image(parts):
    Journal(parts).add(3, [])
    journal = Journal(parts)
    assert (journal.done, journal.count, list(journal.lines())) == (3, 0, [])


def test_finishing_writes_the_lines(parts, tmp_path):
    journal = Journal(parts)
    for batch in [*BATCHES, (6, [{"image": "f"}])]:
        journal.add(*batch)
    lines = journal.finish(tmp_path / "a.jsonl")

    expected = [line for _, batch in BATCHES for line in batch] + [{"image": "f"}]
    assert len(lines) == 5
    assert list(lines) == list(lines) == expected
    assert lines.path.read_text() == "".join(json.dumps(line) + "\n" for line in expected)
