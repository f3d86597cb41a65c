import pytest

pytestmark = pytest.mark.docs


def test_every_way_to_the_weights_is_timed(run):
    options = (
        "--backbone",
        "tiny",
        "--image-size",
        32,
        "--images",
        60,
        "--loop-images",
        2,
        "--pairs",
        3,
        "--rounds",
        2,
    )
    printed, rows = run("build_throughput.py", *options)
    assert [row["work"] for row in rows] == [
        "embedding alone",
        "build",
        "build, Grad-CAM++",
        "build, finer weights",
        "build without embedding",
        "index",
        "reading, one core",
        "Pillow, one core",
        "loop, head",
        "loop, network",
    ]
    assert all(row["images/s"]["value"] > 0 for row in rows)
    assert rows[0]["x embedding's throughput"]["value"] == 1
    assert "| build " in printed


def test_pictures_in_memory_are_timed_without_loops(run):
    options = ("--backbone", "tiny", "--image-size", 32, "--images", 60, "--loop-images", 0, "--rounds", 1)
    printed, rows = run("build_throughput.py", "--in-memory", *options)
    assert "loop, head" not in printed.replace("x loop, head", "")
    assert {"build", "index"} <= {row["work"] for row in rows}
