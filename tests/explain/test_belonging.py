"""The default map, cell by cell."""

import numpy as np
import pytest
import torch

import embedcam
from embedcam.errors import NetworkError
from embedcam.explain.belonging import SIMILAR, TEMPERATURE, Belonging
from embedcam.explain.maps import fuse, place
from embedcam.explain.question import Question
from embedcam.nets import layers
from embedcam.nets.cells import Cells


def unit(vector):
    return vector / np.linalg.norm(vector)


def by_hand(cells, features, common, centroids, target, versus=None):
    """The heat of the cells (D, h, w) of one image, one cell at a time."""
    share, contribution = np.zeros(cells.shape[1:]), np.zeros(cells.shape[1:])
    asked = unit(target - common)
    rivals = [unit(c - common) for c in centroids if asked @ unit(c - common) < SIMILAR]
    along = asked
    if versus is not None:
        rivals, along = [unit(versus - common)], unit(target - versus)
    for row, column in np.ndindex(share.shape):
        around = cells[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean(axis=(1, 2)) - common
        own = np.exp(asked @ unit(around) / TEMPERATURE)
        share[row, column] = own / (own + sum(np.exp(rival @ unit(around) / TEMPERATURE) for rival in rivals))
        contribution[row, column] = max(0, along @ (cells[:, row, column] - common))
    extent = spread_by_hand(np.sqrt(share * contribution), features, rounds=1)
    return np.sqrt(share * np.maximum(extent, 1e-4))


def spread_by_hand(heat, features, rounds):
    flat = features.reshape(len(features), -1).astype(float)
    flat = flat - flat.mean(axis=1, keepdims=True)
    current = heat.ravel().astype(float)
    for _ in range(rounds):
        along = flat @ current  # the covariance of each channel with the heat
        fine = np.maximum(along @ flat, 0)
        fine /= fine.max()
        current = heat.ravel() * fine
    return fine.reshape(heat.shape)


@pytest.mark.parametrize("versus", [False, True])
def test_every_cell_is_asked_for_the_target_against_its_rivals(spread, versus):
    _, db = spread
    generator = np.random.default_rng(0)
    cells, features = (generator.normal(size=(2, size, 4, 5)).astype(np.float32) for size in (8, 6))
    common = np.average(db.centroids, axis=0, weights=db.counts)
    other = db.centroids[[3, 3]] if versus else None
    question = Question(torch.from_numpy(db.centroids[[0, 2]]), None if other is None else torch.from_numpy(other))
    embeddings = Cells(torch.from_numpy(cells), torch.zeros(2, 8))
    found = Belonging(db, whole=True)(embeddings, torch.from_numpy(features), question)
    for image, cluster in enumerate((0, 2)):
        against = other[0] if versus else None
        expected = by_hand(cells[image], features[image], common, db.centroids, db.centroids[cluster], against)
        np.testing.assert_allclose(found[image], expected, rtol=1e-4, atol=1e-6)


def test_the_heat_does_not_depend_on_what_all_embeddings_have_in_common(spread):
    from dataclasses import replace

    _, db = spread
    cells, maps, offset = torch.randn(1, 8, 3, 3), torch.randn(1, 5, 3, 3), torch.full((8,), 2.0)
    moved = replace(db, centroids=db.centroids + offset.numpy())
    question = Question(torch.from_numpy(db.centroids[[1]]))
    plain = Belonging(db, whole=True)(Cells(cells, torch.zeros(1, 8)), maps, question)
    shifted = Cells(cells + offset[None, :, None, None], torch.zeros(1, 8))
    found = Belonging(moved, whole=True)(shifted, maps, Question(torch.from_numpy(moved.centroids[[1]])))
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("versus", [False, True])
def test_cells_that_are_a_part_of_the_embedding_are_compared_with_their_mean(spread, versus):
    _, db = spread
    cells, target = torch.randn(1, 8, 3, 3), torch.from_numpy(db.centroids[[2]])
    other = torch.from_numpy(db.centroids[[1]]) if versus else None
    found = Belonging(db, whole=False)(Cells(cells, torch.randn(1, 8)), cells, Question(target, other))
    along = unit((target - other if versus else target)[0].numpy())
    flat = cells[0].flatten(1).numpy()
    expected = [max(0, along @ unit(cell - flat.mean(axis=1))) for cell in flat.T]
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-4, atol=1e-6)


def test_by_default_the_cells_are_asked_and_the_heat_is_spread_along_the_finer_layer(fused):
    net, db = fused
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    explainer = embedcam.Explainer(net, db)
    assert explainer.transfer == "cells"
    found = explainer(images)
    dense = explainer.net
    assert (net.map_size, dense.density) == ((2, 2), (2, 2))  # 4 x 4 cells at 128 x 128 pixels are too few
    with torch.inference_mode(), layers.evaluating(net):
        seen = dense.activations(images, db.fusion.layer)
        cells = dense.cells(seen).embeddings.numpy()
    common = np.average(db.centroids, axis=0, weights=db.counts)
    for image, embedding in enumerate(found.embeddings):
        maps = seen.maps[image].numpy()
        heat = by_hand(cells[image], maps, common, db.centroids, embedding).astype(np.float32)
        fine = seen.fine[image].numpy()
        placed = place(heat[None], db.geometry.denser(dense.density), fine.shape[1:], db.fusion.geometry)[0]
        extent = torch.from_numpy(spread_by_hand(placed, fine, rounds=4))[None]
        product = fuse(torch.from_numpy(placed)[None], extent**2) ** 0.75
        expected = place(product.numpy(), db.fusion.geometry, (96, 96))[0]
        np.testing.assert_allclose(found.raw[image], expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_where_the_embedding_is_no_sum_over_cells_stored_weights_are_transferred_or_it_is_refused(spread, caplog):
    import copy

    net, db = copy.deepcopy(spread[0]), spread[1]
    caplog.set_level("INFO", logger="embedcam")
    net._head = "made so in this test"
    assert embedcam.Explainer(net, db).transfer == "soft-contrast"
    assert "made so in this test" in caplog.text
    with pytest.raises(NetworkError, match="made so in this test"):
        embedcam.Explainer(net, db, transfer="cells")
