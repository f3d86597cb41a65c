"""Networks that embed as trained ones do, without the time to train them."""

import pytest
import torch

from embedcam.data import load
from embedcam.database.build import build_database
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed


@pytest.fixture(scope="session", params=["cosine"])
def spread(request, folder):
    """A network whose embeddings point everywhere, and its database.

    Untrained embeddings all point one way: then the last bit of a cosine decides how clusters are mixed.
    """
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32, metric=request.param).eval()
    mean = torch.from_numpy(embed(net, load(f"folder:{folder}")).pooled.mean(axis=0))
    with torch.no_grad():
        net.head.bias.copy_(-net.head.weight @ mean)
    return net, build_database(net, f"folder:{folder}", clusters=4, top_k=12, pairs=5)
