"""A server of a tiny network, as an application and as a process would run it."""

import contextlib
import io
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from embedcam.app import create_app
from embedcam.builder.build import build_database
from embedcam.data import load
from embedcam.explain import Explainer
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed
from embedcam.onnx import OnnxExplainer
from embedcam.onnx.export import export

# What no label should do to a page.
EVIL = "<img src=x onerror=document.body.dataset.broken=1>"


@pytest.fixture(scope="session")
def evil():
    return EVIL


@pytest.fixture(scope="session")
def picture():
    return _picture


@pytest.fixture(scope="session")
def encoded():
    return _encoded


@pytest.fixture(scope="session")
def file():
    """The file of `picture()`."""
    return _encoded(_picture())


def _picture(width=48, height=36, seed=0):
    """Noise with a bright rectangle: any size, and never symmetric."""
    pixels = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 3 : 2 * width // 3] = (255, 40, 0)
    return Image.fromarray(pixels)


def _encoded(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


@pytest.fixture(scope="session")
def explainer(folder):
    """Its embeddings point everywhere, as trained ones do: else the last bit of a cosine decides what is mixed."""
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32).eval()
    mean = torch.from_numpy(embed(net, load(f"folder:{folder}")).pooled.mean(axis=0))
    with torch.no_grad():
        net.head.bias.copy_(-net.head.weight @ mean)
    database = build_database(net, f"folder:{folder}", clusters=4, top_k=12, pairs=5)
    names = tuple(f"{name} {EVIL}" for name in database.label_names)
    return Explainer(net, replace(database, label_names=names))


@pytest.fixture(scope="session")
def onnx_file(explainer, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "explainer.onnx"
    export(explainer, path)
    return path


@pytest.fixture(scope="session")
def onnx_explainer(onnx_file):
    return OnnxExplainer(onnx_file)


@pytest.fixture
def client(explainer, folder):
    with TestClient(create_app(explainer, data=f"folder:{folder}")) as client:
        yield client


@pytest.fixture(scope="session")
def running():
    return _running


@contextlib.contextmanager
def _running(app):
    """Serve an application on a free port of this machine; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
