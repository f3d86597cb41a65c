import json

import numpy as np
import pytest
from stamped import colour_net, write_pictures

from embedcam.data import load
from embedcam.evaluate.bias import pairs, summarise
from embedcam.evaluate.errors import _margins, count_failures, failures
from embedcam.evaluate.objects import Objects
from embedcam.evaluate.pages import write_bias, write_errors
from embedcam.evaluate.search import search, side_of_index
from embedcam.gallery import Gallery, index

READING = {"batch_size": 4, "workers": 0}


@pytest.fixture(params=[True, False], ids=["masks", "border"])
def searched(request, tmp_path):
    """Pictures of which one has the stamp of another class, and its failure."""
    spec, net = write_pictures(tmp_path / "pictures", stamped=True, masks=request.param), colour_net()
    samples, path = load(spec), tmp_path / "gallery.h5"
    index(net, samples, path, workers=0)
    references = side_of_index(path, samples)
    found = search(net, samples, references, **READING)
    with Gallery.open(path, net) as gallery:
        yield found, references, gallery, Objects(samples)


def test_the_wrong_stamp_is_the_failure(searched):
    found, references, gallery, objects = searched
    assert found.result()["recall_at_1"] == pytest.approx(17 / 18)
    assert count_failures(found) == 1
    (failure,) = failures(found, references, gallery, objects, 5)
    assert (failure.wrong.query.id, failure.wrong.query.label) == ("blue/0.png", "blue")
    assert (failure.wrong.hit.label, failure.right.hit.label) == ("red", "blue")
    assert failure.margin == pytest.approx(failure.wrong.similarity - failure.right.similarity, abs=1e-5)
    assert failure.share.off > failure.share.expected + 0.1
    assert failures(found, references, gallery, objects, 0) == []


def test_a_failure_is_written_as_a_page_and_as_lines(searched, tmp_path):
    found, references, gallery, objects = searched
    some = failures(found, references, gallery, objects, 5)
    page, lines = write_errors(some, objects, [("Data", "<made>")], tmp_path / "out")
    text = page.read_text()
    assert "blue taken for red" in text
    assert text.count("data:image") == 5
    assert "&lt;made&gt;" in text
    assert "http" not in text
    (line,) = [json.loads(each) for each in lines.read_text().splitlines()]
    assert line["query"] == "blue/0.png"
    signed = line["wrong_rather_than_right"]
    assert np.sum(signed["contributions"]) + signed["rest"] == pytest.approx(line["margin"], abs=1e-4)


def test_biases_are_written_as_a_page_and_a_table(searched, tmp_path):
    found, _, gallery, objects = searched
    measured = list(pairs(found, gallery, objects, **READING))
    summary = summarise([pair for pair, _ in measured], objects.kind)
    page, table, values = write_bias(summary, measured[:3], objects, [], tmp_path / "out")
    text = page.read_text()
    assert text.count("data:image") == 6
    assert "biased" in text
    assert json.loads(values.read_text()) == summary
    lines = table.read_text().splitlines()
    assert len(lines) == 1 + len(summary["rows"])
    assert len({line.count(",") for line in lines}) == 1


def test_failures_of_a_euclidean_network_are_compared_by_distance(searched):
    found, references, _, _ = searched
    margins, (row,) = _margins(found, references, cosine=False), np.flatnonzero(found.ranking.first > 1)
    away = np.linalg.norm(references.embeddings - found.queries.embeddings[row], axis=1)
    assert margins[row] == pytest.approx(away[found.ranking.right[row]] - away[found.ranking.wrong[row]])
    assert (np.delete(margins, row) == -np.inf).all()
