"""Ranking scores against brute force, against the usual code of re-identification, and against hand-worked numbers."""

import tracemalloc

import numpy as np
import pytest

from embedcam.evaluate import ranking
from embedcam.evaluate.ranking import Side, rank


def embeddings(count, seed, classes=6, dim=8, cameras=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    points = np.random.default_rng(99).normal(size=(classes, dim))[labels] + 1.2 * rng.normal(size=(count, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return Side(points.astype(np.float32), labels, rng.integers(0, cameras, count))


def usual_code(queries, references, most=50):
    """CMC and mAP as torchreid and open-reid compute them, a query at a time."""
    curves, precisions = [], []
    for query, label, camera in zip(queries.embeddings, queries.labels, queries.cameras, strict=True):
        order = np.argsort(((references.embeddings.astype(np.float64) - query) ** 2).sum(axis=1))
        labels, cameras = references.labels[order], references.cameras[order]
        matches = (labels == label)[~((labels == label) & (cameras == camera))].astype(int)
        if not matches.any():
            continue  # as if the query did not exist
        curves.append(np.minimum(matches.cumsum(), 1)[:most])
        hits = matches.cumsum() / np.arange(1, len(matches) + 1) * matches
        precisions.append(hits.sum() / matches.sum())
    return np.mean(curves, axis=0), np.mean(precisions), len(curves)


@pytest.mark.parametrize("seed", range(3))
def test_cmc_and_map_are_those_of_the_usual_code(seed):
    queries, references = embeddings(40, seed), embeddings(200, seed + 10)
    expected_cmc, expected_map, count = usual_code(queries, references)
    found = rank(queries, references).scores()
    assert found["cmc"] == pytest.approx(expected_cmc.tolist())
    assert found["map"] == pytest.approx(expected_map)
    assert [found[f"recall_at_{k}"] for k in (1, 5, 10)] == pytest.approx(expected_cmc[[0, 4, 9]].tolist())
    assert (found["queries"], found["searched"]) == (count, 200)


def test_average_precision_is_the_mean_precision_at_right_ranks():
    line = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]], np.float32)
    references = Side(line, np.array(["b", "a", "a", "b", "a"]))
    ranked = rank(Side(np.zeros((1, 1), np.float32), np.array(["a"])), references)
    assert ranked.first.tolist() == [2]
    assert ranked.average_precision.tolist() == pytest.approx([(1 / 2 + 2 / 3 + 3 / 5) / 3])  # no trapezoid
    assert ranked.precision_at_r.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 3])
    assert (ranked.right.tolist(), ranked.wrong.tolist()) == ([1], [0])
    assert ranked.scores()["cmc"][:3] == [0, 1, 1]


def test_the_same_camera_is_left_out_and_a_distractor_is_not():
    line = np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    references = Side(line, np.array(["1", "0000", "2", "1"]), np.array([1, 1, 1, 2]))
    query = Side(np.zeros((1, 1), np.float32), np.array(["1"]), np.array([1]))
    ranked = rank(query, references)
    assert ranked.right.tolist() == [3]
    assert ranked.wrong.tolist() == [1]
    assert ranked.average_precision.tolist() == pytest.approx([1 / 3])


def test_queries_without_a_right_reference_count_only_without_cameras():
    references = Side(np.array([[1.0], [2.0]], np.float32), np.array([1, 2]), np.array([1, 1]))
    queries = Side(np.zeros((2, 1), np.float32), np.array([1, 3]), np.array([2, 2]))
    assert rank(queries, references).scores()["recall_at_1"] == 1
    assert rank(queries, references).scores()["queries"] == 1
    anywhere = rank(Side(queries.embeddings, queries.labels), references).scores()
    assert (anywhere["recall_at_1"], anywhere["map"], anywhere["queries"]) == (0.5, 0.5, 2)


def test_a_network_that_maps_all_images_to_one_point_scores_nothing():
    same = np.ones((8, 3), np.float32)
    found = rank(Side(same, np.arange(8) // 4)).scores()
    assert found["recall_at_1"] == 0
    assert found["map_at_r"] == 0


def test_an_image_of_the_gallery_is_no_hit_of_itself():
    points = embeddings(20, 0)
    names = np.array([f"{number}.jpg" for number in range(20)])
    gallery = Side(points.embeddings, points.labels, ids=names)
    some = Side(points.embeddings[5:9], points.labels[5:9], ids=names[5:9])
    alone, whole = rank(some, gallery), rank(Side(points.embeddings, points.labels))
    assert alone.first.tolist() == whole.first[5:9].tolist()
    assert (alone.right != np.arange(5, 9)).all()
    # Another picture that happens to have the same name is a hit.
    others = Side(some.embeddings + np.float32(0.5), some.labels, ids=some.ids)
    assert rank(others, gallery).first.tolist() == rank(Side(others.embeddings, some.labels), gallery).first.tolist()


def test_blocks_do_not_change_the_ranking(monkeypatch):
    queries, references = embeddings(30, 0), embeddings(50, 1)
    whole = rank(queries, references)
    monkeypatch.setattr(ranking, "_DISTANCES_AT_ONCE", 120)
    again = rank(queries, references)
    for name in ("first", "right", "wrong"):
        assert getattr(again, name).tolist() == getattr(whole, name).tolist()
    assert again.average_precision.tolist() == pytest.approx(whole.average_precision.tolist())
    assert again.precision_at_r.tolist() == pytest.approx(whole.precision_at_r.tolist())


def test_memory_does_not_grow_with_queries_times_references(monkeypatch):
    monkeypatch.setattr(ranking, "_DISTANCES_AT_ONCE", 20_000)
    side = Side(np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32), np.repeat(np.arange(40), 100))
    tracemalloc.start()
    rank(side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 1000  # one byte for every pair would be 16 MB
