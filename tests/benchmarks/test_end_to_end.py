import pytest

pytestmark = pytest.mark.docs

RUNS, PARTS = ["end to end"] * 2, ["reading and preparing", "explaining", "drawing and writing"]


def test_both_sizes_and_every_part_are_timed(run):
    options = ("--backbone", "tiny", "--image-size", 32, "--images", 12, "--batch-size", 3)
    printed, rows = run("end_to_end.py", *options)
    assert [row["work"] for row in rows] == RUNS + PARTS
    assert [row["images"] for row in rows] == [3, 12, 12, 12, 12]
    for row in rows[:2]:
        assert row["images/s"] > 0
        assert 0 < row["busy %"] <= 110  # clocks of different kinds
        assert row["peak MB"] > 50
    assert sum(row["share %"] for row in rows[2:]) == pytest.approx(100)
    assert "| end to end " in printed
