"""A network whose embeddings point everywhere, and the index of a folder that it made."""

import pytest
import torch

from embedcam.data import load
from embedcam.gallery import Gallery, index
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed


def make_net(metric, folder):
    """A network whose embeddings point everywhere, as those of a trained one."""
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32, metric=metric).eval()
    mean = torch.from_numpy(embed(net, load(f"folder:{folder}")).pooled.mean(axis=0))
    with torch.no_grad():
        net.head.bias.copy_(-net.head.weight @ mean)
    return net


@pytest.fixture(scope="module")
def net(folder):
    return make_net("cosine", folder)


@pytest.fixture(scope="module", params=["cosine", "euclidean"])
def indexed(request, folder, tmp_path_factory):
    net, samples = make_net(request.param, folder), load(f"folder:{folder}")
    path = tmp_path_factory.mktemp("gallery") / "gallery.h5"
    assert index(net, samples, path) == len(samples)
    with Gallery.open(path, net) as gallery:
        yield gallery, samples, net
