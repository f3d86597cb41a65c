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


def by_hand(cells, common, centroids, target, versus=None):
    """The heat of the cells (D, h, w) of one image, one cell at a time."""
    heat = np.zeros(cells.shape[1:])
    asked = unit(target - common)
    rivals = [unit(c - common) for c in centroids if asked @ unit(c - common) < SIMILAR]
    along = asked
    if versus is not None:
        rivals, along = [unit(versus - common)], unit(target - versus)
    for position in np.ndindex(heat.shape):
        cell = cells[(slice(None), *position)] - common
        own = np.exp(asked @ unit(cell) / TEMPERATURE)
        share = own / (own + sum(np.exp(rival @ unit(cell) / TEMPERATURE) for rival in rivals))
        heat[position] = np.sqrt(share * max(0, along @ cell))
    return heat


@pytest.mark.parametrize("versus", [False, True])
def test_every_cell_is_asked_for_the_target_against_its_rivals(spread, versus):
    _, db = spread
    generator = np.random.default_rng(0)
    cells = generator.normal(size=(2, 8, 3, 4)).astype(np.float32)
    common = np.average(db.centroids, axis=0, weights=db.counts)
    other = db.centroids[[3, 3]] if versus else None
    question = Question(torch.from_numpy(db.centroids[[0, 2]]), None if other is None else torch.from_numpy(other))
    found = Belonging(db, whole=True)(Cells(torch.from_numpy(cells), torch.zeros(2, 8)), question)
    for image, cluster in enumerate((0, 2)):
        expected = by_hand(cells[image], common, db.centroids, db.centroids[cluster], other[0] if versus else None)
        np.testing.assert_allclose(found[image], expected, rtol=1e-4, atol=1e-6)


def test_the_heat_does_not_depend_on_what_all_embeddings_have_in_common(spread):
    from dataclasses import replace

    _, db = spread
    cells, offset = torch.randn(1, 8, 3, 3), torch.full((8,), 2.0)
    moved = replace(db, centroids=db.centroids + offset.numpy())
    plain = Belonging(db, whole=True)(Cells(cells, torch.zeros(1, 8)), Question(torch.from_numpy(db.centroids[[1]])))
    shifted = Cells(cells + offset[None, :, None, None], torch.zeros(1, 8))
    found = Belonging(moved, whole=True)(shifted, Question(torch.from_numpy(moved.centroids[[1]])))
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("versus", [False, True])
def test_cells_that_are_a_part_of_the_embedding_are_compared_with_their_mean(spread, versus):
    _, db = spread
    cells, target = torch.randn(1, 8, 3, 3), torch.from_numpy(db.centroids[[2]])
    other = torch.from_numpy(db.centroids[[1]]) if versus else None
    found = Belonging(db, whole=False)(Cells(cells, torch.randn(1, 8)), Question(target, other))
    along = unit((target - other if versus else target)[0].numpy())
    flat = cells[0].flatten(1).numpy()
    expected = [max(0, along @ unit(cell - flat.mean(axis=1))) for cell in flat.T]
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-4, atol=1e-6)


def spread_by_hand(heat, features):
    flat = features.reshape(len(features), -1).astype(float)
    flat = flat - flat.mean(axis=1, keepdims=True)
    current = heat.ravel().astype(float)
    for _ in range(3):
        along = flat @ current  # the covariance of each channel with the heat
        fine = np.maximum(along @ flat, 0)
        fine /= fine.max()
        current = heat.ravel() * fine
    return fine.reshape(heat.shape)


def test_by_default_the_cells_are_asked_and_the_heat_is_spread_along_the_finer_layer(fused):
    net, db = fused
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    explainer = embedcam.Explainer(net, db)
    assert explainer.transfer == "cells"
    found = explainer(images)
    with torch.inference_mode(), layers.evaluating(net):
        seen = net.activations(images, db.fusion.layer)
        cells = net.cells(seen).embeddings.numpy()
    common = np.average(db.centroids, axis=0, weights=db.counts)
    for image, embedding in enumerate(found.embeddings):
        heat = by_hand(cells[image], common, db.centroids, embedding).astype(np.float32)
        fine = seen.fine[image].numpy()
        placed = place(heat[None], db.geometry, fine.shape[1:], db.fusion.geometry)[0]
        product = fuse(torch.from_numpy(placed)[None], torch.from_numpy(spread_by_hand(placed, fine))[None])
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
