import numpy as np
import pytest
import torch

from embedcam.data import load
from embedcam.nets.inference import Gathered, embed


def test_embedding_a_data_set_equals_embedding_it_image_by_image(net, folder):
    samples = load(f"folder:{folder}", "test")
    seen = embed(net, samples, batch_size=5)
    np.testing.assert_array_equal(seen.kept, np.arange(len(samples)))
    for row in range(len(samples)):
        with torch.inference_mode():
            alone = net.activations(torch.from_numpy(net.preprocess(samples.image(row)))[None])
        np.testing.assert_allclose(seen.embeddings[row], alone.embeddings[0], atol=1e-5)
        np.testing.assert_allclose(seen.pooled[row], alone.maps[0].mean(dim=(1, 2)), atol=1e-5)


def test_pooled_vectors_are_left_out_if_nothing_needs_them(net, folder):
    samples = load(f"folder:{folder}", "test")
    seen = embed(net, samples, pooled=False)
    assert seen.pooled is None
    np.testing.assert_array_equal(seen.embeddings, embed(net, samples).embeddings)


@pytest.mark.parametrize("most", [5, 9])
def test_rows_are_gathered_in_one_array(most):
    rows = Gathered(most)
    rows.add(np.array([[1, 2], [3, 4]]))
    rows.add(np.empty((0, 2), dtype=int))
    rows.add(np.array([[5, 6], [7, 8], [9, 0]]))
    assert len(rows) == 5
    np.testing.assert_array_equal(rows.result(), [[1, 2], [3, 4], [5, 6], [7, 8], [9, 0]])
