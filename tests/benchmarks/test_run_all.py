import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run_all(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("run_all")


def start(*options):
    command = [sys.executable, str(BENCHMARKS / "run_all.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_table_is_written_between_its_marks_and_nothing_else_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- lookup: begin -->\nold\n<!-- lookup: end -->\nafter <!-- serve: begin -->\n")
    done = start("--quick", "--only", "lookup", "--readme", readme)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lookup: made in ")
    before, _, rest = readme.read_text().partition("<!-- lookup: begin -->\n")
    table, _, after = rest.partition("<!-- lookup: end -->\n")
    assert (before, after) == ("before\n", "after <!-- serve: begin -->\n")
    lines = table.splitlines()
    assert lines[:1] + lines[2:4] == ["```sh", "```", ""]
    assert lines[1].startswith("python benchmarks/lookup.py --sizes 500 ")
    blank = lines.index("", 4)
    for name in ("embedcam ", "python ", "processor ", "cores "):
        assert name in " ".join(lines[4:blank])
    assert max(map(len, lines[4:blank])) < 120
    assert lines[blank + 1].startswith("| data ")
    assert "old" not in table


def test_a_table_that_cannot_be_made_stays_and_is_named(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(old := "<!-- localization: begin -->\nold\n<!-- localization: end -->\n")
    done = start("--only", "localization", "--net", "n", "--data", "d", "--readme", readme)
    assert done.returncode == 1
    assert done.stdout == "localization: left out, it needs --db\n"
    assert "these tables were not made: localization" in done.stderr
    assert readme.read_text() == old
    done = start("--only", "match", "--readme", readme)
    assert "has no mark <!-- match: begin -->" in done.stderr


def test_a_benchmark_that_fails_or_runs_too_long_leaves_its_table(run_all, tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(old := "<!-- match: begin -->\nold\n<!-- match: end -->\n")
    for minutes, arguments, said in ((1e-4, "--images 50", "not made within"), (60, "--images x", "failed")):
        monkeypatch.setitem(run_all.TABLES, "match", run_all.Table("match.py", minutes, arguments, None))
        assert not run_all.make("match", readme, {}, quick=False)
        assert f"match: {said}" in capsys.readouterr().out
    assert readme.read_text() == old


def test_all_limits_add_up_to_an_hour_and_all_marks_are_there(run_all):
    tables = run_all.TABLES
    assert sum(table.minutes for table in tables.values() if not table.gpu) <= 60
    text = (BENCHMARKS / "README.md").read_text()
    for name in tables:
        assert all(text.count(mark) == 1 for mark in run_all.marks(name))


def test_every_file_of_a_command_has_an_option(run_all):
    for table in run_all.TABLES.values():
        assert (BENCHMARKS / table.script).is_file()
        assert "{" not in table.full.format(**run_all.FILES)
        assert "{" not in (table.quick or "")
