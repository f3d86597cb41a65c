"""Runs that are killed, and go on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHILD = Path(__file__).with_name("interrupted.py").read_text(encoding="utf-8")
KILLED = 137  # the exit code of `interrupted.py`; not every system has signals


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 13 pictures, of which two, in different batches, cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(13):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    for number in (3, 6):
        (folder / f"{number:02d}.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def run(forks):
    """Explain in a process of its own that is killed at its `moment`-th file operation; give what it printed."""

    def run(pictures, out, moment=0):
        done = forks.run(CHILD, pictures, out, moment)
        assert done.returncode == (KILLED if moment else 0), done.stderr
        return done.stdout

    return run


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(run, pictures, tmp_path_factory):
    """What an uninterrupted run writes, and how many file operations it takes."""
    out = tmp_path_factory.mktemp("whole")
    operations = int(run(pictures, out))
    return content(out), operations


def test_an_uninterrupted_run_explains_every_readable_picture(whole):
    files, _ = whole
    lines = [json.loads(line) for line in files[Path("explanations.jsonl")].splitlines()]
    assert [Path(line["image"]).stem for line in lines] == [f"{n:02d}" for n in range(13) if n not in (3, 6)]
    assert [line["distance"] for line in lines] == [40, 41, 42, 43] * 2 + [30, 31, 32]  # batches of 4, 4 and 3
    assert len(files) == 2 * 11 + 2


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_any_two_moments_ends_as_if_it_had_not_been(run, pictures, whole, tmp_path, seed):
    files, operations = whole
    moments = np.random.default_rng(seed).integers(1, [operations + 1, operations // 4])
    for moment in moments.tolist():
        run(pictures, tmp_path, moment)
    run(pictures, tmp_path)
    assert content(tmp_path) == files


@pytest.mark.parametrize("before_the_end", [6, 8, 10])
def test_a_run_killed_while_it_finishes_draws_the_same_contact_sheet(run, pictures, whole, tmp_path, before_the_end):
    files, operations = whole
    run(pictures, tmp_path, operations - before_the_end)
    assert (tmp_path / "explanations.jsonl.parts" / "batch-0000002.npz").exists()
    assert int(run(pictures, tmp_path)) < operations // 2  # finished batches are not written again
    assert content(tmp_path) == files


@pytest.mark.parametrize("before_the_end", [1, 3, 4])
def test_a_run_killed_while_it_removes_its_parts_has_its_result(run, pictures, whole, tmp_path, before_the_end):
    files, operations = whole
    run(pictures, tmp_path, operations - before_the_end)
    assert content(tmp_path).items() >= files.items()
    run(pictures, tmp_path)
    assert content(tmp_path) == files
