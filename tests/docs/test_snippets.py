"""Every command and every snippet of Python that the README and the documentation show runs as it is written.

Each page runs from top to bottom in a folder of its own that holds what a reader would have: pictures in `birds`, a
network, its database, a film. What a page only hints at is set up in HTML comments that readers do not see:
`<!-- before the snippets: ... -->` is Python, `<!-- serve: ... -->` a server that runs while the page does.
"""

import contextlib
import importlib.metadata
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import models

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
# The specification's snippets need files of many kinds: tests/test_file_format.py runs them.
SPECIFICATION = ROOT / "docs" / "reference" / "file-format.md"
# Its snippets are the contents of a package, which tests/test_extending.py makes and uses.
EXTENDING = ROOT / "docs" / "extending.md"
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {SPECIFICATION, EXTENDING})]
# Run elsewhere, or not to be run by a test, and why.
ELSEWHERE = {
    "make test": "is what runs the tests",
    "make docs": "is what runs this one",
    "make demo": "is `embedcam demo`, which tests/test_demo.py runs",
    "python benchmarks/": "tests/benchmarks runs them, small",
    "python scripts/": "tests/scripts runs them, small",
    "pip install": "its extras are looked up instead",
    "embedcam explain --onnx explainer.onnx camera:0": "there is no camera",
}
TRAINED = ROOT.parent / "shared" / "weights" / "mobilenet_v2_imagenet.safetensors"


# What the README only hints at.
README = """
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2, resnet18
from torchvision.models.segmentation import fcn_resnet50

my_module, classifier = resnet18(num_classes=16).eval(), resnet18()
segmenter = fcn_resnet50(weights=None, weights_backbone=None)
images, picture = torch.rand(1, 3, 64, 64), Image.open("photo.jpg")
save_file(mobilenet_v2(num_classes=5).state_dict(), "birds.safetensors")
"""


@dataclass(frozen=True)
class Snippet:
    line: int
    kind: str
    code: str


def snippets(page: Path) -> Iterator[Snippet]:
    """What a page runs, in its order."""
    text = page.read_text()
    pattern = re.compile(
        r"^```(?P<fence>sh|python)\n(?P<code>.*?)^```$|^<!-- (?P<setup>before the snippets|serve):\n(?P<hidden>.*?)-->$",
        re.MULTILINE | re.DOTALL,
    )
    for found in pattern.finditer(text):
        kind = found["fence"] or {"before the snippets": "python", "serve": "serve"}[found["setup"]]
        yield Snippet(text.count("\n", 0, found.start()) + 1, kind, found["code"] or found["hidden"] or "")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """What a reader has before the first command."""
    import av

    from embedcam.builder.build import build_database
    from embedcam.explain import Explainer
    from embedcam.nets import EmbeddingNet
    from embedcam.onnx.export import export

    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for label, colour in enumerate(([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0])):
        for number in range(8):
            pixels = rng.integers(0, 90, (80, 96, 3), dtype=np.uint8)
            mask = np.zeros((80, 96), dtype=np.uint8)
            top, left = rng.integers(0, 48, 2)
            mask[top : top + 30, left : left + 30] = 255
            pixels[mask > 0] = colour
            for kind, picture, suffix in (("images", pixels, "jpg"), ("masks", mask, "png")):
                (root / "birds" / kind / f"kind{label}").mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(root / "birds" / kind / f"kind{label}" / f"{number}.{suffix}")
    pictures = sorted((root / "birds" / "images").rglob("*.jpg"))
    (root / "holiday").mkdir()
    for place, name in zip(pictures, ("photo.jpg", "other.jpg", "holiday/one.jpg", "holiday/two.jpg"), strict=False):
        shutil.copy(place, root / name)
    (root / "shards").mkdir()
    for number, some in enumerate((pictures[::2], pictures[1::2])):
        with tarfile.open(root / "shards" / f"birds-{number:03d}.tar", "w") as archive:
            for place in some:
                key = f"{place.parent.name}-{place.stem}"
                archive.add(place, f"{key}.jpg")
                label = tarfile.TarInfo(f"{key}.cls")
                label.size = len(place.parent.name)
                archive.addfile(label, io.BytesIO(place.parent.name.encode()))
    with av.open(root / "film.mp4", "w") as film:
        stream = film.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        for place in pictures[:12]:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(Image.open(place)), format="rgb24")))
        film.mux(stream.encode())

    torch.manual_seed(0)
    # Without training, networks of many layers without shortcuts put all pictures in one place.
    net = EmbeddingNet("resnet18", 16, image_size=96).eval()
    net.save(root / "net.safetensors")
    database = build_database(net, f"folder:{root / 'birds'}", refinement=False)
    database.save(root / "weights.h5")
    export(Explainer(net, database), root / "explainer.onnx")
    # What torchvision would download.
    checkpoints = root / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    name = models.get_model_weights("mobilenet_v2").DEFAULT.url.rpartition("/")[2]
    torch.save(load_file(TRAINED) if TRAINED.exists() else models.mobilenet_v2().state_dict(), checkpoints / name)
    (root / "model").mkdir()
    np.savetxt(root / "model" / "channel_weight.csv", rng.random((3, 10)), delimiter=",")
    np.savetxt(root / "model" / "channel_adress.csv", np.tile(np.arange(10.0), (3, 1)), delimiter=",")
    return root


@pytest.fixture
def workplace(prepared, tmp_path, monkeypatch):
    """The folder that a reader is in."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, value in {"PATH": programs, "TORCH_HOME": str(tmp_path / "torch"), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def commands(code: str) -> list[str]:
    """The commands of a block, without what runs elsewhere."""
    lines = [line.partition("    #")[0].strip() for line in code.replace("\\\n", "").splitlines()]
    return [line for line in lines if line and not line.startswith("#") and not line.startswith(tuple(ELSEWHERE))]


def serve(command: str) -> subprocess.Popen:
    """Start a server as it is written, and wait until it says that it answers."""
    server = subprocess.Popen(command, shell=True, start_new_session=True, stderr=subprocess.PIPE, text=True)
    said = []
    for line in server.stderr:
        said.append(line)
        if line.startswith("serving at http://"):
            return server
    raise AssertionError(f"{command} does not answer:\n{''.join(said)}")


def stop(server: subprocess.Popen) -> None:
    os.killpg(server.pid, signal.SIGINT)
    server.communicate()


def run(command: str, where: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, f"{where}: {command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("page", [page for page in PAGES if list(snippets(page))], ids=lambda page: page.stem)
def test_a_page_runs_as_written(page):
    namespace: dict[str, object] = {}
    exec(README if page.name == "README.md" else "", namespace)
    with contextlib.ExitStack() as servers:
        for snippet in snippets(page):
            where = f"{page.name}, line {snippet.line}"
            if snippet.kind == "python":
                exec(compile(snippet.code, where, "exec"), namespace)
                continue
            for command in commands(snippet.code):
                if "embedcam serve" not in command:
                    run(command, where)
                elif snippet.kind == "serve":
                    servers.callback(stop, serve(command))
                else:
                    servers.close()  # both listen at the same port
                    stop(serve(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_nothing_that_runs_hides_from_this(page):
    assert not re.findall(r"^ {4}(?:embedcam|pip|python|make|torchrun|import) .*$", page.read_text(), re.MULTILINE)
    assert set(re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)) <= {"", "sh", "python", "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_extras_that_are_to_be_installed_exist(page):
    known = importlib.metadata.metadata("embedcam").get_all("Provides-Extra")
    for extras in re.findall(r"pip install \S*\[([\w,]+)\]", page.read_text()):
        assert set(extras.split(",")) <= set(known)
