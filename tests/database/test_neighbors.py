import numpy as np
import pytest

from embedcam.database import neighbors
from embedcam.database.neighbors import Neighbors, Partitions, partition

METRICS = ["cosine", "euclidean"]


def normal(*shape, metric="cosine", seed=0):
    points = np.random.default_rng(seed).standard_normal(shape)
    return (points / np.linalg.norm(points, axis=-1, keepdims=True) if metric == "cosine" else points).astype(
        np.float32
    )


def classes(metric, exemplars=4000, queries=300, dim=16):
    """Exemplars around 100 centers, and others like them."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((100, dim))
    points = centers[rng.integers(0, 100, exemplars + queries)] + 0.3 * rng.standard_normal((exemplars + queries, dim))
    if metric == "cosine":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return np.split(points.astype(np.float32), [exemplars])


def away(embeddings, points, metric):
    """Every distance, the plain way."""
    embeddings, points = embeddings.astype(np.float64), points.astype(np.float64)
    if metric == "cosine":
        return 1 - embeddings @ points.T
    squares = (embeddings**2).sum(axis=1)[:, None] + (points**2).sum(axis=1) - 2 * embeddings @ points.T
    return np.sqrt(np.maximum(squares, 0))


@pytest.fixture
def many(monkeypatch):
    """Partitions are made of as few exemplars as a test can afford, and few of them are read."""
    monkeypatch.setattr(neighbors, "_EXACT", 10_000)
    monkeypatch.setattr(neighbors, "_PROBES", 4)


@pytest.mark.parametrize("metric", METRICS)
def test_without_partitions_search_is_exact(metric):
    points, embeddings = normal(500, 16, metric=metric), normal(40, 16, metric=metric, seed=1)
    indices, distances = Neighbors(points, metric).search(embeddings, 5)

    expected = away(embeddings, points, metric)
    np.testing.assert_array_equal(indices, np.argsort(expected, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :5], atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_part_of_the_partitions_holds_what_is_nearest(many, metric):
    points, embeddings = classes(metric)
    partitions = partition(points, metric)
    indices, distances = Neighbors(points, metric, partitions).search(embeddings, 10)

    assert len(partitions.centroids) == 253  # 4 sqrt(4000)
    assert partitions.probes < 50
    expected = away(embeddings, points, metric)
    nearest = np.argsort(expected, axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(indices, nearest, strict=True)]) >= 9.9
    assert (indices[:, 0] == nearest[:, 0]).mean() >= 0.99
    np.testing.assert_allclose(distances, np.take_along_axis(expected, indices, axis=1), atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_as_many_partitions_are_read_as_the_exemplars_themselves_need(many, monkeypatch, metric):
    monkeypatch.setattr(neighbors, "_EXACT", 0)
    monkeypatch.setattr(neighbors, "_PROBES", 1)
    monkeypatch.setattr(neighbors, "_SAMPLE", 1000)
    points, _ = classes(metric, 1000)
    partitions = partition(points, metric)

    to_points, to_centroids = away(points, points, metric), away(points, partitions.centroids, metric)
    np.fill_diagonal(to_points, np.inf)
    near = np.argsort(to_points, axis=1)[:, :10]
    rank = np.argsort(np.argsort(to_centroids, axis=1), axis=1)[np.arange(1000)[:, None], partitions.partition[near]]
    assert (rank < partitions.probes).mean() >= 0.99 > (rank < partitions.probes - 1).mean()


def test_at_least_half_of_what_an_exact_search_may_is_read(many, monkeypatch):
    monkeypatch.setattr(neighbors, "_EXACT", 32_000)
    points, _ = classes("cosine")

    assert partition(points, "cosine").probes == 253 // 4  # 16,000 of 4,000 x 16 numbers


@pytest.mark.parametrize("metric", METRICS)
def test_every_exemplar_is_in_the_partition_of_its_nearest_centroid(many, metric):
    points, _ = classes(metric)
    partitions = partition(points, metric)

    expected = away(points, partitions.centroids, metric)
    np.testing.assert_allclose(expected[np.arange(len(points)), partitions.partition], expected.min(axis=1), atol=1e-5)
    assert (partitions.centroids.dtype, partitions.partition.dtype) == (np.float32, np.int32)


def test_few_exemplars_get_no_partitions():
    assert partition(normal(2000, 128), "cosine") is None


def test_exemplars_without_structure_get_no_partitions(many):
    assert partition(normal(4000, 64), "cosine") is None


def test_same_seed_same_partitions(many):
    points, _ = classes("cosine")
    first, again, other = (partition(points, "cosine", seed) for seed in (3, 3, 4))

    np.testing.assert_array_equal(first.centroids, again.centroids)
    np.testing.assert_array_equal(first.partition, again.partition)
    assert not np.array_equal(first.centroids, other.centroids)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("partitioned", [False, True])
def test_an_embedding_finds_the_same_to_the_bit_in_any_company(many, metric, partitioned):
    # Of so many dimensions that faiss's flat index would hand the largest batch to BLAS.
    points, embeddings = classes(metric, 1000, dim=512)
    index = Neighbors(points, metric, partition(points, metric) if partitioned else None)
    alone = [np.concatenate(parts) for parts in zip(*(index.search(one[None], 10) for one in embeddings), strict=True)]

    for batch in (0, 7, 19, 20, 33, len(embeddings)):
        together = index.search(embeddings[:batch], 10)
        for one, both in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[:batch], both)


@pytest.mark.parametrize("metric", METRICS)
def test_more_partitions_are_read_where_the_nearest_hold_too_few(metric):
    points = normal(30, 4, metric=metric)
    partitions = Partitions(points[:3], np.arange(30, dtype=np.int32) % 3, probes=1)
    indices, distances = Neighbors(points, metric, partitions).search(points[:5], 25)

    expected = away(points[:5], points, metric)
    np.testing.assert_array_equal(indices[:, 1:], np.argsort(expected, axis=1)[:, 1:25])
    np.testing.assert_allclose(distances[:, 1:], np.sort(expected, axis=1)[:, 1:25], atol=1e-5)


def test_an_empty_partition_is_passed_over():
    points = normal(20, 4)
    partitions = Partitions(np.stack([points[0], -points[0]]), np.ones(20, dtype=np.int32), probes=1)

    assert Neighbors(points, "cosine", partitions).nearest(points)[0].tolist() == list(range(20))


def test_no_more_is_found_than_there_is():
    indices, distances = Neighbors(normal(3, 4), "cosine").search(normal(2, 4, seed=1), 10)

    assert indices.shape == distances.shape == (2, 3)


@pytest.mark.parametrize("partitioned", [False, True])
def test_of_equal_exemplars_the_first_is_nearest(partitioned):
    points = normal(10, 8)[[5, 2, 5, 2, 7]]
    partitions = Partitions(points[:2], np.array([0, 1, 0, 1, 1], dtype=np.int32), probes=2) if partitioned else None

    assert Neighbors(points, "cosine", partitions).nearest(points)[0].tolist() == [0, 1, 0, 1, 4]
