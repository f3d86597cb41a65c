"""The verbs of galleries: an index, and a folder of explained matches, from the command line."""

import functools
import json
import shutil

import pytest
from PIL import Image

from embedcam import cli
from embedcam.cli import console
from embedcam.data import load


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = console.run(functools.partial(cli.app, [str(a) for a in arguments]), debug=False)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def index(run, trained, folder, tmp_path):
    code, out, _ = run(
        "index", "--net", trained / "net.safetensors", "--data", f"folder:{folder}", "--out", tmp_path / "gallery.h5"
    )
    assert code == 0, out
    return tmp_path / "gallery.h5"


def test_a_query_is_matched_and_explained(run, trained, folder, index, tmp_path):
    samples, out = load(f"folder:{folder}@all"), tmp_path / "match"
    code, text, error = run(
        "match",
        samples.files[2],
        "--index",
        index,
        "--top",
        3,
        "--versus",
        "--out",
        out,
    )
    assert code == 0, error
    lines = [json.loads(line) for line in (out / "matches.jsonl").read_text().splitlines()]
    assert [line["rank"] for line in lines] == [1, 2, 3]
    assert lines[0]["hit"] == samples.ids[2]
    assert lines[0]["similarity"] == pytest.approx(1, abs=1e-4)
    for line in lines:
        for side in ("query", "hit"):
            assert sum(map(sum, line["contributions"][side])) + line["rest"][side] == pytest.approx(
                line["similarity"], abs=1e-4
            )
    difference = lines[2]["first_rather_than_this"]
    total = sum(map(sum, difference["contributions"])) + difference["rest"]
    assert total == pytest.approx(lines[0]["similarity"] - lines[2]["similarity"], abs=1e-4)
    with Image.open(out / lines[0]["sheet"]) as sheet:
        assert sheet.width > 3 * 240
    page = (out / "matches.html").read_text()
    assert page.count("data:image/jpeg") == 12
    assert "http" not in page
    assert samples.ids[2] in text


def test_an_index_is_inspected(run, index):
    code, text, _ = run("inspect", index)
    assert code == 0
    assert "Images" in text and "cells" in text


def test_hits_whose_file_is_gone_are_named(run, trained, folder, tmp_path):
    copy, net = shutil.copytree(folder, tmp_path / "pictures"), trained / "net.safetensors"
    index, out = tmp_path / "gallery.h5", tmp_path / "match"
    assert run("index", "--net", net, "--data", f"folder:{copy}", "--out", index)[0] == 0
    query = load(f"folder:{folder}@all").files[0]
    shutil.rmtree(copy)
    code, _, error = run("match", query, "--net", net, "--index", index, "--top", 2, "--out", out)
    assert code == 0, error
    assert "left out" in error
    assert (out / "matches.html").read_text().count("no picture") == 4


def test_a_weight_database_is_no_index(run, trained, folder, tmp_path):
    query = load(f"folder:{folder}@all").files[0]
    code, _, error = run(
        "match", query, "--net", trained / "net.safetensors", "--index", trained / "weights.h5", "--out", tmp_path
    )
    assert code == 1
    assert "not a gallery" in error
