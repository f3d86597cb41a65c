import faiss
import numpy as np
import pytest
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from embedcam.errors import DataError
from embedcam.evaluate import retrieval as module
from embedcam.evaluate.retrieval import retrieval


def clusters(seed=0, classes=5, count=60, dim=8, spread=0.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    embeddings = np.random.default_rng(99).normal(size=(classes, dim))[labels] + spread * rng.normal(size=(count, dim))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), labels


def brute_force(query, query_labels, reference=None, reference_labels=None):
    """Recall@1 and MAP@R straight from their definitions, a query at a time."""
    recalls, precisions = [], []
    for index in range(len(query)):
        others = np.arange(len(query)) != index if reference is None else slice(None)
        items = (query if reference is None else reference)[others].astype(np.float64)
        item_labels = (query_labels if reference is None else reference_labels)[others]
        order = np.argsort(((items - query[index]) ** 2).sum(axis=1), kind="stable")
        same = item_labels[order] == query_labels[index]
        recalls.append(same[0])
        r = same.sum()
        precisions.append(sum(same[: i + 1].mean() for i in range(r) if same[i]) / r if r else 0.0)
    return np.mean(recalls), np.mean(precisions)


def test_hand_worked_ranking():
    reference = np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    result = retrieval(np.zeros((1, 1), np.float32), np.array([7]), reference, np.array([7, 5, 7, 7]))
    assert result["recall_at_1"] == 1
    assert result["map_at_r"] == pytest.approx((1 / 1 + 2 / 3) / 3)  # R = 3; the fourth is beyond it
    assert result["nmi"] == 1  # one query, one label


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_equals_brute_force(seed):
    query, labels = clusters(seed)
    result = retrieval(query, labels)
    assert (result["recall_at_1"], result["map_at_r"]) == pytest.approx(brute_force(query, labels))


@pytest.mark.parametrize("seed", range(3))
def test_reference_set_equals_brute_force(seed):
    query, query_labels = clusters(seed)
    reference, reference_labels = clusters(seed + 10, count=90)
    result = retrieval(query, query_labels, reference, reference_labels)
    expected = brute_force(query, query_labels, reference, reference_labels)
    assert (result["recall_at_1"], result["map_at_r"]) == pytest.approx(expected)


def test_scores_equal_pytorch_metric_learning_where_no_label_is_alone():
    query, labels = clusters()
    calculator = AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r"), k="max_bin_count")
    expected = calculator.get_accuracy(query, labels)
    result = retrieval(query, labels)
    assert result["recall_at_1"] == pytest.approx(expected["precision_at_1"])
    assert result["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"])


def test_queries_whose_label_is_not_in_the_reference_score_zero():
    reference = np.array([[0.0], [10.0]], np.float32)
    result = retrieval(np.array([[0.1], [9.0], [0.2]], np.float32), np.array([1, 2, 3]), reference, np.array([1, 2]))
    assert result["recall_at_1"] == pytest.approx(2 / 3)
    assert result["map_at_r"] == pytest.approx(2 / 3)
    nothing = retrieval(np.array([[0.1]], np.float32), np.array([9]), reference, np.array([1, 2]))
    assert (nothing["recall_at_1"], nothing["map_at_r"]) == (0, 0)


def test_an_image_alone_in_its_class_scores_zero_under_leave_one_out():
    query = np.array([[0.0], [0.1], [5.0]], np.float32)
    result = retrieval(query, np.array([1, 1, 2]))
    assert result["recall_at_1"] == pytest.approx(2 / 3)
    assert result["map_at_r"] == pytest.approx(2 / 3)
    assert retrieval(query, np.array([1, 2, 3]))["recall_at_1"] == 0


def test_an_image_does_not_find_itself_but_finds_its_twin():
    query = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    assert retrieval(query, np.array([0, 0, 1, 1]))["recall_at_1"] == 1
    assert retrieval(query, np.array([0, 1, 0, 1]))["recall_at_1"] == 0


def test_many_twins_fill_the_list_without_the_image_itself():
    # Where a list is shorter than the crowd of twins, an image may or may not be in its own list.
    query = np.zeros((52, 3), np.float32)
    query[50:] = 1
    labels = np.array([0] * 50 + [1, 2])
    result = retrieval(query, labels)
    assert result["recall_at_1"] == pytest.approx(50 / 52)
    assert result["map_at_r"] == pytest.approx(50 / 52)
    assert retrieval(np.zeros((50, 3), np.float32), np.arange(50))["recall_at_1"] == 0


def test_embeddings_far_from_the_origin_keep_their_ranking():
    # Of a size at which faiss multiplies matrices instead of subtracting.
    query, labels = clusters(count=1000, dim=128, classes=50, spread=1.0)
    query += np.float32(100)
    result = retrieval(query, labels)
    assert (result["recall_at_1"], result["map_at_r"]) == pytest.approx(brute_force(query, labels))


def test_a_single_label_scores_one():
    query, _ = clusters(count=10)
    assert retrieval(query, np.zeros(10, int)) == {"recall_at_1": 1, "map_at_r": 1, "nmi": 1}


def test_classes_that_are_apart_have_perfect_scores():
    labels = np.repeat([3, 8, -5], 10)
    query = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], 10)]
    query += np.random.default_rng(0).normal(0, 0.01, query.shape).astype(np.float32)
    assert retrieval(query, labels) == pytest.approx({"recall_at_1": 1, "map_at_r": 1, "nmi": 1})


def test_nmi_of_random_labels_is_low_and_of_coarser_clusters_as_worked_by_hand():
    query, labels = clusters(count=400)
    assert retrieval(query, np.random.default_rng(1).permutation(labels))["nmi"] < 0.1
    # Two places, four labels: mutual information ln 2, entropies ln 4 and ln 2, so NMI = ln 2 / (1.5 ln 2).
    places = np.array([[0.0], [0.0], [0.0], [0.0], [1.0], [1.0], [1.0], [1.0]], np.float32)
    assert retrieval(places, np.array([0, 0, 1, 1, 2, 2, 3, 3]))["nmi"] == pytest.approx(2 / 3)


def test_of_many_embeddings_a_sample_is_clustered_and_all_are_assigned(monkeypatch):
    query, labels = clusters(count=300, spread=0.01)
    monkeypatch.setattr(module, "_SAMPLE", 40)
    sizes, train = [], faiss.Kmeans.train

    def recorded(self, points, **options):
        sizes.append(len(points))
        return train(self, points, **options)

    monkeypatch.setattr(faiss.Kmeans, "train", recorded)
    assert retrieval(query, labels)["nmi"] == pytest.approx(1)  # which one embedding in a wrong place would spoil
    assert sizes == [40]
    assert 0 < retrieval(query, np.arange(300) // 6)["nmi"] < 1  # a cluster for each of the 50 labels
    assert sizes == [40, 50]


def test_nmi_can_be_left_out():
    query, labels = clusters()
    scores = retrieval(query, labels)
    del scores["nmi"]
    assert retrieval(query, labels, nmi=False) == scores


@pytest.mark.parametrize("labels", [37, 300])
def test_well_separated_labels_are_clustered_apart(labels):
    query, truth = clusters(classes=labels, count=20 * labels, dim=32, spread=0.05)
    assert retrieval(query, truth)["nmi"] > 0.99


def test_the_same_seed_gives_the_same_bits():
    query, labels = clusters(count=300, spread=2.0)
    assert retrieval(query, labels, seed=3) == retrieval(query, labels, seed=3)
    assert len({retrieval(query, labels, seed=seed)["nmi"] for seed in range(5)}) > 1


def test_text_labels_work():
    query = np.array([[0.0], [0.1], [5.0], [5.1]], np.float32)
    assert retrieval(query, np.array(["cat", "cat", "dog", "dog"]))["recall_at_1"] == 1


def test_too_few_embeddings_are_refused():
    with pytest.raises(DataError, match="at least 2 embeddings, got 1"):
        retrieval(np.ones((1, 4), np.float32), np.array([0]))
    with pytest.raises(DataError, match=r"query embeddings must have shape .* got \(0, 4\)"):
        retrieval(np.ones((0, 4), np.float32), np.array([], int))
    with pytest.raises(DataError, match=r"reference embeddings must have shape .* got \(0, 4\)"):
        retrieval(np.ones((1, 4), np.float32), np.array([0]), np.ones((0, 4), np.float32), np.array([], int))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused_and_named(bad):
    good, broken = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    broken[2, 1] = bad
    labels = np.zeros(4, int)
    with pytest.raises(DataError, match=r"query embedding 2 is not finite \(1 of 4 are not\)"):
        retrieval(broken, labels)
    with pytest.raises(DataError, match="reference embedding 2 is not finite"):
        retrieval(good, labels, broken, labels)


def test_embeddings_and_labels_that_do_not_fit_are_refused():
    embeddings, labels = np.ones((4, 2), np.float32), np.zeros(4, int)
    with pytest.raises(DataError, match=r"4 query embeddings came with labels of shape \(3,\)"):
        retrieval(embeddings, labels[:3])
    with pytest.raises(DataError, match="without labels"):
        retrieval(embeddings, labels, embeddings)
    with pytest.raises(DataError, match="2 dimensions, reference embeddings 3"):
        retrieval(embeddings, labels, np.ones((4, 3), np.float32), labels)
