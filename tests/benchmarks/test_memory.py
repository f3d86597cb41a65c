import importlib
from pathlib import Path

import pytest

from embedcam import WeightDatabase

pytestmark = pytest.mark.docs

for needed in ("onnxruntime", "onnxscript"):
    pytest.importorskip(needed)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_work_does_what_it_is_named_after(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory = importlib.import_module("memory")
    memory.prepare(tmp_path, 400)
    for work, kept in (("build", True), ("build, no exemplars", False)):
        memory.SIZED_WORKS[work](tmp_path, 410)
        built = WeightDatabase.load(tmp_path / "built.h5")
        assert built.counts.sum() == 410
        assert (built.exemplars is not None) == kept
    memory.evaluate(tmp_path, 400)
    for explain_many_times in memory.EXPLAIN_WORKS.values():
        assert isinstance(explain_many_times(tmp_path, 3), float)


def test_peaks_are_compared_with_that_of_the_smallest_size(run):
    printed, (first, second) = run("memory.py", "--sizes", 400, 600, "--works", "build, no exemplars")
    assert (first["images"], second["images"]) == (400, 600)
    assert first["peak MB"] > 100
    assert first["x smallest"] == 1
    assert second["x smallest"] == second["peak MB"] / first["peak MB"]
    assert "| build, no exemplars " in printed
