import pytest

pytestmark = pytest.mark.docs


def test_requests_at_once_are_answered_and_memory_is_looked_at(run):
    printed, rows = run("serve.py", "--requests", 20, "--rounds", 2)
    assert [row["round"] for row in rows] == [1, 2]
    for row in rows:
        assert (row["requests"], row["lost"]) == (20, 0)
        assert 0 < row["median s"]["value"] <= row["slowest s"]
        assert row["answers/s"] > 0
        assert row["MB before"] > 0
    assert rows[1]["MB before"] == rows[0]["MB after"]
    assert "| slowest s |" in printed
