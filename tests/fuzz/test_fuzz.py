"""Some hundred spoiled files with every test run; `make fuzz` uses many more."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from embedcam.errors import DataError

HERE = Path(__file__).parent


def test_spoiled_files_end_in_success_or_in_one_clear_error():
    command = [sys.executable, str(HERE / "fuzz.py"), "--inputs", "360", "--seed", "1", "--workers", "1"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [line.rsplit(maxsplit=6) for line in found.stdout.splitlines()[1:]]
    assert [int(row[1]) for row in rows] == [30] * 12
    # Some are harmless and some are not: otherwise the harness would miss what it is for.
    assert sum(int(row[2]) for row in rows) > 27, found.stdout
    assert all(int(row[3]) > 0 for row in rows), found.stdout


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module("fuzz")
    for name in ("fuzz", "targets", "mutations"):
        sys.modules.pop(name, None)


def test_the_same_number_gives_the_same_input(fuzz, tmp_path):
    kinds = list(fuzz.TARGETS)
    for number in range(len(kinds)):
        contents = []
        for _ in range(2):
            fuzz.run_one(number, 0, kinds, tmp_path)
            contents.append((tmp_path / f"input{fuzz.TARGETS[kinds[number]].suffix}").read_bytes())
        assert contents[0] == contents[1], kinds[number]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "accepted"),
        (DataError("mend it"), "refused"),
        (DataError("two\nlines"), "failed"),
        (DataError(""), "failed"),
        (ValueError("no error of embedcam"), "failed"),
        (MemoryError(), "failed"),
        (SystemExit(3), "failed"),
    ],
)
def test_only_one_clear_error_counts_as_refused(fuzz, tmp_path, monkeypatch, error, outcome):
    def use(path):
        if error is not None:
            raise error

    fake = fuzz.TARGETS["png"].__class__(lambda: [b"whole"], (lambda rng, content: content,), use, ".bin")
    monkeypatch.setitem(fuzz.TARGETS, "png", fake)
    assert fuzz.run_one(0, 0, ["png"], tmp_path)[0] == outcome
