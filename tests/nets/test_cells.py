"""Cell embeddings add up to the embedding."""

import pytest
import torch

from embedcam.errors import NetworkError
from embedcam.nets.embedding import EmbeddingNet


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("hidden", [None, 24])
def test_cell_embeddings_add_up_to_the_embedding(hidden, metric):
    net = EmbeddingNet("tiny", 16, hidden=hidden, metric=metric, image_size=64).eval()
    with torch.inference_mode():
        seen = net.activations(torch.randn(3, 3, 64, 96))
        cells = net.cells(seen)
    assert cells.embeddings.shape == (3, 16, *seen.maps.shape[2:])
    assert torch.allclose(cells.embeddings.mean(dim=(2, 3)) + cells.rest, seen.embeddings, atol=1e-5)


def test_a_layer_whose_maps_the_head_does_not_average_is_not_decomposable():
    net = EmbeddingNet("tiny", 16, image_size=64).eval()
    assert net.decomposable
    net.layer = "features.13"  # before the ReLU
    assert not net.decomposable
    net.layer = "features.3"  # other channels than the head takes
    assert not net.decomposable
    with pytest.raises(NetworkError, match="cannot be decomposed"):
        net.cells(net.activations(torch.randn(1, 3, 64, 64)))
