"""Each benchmark runs once, small, as a user runs it; figures are looked at in `benchmarks/README.md`, not here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(tmp_path):
    """Run a benchmark in a process of its own; return what it printed and the rows it wrote."""

    def start(name, *options):
        out = tmp_path / "out.json"
        command = [sys.executable, str(BENCHMARKS / name), *map(str, options), "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        report = json.loads(out.read_text())
        assert {"embedcam", "python", "processor", "cores"} <= report.keys()
        return done.stdout, report["rows"]

    return start
