"""The verbs of galleries: an index, and a folder of explained matches, from the command line."""

import functools
import json
import os
import shutil
import sys

import faiss
import pytest
from PIL import Image

from embedcam import cli
from embedcam.cli import console
from embedcam.data import load
from embedcam.gallery import Gallery


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


def test_hits_of_another_search_are_explained_and_unknown_ones_named(run, folder, index, tmp_path):
    samples, out, hits = load(f"folder:{folder}@all"), tmp_path / "match", tmp_path / "hits.jsonl"
    hits.write_text(
        f'{{"query": "{samples.files[0].name}", "id": "<gone>"}}\n'
        f'{{"query": "{samples.files[0].name}", "id": "{samples.ids[4]}", "score": 7.5}}\n'
        f'{{"query": "{samples.files[13]}", "path": "nowhere.png"}}\n'
    )
    query = shutil.copy(samples.files[0], tmp_path)
    code, text, error = run("match", query, samples.files[13], "--index", index, "--hits", hits, "--out", out)
    assert code == 0, error
    assert f"<gone> is not explained: not in {index}" in error
    (line,) = map(json.loads, (out / "matches.jsonl").read_text().splitlines())
    assert (line["rank"], line["hit"], line["score"]) == (2, samples.ids[4], 7.5)
    page = (out / "matches.html").read_text()
    assert "has them: 1. &lt;gone&gt;</p>" in page
    assert "has them: 1. nowhere.png</p>" in page
    assert f"2. {samples.ids[4]}" in text


def test_hits_are_found_by_a_search_engine(run, folder, index, tmp_path):
    samples, out = load(f"folder:{folder}@all"), tmp_path / "match"
    with Gallery.open(index) as gallery:
        ((rows, _, embeddings),) = gallery.blocks()
    engine = faiss.IndexFlatIP(embeddings.shape[1])
    engine.add(embeddings)
    faiss.write_index(engine, str(tmp_path / "own.index"))
    found = []
    for options in ((), ("--searcher", f"faiss:{tmp_path / 'own.index'}")):
        code, _, error = run("match", samples.files[2], "--index", index, "--top", 4, "--out", out, *options)
        assert code == 0, error
        found.append([json.loads(line) for line in (out / "matches.jsonl").read_text().splitlines()])
    assert [line["hit"] for line in found[0]] == [line["hit"] for line in found[1]]
    assert [line["similarity"] for line in found[1]] == pytest.approx([line["score"] for line in found[1]], abs=1e-4)
    assert len(rows) == len(samples)


def test_indexes_are_merged(run, trained, folder, tmp_path):
    net, parts = trained / "net.safetensors", []
    for label in range(3):
        parts.append(tmp_path / f"{label}.h5")
        place = tmp_path / str(label) / f"kind{label}"
        shutil.copytree(folder / "images" / f"class{label}", place)
        assert run("index", "--net", net, "--data", f"folder:{place.parent}", "--out", parts[-1])[0] == 0
    code, text, error = run("index", "--merge", *parts, "--out", tmp_path / "all.h5")
    assert code == 0, error
    assert f"wrote {tmp_path / 'all.h5'}: 30 images" in text
    code, text, _ = run("inspect", tmp_path / "all.h5")
    assert "30, 3 labels" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("index --out o.h5", "give --net and --data, or --merge and indexes"),
        ("index a.h5 --net n --data d --out o.h5", "unexpected argument a.h5; indexes are merged with --merge"),
        ("index --merge --out o.h5", "--merge needs indexes"),
        ("index --merge a.h5 --data digits --out o.h5", "--data has no effect with --merge"),
        ("index --merge a.h5 --append --out o.h5", "--append has no effect with --merge"),
        ("match x.png --index o.h5 --searcher faiss:a --hits b", "give --searcher or --hits, not both"),
    ],
)
def test_options_that_do_not_go_together_are_named(run, words, message):
    code, _, error = run(*words.split())
    assert code == 2
    assert message in " ".join(error.replace("│", " ").split())


def test_a_merged_index_does_not_replace_what_it_reads(run, index):
    code, _, error = run("index", "--merge", index, "--out", index)
    assert code == 1
    assert "it would replace" in error


def test_an_index_does_not_replace_what_it_is_made_from(run, trained, folder, index, tmp_path):
    data = shutil.copytree(folder, tmp_path / "pictures")
    command = ("index", "--net", trained / "net.safetensors", "--data", f"folder:{data}")
    for options in (("--out", load(f"folder:{data}").files[0]), ("--like", index, "--out", index)):
        code, _, error = run(*command, *options)
        assert code == 1
        assert "it would replace" in error


def test_a_report_does_not_replace_the_index(run, trained, folder, index):
    query, page = load(f"folder:{folder}@all").files[0], index.rename(index.parent / "matches.html")
    code, _, error = run("match", query, "--index", page, "--out", page.parent)
    assert code == 1
    assert "it would replace" in error


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, file names are Unicode")
def test_a_query_may_have_a_name_that_is_not_utf8(run, folder, index, tmp_path):
    query = tmp_path / os.fsdecode(b"b\xff.png")
    shutil.copy(load(f"folder:{folder}@all").files[0], query)
    code, _, error = run("match", query, "--index", index, "--top", 1, "--out", tmp_path / "match")
    assert code == 0, error
    assert "b?.png" in (tmp_path / "match/matches.html").read_text()


def test_a_weight_database_is_no_index(run, trained, folder, tmp_path):
    query = load(f"folder:{folder}@all").files[0]
    code, _, error = run(
        "match", query, "--net", trained / "net.safetensors", "--index", trained / "weights.h5", "--out", tmp_path
    )
    assert code == 1
    assert "not a gallery" in error


def test_queries_that_cannot_be_read_are_left_out_with_a_warning(run, folder, index, tmp_path):
    (tmp_path / "queries").mkdir()
    broken, good = tmp_path / "queries/a.png", tmp_path / "queries/b.png"
    broken.write_text("no image")
    shutil.copy(load(f"folder:{folder}@all").files[2], good)
    options = ("--index", index, "--top", 2, "--out", tmp_path / "match")
    code, text, error = run("match", broken.parent, *options)
    assert code == 0, error
    assert "b.png: 1." in text and "skipped: " in error and "a.png is not an image" in error
    code, text, error = run("match", broken, *options)
    assert code == 1 and error.count("\n") == 1 and "a.png is not an image" in error
