"""Explanations and comparisons as JSON, with numbers worked by hand."""

import json
from types import SimpleNamespace

import numpy as np

from embedcam.explain.answer import Answer
from embedcam.explain.explanation import Explanation
from embedcam.explain.json_lines import comparison_line, explanation_line

EXPLAINER = SimpleNamespace(labels_of=lambda cluster: [("cat", 7), ("dog", 2)], exemplar=lambda index: ("a.png", "cat"))


def explanation(**fields):
    return Explanation.of(
        np.array([[[0, 1]]] * 2, np.float32),
        clusters=np.array([4, 3]),
        distances=np.array([0.25, 0.5], np.float32),
        typicality=np.array([0.5, 0.0], np.float32),
        anomaly=np.array([0.5, 2.0], np.float32),
        **fields,
    )


def test_an_explanation_is_described_by_plain_values():
    line = explanation_line(explanation(), 1, "b.png", EXPLAINER)
    assert json.loads(json.dumps(line)) == {
        "image": "b.png",
        "cluster": 3,
        "cluster_labels": {"cat": 7, "dog": 2},
        "distance": 0.5,
        "typicality": 0.0,
        "typicality_in_words": "unlike the training images",
        "anomaly": 2.0,
        "notes": [],
    }


def test_an_answer_has_the_parts_of_its_similarity():
    parts = np.array([0.5, 1.0]), np.array([[[0.5, -0.25]]] * 2), np.array([0.25, 0.75]), np.zeros((2, 1, 2))
    for versus in (None, ["c", "d"]):
        answer = Answer.of_evidence(explanation(), *parts, towards=["a", "b"], versus=versus)
        line = json.loads(json.dumps(explanation_line(answer, 1, "b.png", EXPLAINER)))
        found = {key: line[key] for key in ("towards", "versus", "similarity", "for", "against", "rest")}
        versus_name = None if versus is None else "d"
        expected = {"towards": "b", "versus": versus_name, "similarity": 1, "for": 0.5, "against": -0.25, "rest": 0.75}
        assert found == expected


def test_the_nearest_exemplar_is_named_where_it_is_known():
    line = explanation_line(explanation(neighbors=np.array([1, 0])), 0, "b.png", EXPLAINER)
    assert (line["looks_like"], line["looks_like_label"]) == ("a.png", "cat")


def test_contributions_are_summed_by_their_sign():
    comparison = SimpleNamespace(
        similarity=np.array([0.25], np.float32),
        distances=np.array([0.75], np.float32),
        contributions=SimpleNamespace(
            images=np.array([[[0.5, -0.25]]], np.float32), other=np.array([[[1.0, -0.75]]], np.float32)
        ),
        shared=SimpleNamespace(images=SimpleNamespace(notes=[["a note"]])),
    )
    assert json.loads(json.dumps(comparison_line(comparison, 0, "a.png", "b.png"))) == {
        "image": "a.png",
        "other": "b.png",
        "similarity": 0.25,
        "distance": 0.75,
        "for": {"image": 0.5, "other": 1.0},
        "against": {"image": -0.25, "other": -0.75},
        "notes": ["a note"],
    }
