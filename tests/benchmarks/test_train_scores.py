import pytest

pytestmark = pytest.mark.docs


def test_the_scores_of_an_epoch_are_timed(run):
    printed, rows = run("train_scores.py", "--brief")
    assert [row["score"] for row in rows] == ["Recall@1, MAP@R", "NMI", "embedding"]
    assert all(row["seconds"] >= 0 for row in rows)
    assert all(0 < row["value"] <= 1 for row in rows[:2])
    assert "ms per trained image" in printed
