import numpy as np
import pytest

from embedcam.builder import clusters
from embedcam.database.neighbors import Neighbors
from embedcam.database.record import top_channels
from embedcam.errors import DataError


def blobs(metric="cosine", seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((4, 6)) * 5
    points = np.repeat(centers, 25, axis=0) + 0.05 * rng.standard_normal((100, 6))
    if metric == "cosine":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), np.repeat(np.arange(4), 25)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_separate_blobs_become_separate_clusters(metric):
    points, truth = blobs(metric)
    centroids, cluster, distance = clusters.kmeans(points, 4, metric)

    assert len(centroids) == 4
    assert all(len(set(cluster[truth == blob])) == 1 for blob in range(4))
    if metric == "cosine":
        expected = 1 - (points * centroids[cluster]).sum(axis=1)
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
    else:
        expected = np.linalg.norm(points - centroids[cluster], axis=1)
    np.testing.assert_allclose(distance, expected, atol=1e-5)


def test_every_image_is_in_its_nearest_cluster_and_none_is_empty():
    points = np.random.default_rng(1).standard_normal((200, 8)).astype(np.float32)
    centroids, cluster, _ = clusters.kmeans(points, 30, "euclidean")

    away = np.linalg.norm(points[:, None] - centroids[None], axis=2)
    np.testing.assert_allclose(away[np.arange(200), cluster], away.min(axis=1), atol=1e-5)
    assert (np.bincount(cluster, minlength=len(centroids)) > 0).all()


def test_fewer_images_than_clusters_make_fewer_clusters_with_a_warning(caplog):
    points, _ = blobs()
    centroids, cluster, _ = clusters.kmeans(points[:7], 50, "cosine")

    assert len(centroids) == 7
    assert sorted(cluster) == list(range(7))
    assert "50 clusters asked for, but only 7 different images" in caplog.text


def test_duplicated_images_count_once():
    points, _ = blobs()
    centroids, _, _ = clusters.kmeans(np.repeat(points[[0, 30, 60]], 20, axis=0), 10, "cosine")

    assert len(centroids) == 3


def test_same_seed_same_clusters():
    points = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    first, second = (clusters.kmeans(points, 20, "euclidean", seed=5) for _ in range(2))

    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_embedding_that_is_not_finite_is_named():
    points, _ = blobs()
    points[17, 2] = np.nan
    with pytest.raises(DataError, match="embedding of image 17 is not finite"):
        clusters.kmeans(points, 3, "cosine")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_held_out_distances_are_those_to_centroids_of_the_other_folds(metric):
    points = np.random.default_rng(1).standard_normal((23, 4)).astype(np.float32)
    if metric == "cosine":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    distance = clusters.held_out_distances(points, 3, metric, seed=7)

    fold = np.random.default_rng(7).permutation(23) % 5
    for number in range(5):
        centroids, _, _ = clusters.kmeans(points[fold != number], 3, metric, 7, starts=1)
        own = points[fold == number]
        away = 1 - own @ centroids.T if metric == "cosine" else np.linalg.norm(own[:, None] - centroids, axis=2)
        np.testing.assert_allclose(distance[fold == number], away.min(axis=1), atol=1e-5)


def test_few_embeddings_are_held_out_one_by_one():
    points = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(clusters.held_out_distances(points, 3, "cosine"), 1, atol=1e-6)
    np.testing.assert_array_equal(clusters.held_out_distances(points[:1], 3, "cosine"), 0)


def moments(weights, cluster, count):
    found = clusters.Moments(count, weights.shape[1])
    found.add(cluster, weights)
    return found.result(np.bincount(cluster))


def test_moments_are_mean_and_deviation_of_each_cluster():
    weights = np.array([[1, 2], [3, 2], [5, 8]], dtype=np.float32)
    mean, std = moments(weights, np.array([0, 0, 1]), 2)

    np.testing.assert_array_equal(mean, [[2, 2], [5, 8]])
    np.testing.assert_array_equal(std, [[1, 0], [0, 0]])


def test_moments_of_parts_put_together_are_those_of_all():
    rng = np.random.default_rng(0)
    weights, cluster = rng.standard_normal((40, 5)).astype(np.float32), rng.permutation(40) % 3
    whole = clusters.Moments(3, 5)
    for part in (slice(0, 15), slice(15, 40)):
        mine = clusters.Moments(3, 5)
        mine.add(cluster[part], weights[part])
        whole.merge(mine.sums, mine.squares)
    mean, std = whole.result(np.bincount(cluster))
    for c in range(3):
        np.testing.assert_allclose(mean[c], weights[cluster == c].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(std[c], weights[cluster == c].std(axis=0), rtol=1e-5)


def test_small_weights_do_not_underflow():
    weights = np.full((4, 3), 1e-8, dtype=np.float32) * np.arange(1, 5)[:, None].astype(np.float32)
    mean, std = moments(weights, np.zeros(4, dtype=np.int64), 1)

    np.testing.assert_allclose(mean, 2.5e-8, rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(1.25) * 1e-8, rtol=1e-6)


def test_top_channels_go_by_signed_value_and_of_equals_the_first_wins():
    channels, weights = top_channels(np.array([[-9, 2, 5, 2, 0]], dtype=np.float32), 3)

    np.testing.assert_array_equal(channels, [[2, 1, 3]])
    np.testing.assert_array_equal(weights, [[5, 2, 2]])
    assert channels.dtype == np.int32


def test_distance_quantiles_by_hand():
    distance = np.array([0, 1, 2, 3, 4, 7], dtype=np.float32)
    found = clusters.distance_quantiles(distance, np.array([0, 0, 0, 0, 0, 1]), 2)

    np.testing.assert_allclose(found, [[2, 3.6, 3.8, 3.96, 4], [7] * 5], rtol=1e-6)


def test_neighbors_are_exact():
    rng = np.random.default_rng(0)
    points, queries = (rng.standard_normal((n, 5)).astype(np.float32) for n in (40, 9))
    index, distance = Neighbors(points, "euclidean").nearest(queries)

    away = np.linalg.norm(queries[:, None] - points[None], axis=2)
    np.testing.assert_array_equal(index, away.argmin(axis=1))
    np.testing.assert_allclose(distance, away.min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e20, 3e38])
def test_embeddings_that_cannot_be_compared_are_named(metric, bad):
    # Those whose squared length overflows would end the whole process.
    points = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    points[5] = bad
    with pytest.raises(DataError, match="embedding of image 5 is not finite"):
        clusters.kmeans(points, 3, metric)
    assert clusters.searchable(points).tolist() == [True] * 5 + [False] + [True] * 3


def test_long_embeddings_that_can_be_compared_are():
    points = 1e18 * np.array([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]], np.float32)
    _, cluster, distance = clusters.kmeans(points, 2, "euclidean")
    assert cluster[0] == cluster[1] != cluster[2] == cluster[3]
    np.testing.assert_allclose(distance, 5e16, rtol=1e-3)


def test_no_embedding_is_an_error():
    with pytest.raises(DataError, match="no embedding to cluster"):
        clusters.kmeans(np.zeros((0, 4), np.float32), 3, "cosine")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_single_dimension_is_clustered(metric):
    line = np.array([[1], [-1], [1], [-1], [1]], np.float32)
    centroids, cluster, distance = clusters.kmeans(line, 4, metric)
    np.testing.assert_allclose(centroids[cluster], line, atol=1e-6)
    np.testing.assert_allclose(distance, 0, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_too_many_duplicates_to_count_still_make_no_empty_cluster(metric):
    # Beyond 100 images a cluster, different ones are not counted beforehand.
    points, _ = blobs("cosine")
    different = points[[0, 30, 60]]
    centroids, cluster, distance = clusters.kmeans(np.tile(different, (400, 1)), 10, metric)
    assert len(centroids) == 3 and np.bincount(cluster).tolist() == [400] * 3
    np.testing.assert_allclose(centroids[cluster[:3]], different, atol=1e-6)
    assert distance.max() < (1e-6 if metric == "cosine" else 1e-3)  # a square root of roundings


@pytest.mark.parametrize("value", [0.0, 1e-41])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_embeddings_of_no_length_are_one_cluster(metric, value):
    centroids, cluster, distance = clusters.kmeans(np.full((6, 3), value, np.float32), 2, metric)
    assert len(centroids) == 1 and not cluster.any()
    assert (distance == (1 if metric == "cosine" else 0)).all()
