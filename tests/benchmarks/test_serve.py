import pytest

pytestmark = pytest.mark.docs


def test_no_request_is_lost_with_few_and_many_clients(run):
    printed, rows = run("serve.py", "--clients", 1, 20, "--requests", 20, "--rounds", 2)
    assert [(row["explainer"], row["clients"]) for row in rows] == [("torch", 1), ("torch", 20)]
    for row in rows:
        assert (row["requests"], row["lost"]) == (40, 0)
        assert 0 < row["p50 s"] <= row["p95 s"] <= row["p99 s"] <= row["slowest s"]
        assert row["answers/s"] > 0
        assert row["CPU ms"] > 0
        assert row["MB before"] > 0
    assert rows[1]["MB before"] == rows[0]["MB after"]
    assert "| slowest s |" in printed
