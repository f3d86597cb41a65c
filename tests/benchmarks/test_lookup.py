import pytest

pytestmark = pytest.mark.docs


def test_both_ways_are_timed_where_there_are_many_exemplars(run):
    options = ("--sizes", 500, 1500, "--dim", 4096, "--classes", 20, "--queries", 30, "--rounds", 2)
    printed, rows = run("lookup.py", *options)

    exact = [row for row in rows if row["method"] == "exact"]
    cells = [row for row in rows if row["method"] == "inverted file"]
    assert [(row["exemplars"], row["data"], row["batch"]) for row in exact] == [
        (size, data, batch)
        for size in (500, 1500)
        for data in ("classes", "new classes", "uniform")
        for batch in (1, 16)
    ]
    assert {(row["exemplars"], row["data"]) for row in cells} == {(1500, "classes"), (1500, "new classes")}
    assert all(row["recall"] == 1 for row in exact)
    assert all(row["recall"] > 0.9 for row in cells)
    assert all(row["bytes"] >= row["exemplars"] * 4096 * 4 for row in rows)
    assert all(row["ms/query"]["value"] > 0 for row in rows)
    assert "| inverted file " in printed
