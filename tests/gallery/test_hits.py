"""Hits from anywhere join the index by id or path; what it lacks is explained from its picture, or named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedcam.errors import DataError
from embedcam.gallery import Hit
from embedcam.gallery.hits import HitsFile


def test_hits_join_the_index_by_id_row_or_path(indexed):
    gallery, samples, _ = indexed
    path = str(samples.files[5])
    hits = [Hit(samples.ids[4], 0.5), Hit(5), Hit("other", 0.1, path), Hit(path)]
    matches = gallery.explain_hits([samples.image(0)], [hits], ids=["query"])
    assert [match.hit.id for match in matches[0]] == [samples.ids[4], *3 * [samples.ids[5]]]
    assert [match.score for match in matches[0]] == [0.5, None, 0.1, None]
    (query,) = gallery.see([samples.image(0)], ["query"])
    expected = gallery.explain_match(query, 5)
    assert matches[0][1].similarity == pytest.approx(expected.similarity, abs=1e-6)
    assert matches.queries[0].id == "query"
    assert matches.missing == [{}]


def test_a_hit_outside_of_the_index_is_explained_from_its_picture(indexed, tmp_path):
    gallery, samples, _ = indexed
    new = tmp_path / "new.png"
    shutil.copy(samples.files[5], new)
    queries = gallery.see([samples.image(0)])
    (known, by_path, by_id) = gallery.explain_hits(queries, [[Hit(5), Hit("new", 0.3, str(new)), Hit(str(new))]])[0]
    assert (by_path.hit.id, by_path.hit.path) == ("new", str(new))
    assert (by_id.hit.id, by_id.hit.path) == (str(new), str(new))
    assert by_path.similarity == pytest.approx(known.similarity, abs=1e-5)
    scale = float(np.abs(known.contributions("hit")).max())
    assert np.allclose(by_path.contributions("hit"), known.contributions("hit"), atol=2e-2 * scale)
    assert abs(by_path.rest("hit")) <= 1e-4 * max(scale, 1)  # not rounded to 8 bits


def test_hits_without_cells_and_picture_are_named_at_their_rank(indexed, caplog, tmp_path):
    gallery, samples, _ = indexed
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    hits = [Hit("gone"), Hit(0), Hit(99), Hit(-1), Hit("x", None, str(broken)), Hit("\0"), Hit(1)]
    matches = gallery.explain_hits([samples.image(0)], [hits])
    assert [match.hit.id for match in matches[0]] == [samples.ids[0], samples.ids[1]]
    assert list(matches.missing[0]) == [1, 3, 4, 5, 6]
    assert f"gone and 4 more hits are not explained: not in {gallery.path}" in caplog.text


def test_hits_are_given_for_each_image(indexed):
    gallery, samples, _ = indexed
    with pytest.raises(DataError, match="got hits of 2 queries for 1 images"):
        gallery.explain_hits([samples.image(0)], [[], []])
    assert gallery.explain_hits([samples.image(0)], [[]]).hits == [[]]


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_hits_are_read_by_query(tmp_path):
    file = write(
        tmp_path / "hits.jsonl",
        {"query": "a.png", "id": "x", "score": 0.5},
        {"query": "b.png", "path": "y.png"},
        "",
        {"query": "a.png", "id": 3, "path": "z.png", "score": 1, "more": [1]},
    )
    found = HitsFile(file).of(["a.png", "else"], [Path("a.png"), Path("b.png")])
    assert found == [[Hit("x", 0.5), Hit(3, 1, "z.png")], [Hit("y.png", None, "y.png")]]
    file = write(tmp_path / "one.jsonl", {"id": "x"})
    assert HitsFile(file).of(["q"], [Path("q")]) == [[Hit("x")]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "hits.jsonl has no hits; write one hit per line"),
        (["x"], "hits.jsonl, line 1: it is not JSON"),
        (["[" * 100_000], "hits.jsonl, line 1: it is not JSON"),
        (['{"id": "a"}', "[1]"], "line 2: it is not an object; write one hit per line"),
        (['{"name": "a"}'], 'line 1: it has neither "id" nor "path"; write one hit per line'),
        (['{"id": ""}'], 'line 1: it has neither "id" nor "path"'),
        (['{"id": 1.5}'], "line 1: 'id' is 1.5, expected a text or an integer"),
        (['{"id": true}'], "'id' is true, expected"),
        (['{"path": 3}'], "'path' is 3, expected a text"),
        (['{"id": "a", "score": "high"}'], "'score' is \"high\", expected an integer or a finite number"),
        (['{"id": "a", "score": NaN}'], "'score' is NaN"),
        (['{"id": "a", "query": 3}'], "'query' is 3, expected a text"),
        (['{"id": "a", "query": "q"}', '{"id": "a"}'], 'some lines of .* have a "query" and others not'),
        (['{"id": "a"}'], 'have no "query"; give it for 2 queries'),
        (['{"id": "a", "query": "q"}'], "has no hits of one; its queries are such as 'q'"),
    ],
)
def test_wrong_lines_are_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        HitsFile(write(tmp_path / "hits.jsonl", *lines)).of(["one", "two"], [Path("1.png"), Path("2.png")])


def test_a_missing_file_of_hits_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        HitsFile(tmp_path / "none.jsonl")
