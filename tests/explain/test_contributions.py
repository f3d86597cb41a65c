"""The sum rule, with cells of any kind."""

import numpy as np
import torch

from embedcam.explain.contributions import common_embedding, contributions
from embedcam.nets.cells import Cells

GENERATOR = torch.Generator().manual_seed(0)
CELLS = Cells(torch.randn(3, 5, 2, 4, generator=GENERATOR), torch.randn(3, 5, generator=GENERATOR))
DIRECTIONS, COMMON = torch.randn(3, 5, generator=GENERATOR), torch.randn(5, generator=GENERATOR)


def test_contributions_and_rest_sum_to_the_similarity_of_the_embedding():
    found = contributions(CELLS, DIRECTIONS, COMMON)
    embeddings = CELLS.embeddings.mean(dim=(2, 3)) + CELLS.rest
    similarity = ((embeddings - COMMON) * DIRECTIONS).sum(dim=1)
    torch.testing.assert_close(found.densities.mean(dim=(1, 2)) + found.rest, similarity)


def test_a_density_is_the_similarity_of_the_cells_embedding():
    found = contributions(CELLS, DIRECTIONS, COMMON)
    for image in range(3):
        for y in range(2):
            for x in range(4):
                expected = (CELLS.embeddings[image, :, y, x] - COMMON) @ DIRECTIONS[image]
                torch.testing.assert_close(found.densities[image, y, x], expected)


def test_one_image_may_be_asked_several_questions():
    one = Cells(CELLS.embeddings[:1], CELLS.rest[:1])
    found, each = contributions(one, DIRECTIONS, COMMON), contributions(CELLS, DIRECTIONS, COMMON)
    torch.testing.assert_close(found.densities[0], each.densities[0])
    assert found.densities.shape == (3, 2, 4)
    assert found.rest.shape == (3,)


def test_the_common_embedding_is_the_mean_of_the_training_images(spread):
    _, db = spread
    by_hand = sum(n * c for n, c in zip(db.counts, db.centroids, strict=True)) / db.counts.sum()
    np.testing.assert_allclose(common_embedding(db), by_hand, atol=1e-6)
