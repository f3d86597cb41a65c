import numpy as np
import pytest
import torch

from embedcam.errors import DataError
from embedcam.explain.question import Question, Reference

POINTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])


def test_the_direction_is_the_target_less_what_counts_as_no_evidence_or_less_the_other_side():
    target, versus, common = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 4.0]]), torch.tensor([0.5, 0.5])
    assert Question(target).direction(common).tolist() == [[2.5, 0.5]]
    assert Question(target, versus).direction(common).tolist() == [[2.0, -3.0]]


@pytest.mark.parametrize(("metric", "nearest"), [("cosine", [2, 1]), ("euclidean", [0, 1])])
def test_the_nearest_of_several_embeddings_is_chosen_for_each_image(metric, nearest):
    side = Reference(POINTS, "abc").choose(torch.tensor([[0.9, 0.5], [0.1, 0.9]]), metric)
    assert side.names == ["abc"[i] for i in nearest]
    torch.testing.assert_close(side.embeddings, POINTS[nearest])
    assert side.clusters is None


def test_one_for_each_image_is_taken_in_order_and_a_single_one_is_for_all():
    images = torch.tensor([[1.0, 0.0]] * 3)
    assert Reference(POINTS, "abc", each=True).choose(images, "cosine").names == ["a", "b", "c"]
    assert Reference(POINTS[:1], "a", each=True).choose(images, "cosine").names == ["a"] * 3
    with pytest.raises(DataError, match="got 3 references for 2 images; give one, or one per image"):
        Reference(POINTS, "abc", each=True).choose(images[:2], "cosine")


def test_clusters_are_named_by_index_and_label(spread):
    _, db = spread
    reference = Reference.of_clusters(db, [2, 0])
    np.testing.assert_array_equal(reference.embeddings, db.centroids[[2, 0]])
    assert list(reference.names) == [f"cluster {c} of {db.labels_of(c)[0][0]}" for c in (2, 0)]
    images = torch.from_numpy(db.centroids[[0, 2]])
    assert reference.choose(images, "cosine").clusters.tolist() == [0, 2]
    for cluster in (4, -1):
        with pytest.raises(DataError, match=f"no cluster {cluster}; choose one of 0 to 3"):
            Reference.of_clusters(db, [cluster])
