import pytest

pytestmark = pytest.mark.docs

for needed in ("av", "onnxruntime", "onnxscript"):
    pytest.importorskip(needed)


def test_both_modes_are_timed_at_every_size(run):
    options = ("--sizes", 32, 64, "--frame", 80, 60, "--frames", 4, "--rounds", 2)
    printed, rows = run("video.py", *options)
    assert [(row["input"], row["mode"]) for row in rows] == [
        (size, mode) for size in (32, 64) for mode in ("heat map", "box")
    ]
    assert all(row["frames/s"]["value"] > 0 and row["CPU ms"]["value"] > 0 for row in rows)
    assert "| heat map " in printed
