"""A server of a tiny network, as an application and as a process would run it."""

import base64
import contextlib
import io
import shutil
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
from embedcam.gallery import Gallery, index
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed
from embedcam.onnx import OnnxExplainer
from embedcam.onnx.export import export

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
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
def gallery(explainer, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "gallery.h5"
    index(explainer.net, load(f"folder:{folder}"), path)
    with Gallery.open(path, explainer.net) as gallery:
        yield gallery


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


@pytest.fixture(scope="module")  # while it runs, asyncio cannot
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """Open the page in a window of any kind; afterwards nothing may have gone wrong or come from elsewhere."""
    contexts, wrong = [], []

    def start(at=address, **how):
        context = browser.new_context(permissions=["camera"], **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(600_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith((at, "blob:")) or wrong.append(request.url))
        page.on("console", lambda said: "Content Security" in said.text and wrong.append(said.text))
        page.goto(at)
        return page

    yield start
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def pixels():
    return _pixels


def _pixels(page, selector="#view"):
    """What a canvas shows, at 80 x 40."""
    address = page.evaluate("selector => document.querySelector(selector).toDataURL()", selector)
    shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    return np.asarray(shown.resize((80, 40), Image.Resampling.BOX)).astype(float)
