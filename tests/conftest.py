"""Small real things that many tests need: a folder of pictures with masks, a network, a database."""

import contextlib
import logging
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from forks import Forks
from PIL import Image

from embedcam.builder.build import build_database
from embedcam.data import load
from embedcam.explain import Explainer
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed
from embedcam.onnx.export import export

SHARED = Path(__file__).parents[2] / "shared"

# The same examples in every run, however long one takes.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _fixed_creation_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture(autouse=True)
def _logger_as_in_a_library():
    """The command line turns propagation off, which would hide warnings from caplog in later tests."""
    yield
    logger = logging.getLogger("embedcam")
    logger.propagate = True
    logger.handlers.clear()


def make_folder(root: Path, classes: int = 3, images: int = 10, size: int = 40) -> Path:
    """Write bright squares of a colour a class on noise, with exact masks."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        color = np.eye(3)[label % 3] * 255
        for number in range(images):
            pixels = rng.integers(0, 90, (size, size, 3))
            mask = np.zeros((size, size), dtype=bool)
            top, left = rng.integers(0, size - 16, 2)
            mask[top : top + 16, left : left + 16] = True
            pixels[mask] = color
            for kind, array in (("images", pixels.astype(np.uint8)), ("masks", (mask * 255).astype(np.uint8))):
                folder = root / kind / f"class{label}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def dtype(request) -> torch.dtype:
    return getattr(torch, request.param)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def net() -> EmbeddingNet:
    torch.manual_seed(0)
    return EmbeddingNet("tiny", 8, image_size=32).eval()


@pytest.fixture(scope="session")
def fused(folder):
    """A network with a finer layer before its last stride, and its database."""
    torch.manual_seed(0)
    net = EmbeddingNet("resnet18", 8, image_size=64).eval()
    with pytest.MonkeyPatch.context() as patch:
        # It is not trained, and would be explained in its own size: it knows images in no other.
        patch.setattr("embedcam.builder.refinement._RECOGNISED", 0.0)
        return net, build_database(net, f"folder:{folder}", clusters=4, top_k=12, pairs=5, finer_weights=True)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, folder):
    """A network and its database, as files: what the online half starts from."""
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32).eval()
    out = tmp_path_factory.mktemp("trained")
    net.save(out / "net.safetensors")
    build_database(net, f"folder:{folder}", clusters=4, top_k=12, pairs=5).save(out / "weights.h5")
    return out


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


@pytest.fixture(scope="session")
def exported(spread, tmp_path_factory):
    """The ONNX file of the default explainer of `spread`."""
    path = tmp_path_factory.mktemp("exported") / "explainer.onnx"
    export(Explainer(*spread), path)
    return path


@pytest.fixture(scope="session")
def forks():
    """Starts processes quickly."""
    with contextlib.closing(Forks()) as forks:
        yield forks


@pytest.fixture
def processes(forks):
    """Run the command line in several processes that work together, as `torchrun` does, after some lines of Python."""

    def start(count, *arguments, before=""):
        store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        agent = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} for rank in range(count)]
        code = f"{before}\nfrom embedcam.cli import main\nmain()\n"
        return forks.run_together(code, *arguments, environments=[agent | rank for rank in ranks])

    return start
