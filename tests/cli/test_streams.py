"""The command line writes its files whoever reads what it prints, and no output replaces an input."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from embedcam import cli
from embedcam.cli import console

GOLDEN = Path(__file__).parents[1] / "golden" / "weights-1.0.0.h5"
# Runs the command line with a standard output that nobody reads any more.
LEFT = """
import os, sys
from embedcam.cli import main
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
main()
"""
NO_TEMPORARY_FOLDER = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/nowhere"]
from embedcam.cli import main
main()
"""


def start(*arguments, code="from embedcam.cli import main\nmain()", **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.fixture
def evaluation(trained, folder):
    return (
        "evaluate",
        "--net",
        trained / "net.safetensors",
        "--db",
        trained / "weights.h5",
        "--data",
        f"folder:{folder}",
    )


@pytest.mark.parametrize("arguments", [("--help",), ("inspect", GOLDEN)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(arguments, unbuffered):
    done = start(*arguments, code=LEFT, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (141, "")


def test_files_are_written_although_nobody_reads_the_table(evaluation, tmp_path):
    done = start(*evaluation, "--json", tmp_path / "scores.json", code=LEFT)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_for_standard_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = start("inspect", GOLDEN, stdout=full)
    assert done.returncode == 141
    assert done.stderr.splitlines() == ["embedcam: cannot write to standard output: No space left on device"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_error(closed):
    command = f'"{sys.executable}" -m embedcam inspect "{GOLDEN}" {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_temporary_folder_is_named_not_a_damaged_network(trained, folder, tmp_path):
    net = ("--net", trained / "net.safetensors", "--db", trained / "weights.h5")
    image = folder / "images" / "class0" / "00.png"
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = start("explain", *net, image, "--out", tmp_path / "out", code=NO_TEMPORARY_FOLDER, env=environment)
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert "No usable temporary directory found" in error
    assert "set TMPDIR" in error or "TMPDIR is a folder that can be written" in error


@pytest.mark.parametrize("allocate", [np.empty, torch.empty])
def test_too_little_memory_is_one_line(allocate, capsys):
    assert console.run(lambda standalone_mode: allocate(2**50), debug=False) == 1
    error = capsys.readouterr().err
    assert error.startswith("embedcam: not enough memory: ")
    assert error.endswith("use smaller images or batches, or another --device\n")


def test_a_device_as_output_stays_a_device(evaluation):
    done = start(*evaluation, "--json", os.devnull)
    assert done.returncode == 0, done.stderr
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("output", ["net.safetensors", "weights.h5"])
@pytest.mark.parametrize("verb", ["evaluate", "export", "build"])
def test_an_output_that_is_an_input_is_refused(trained, folder, tmp_path, monkeypatch, capsys, verb, output):
    for name in ("net.safetensors", "weights.h5"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    if verb == "build" and output == "weights.h5":
        output = "in/images/class0/00.png"
    shutil.copytree(folder, tmp_path / "in")
    before = (tmp_path / output).read_bytes()
    options = {
        "evaluate": ("--db", tmp_path / "weights.h5", "--data", f"folder:{tmp_path / 'in'}", "--json"),
        "export": ("--db", tmp_path / "weights.h5", "--out"),
        "build": ("--data", f"folder:{tmp_path / 'in'}", "--out"),
    }
    words = [verb, "--net", tmp_path / "net.safetensors", *options[verb], tmp_path / output]
    monkeypatch.setattr(console.progress, "_shown", False)  # put back after the test
    handler = signal.getsignal(signal.SIGTERM)
    code = console.run(functools.partial(cli.app, list(map(str, words))), debug=False)
    signal.signal(signal.SIGTERM, handler)
    assert code == 1
    assert "it would replace" in capsys.readouterr().err
    assert (tmp_path / output).read_bytes() == before
