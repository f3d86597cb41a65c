import pytest

pytestmark = pytest.mark.docs


def test_ten_hits_are_explained_and_compared(run):
    printed, rows = run("match.py", "--images", 50, "--backbone", "tiny", "--image-size", 32, "--rounds", 2)
    assert len(rows) == 5
    assert all(row["ms"]["value"] > 0 for row in rows)
    assert rows[-1]["grad-cam / this"]["value"] == 1
    assert "| ten hits explained and drawn" in printed
