"""What a release promises: its metadata, its extras, its types, and one clear error where an extra is missing."""

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import embedcam

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Runs the command line as it is where nothing but the dependencies without extras is installed.
BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from embedcam.cli import main
main()
"""


def closure(requirements):
    """The distributions that these requirements install, by their names, with all that they need in turn."""
    found, waiting = set(), [(Requirement(line).name, Requirement(line).extras) for line in requirements]
    while waiting:
        name, extras = waiting.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in found:
            continue
        found.add(name)
        try:
            needed = map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted = [{"extra": extra} for extra in ("", *extras)]
        waiting += [(n.name, n.extras) for n in needed if not n.marker or any(map(n.marker.evaluate, wanted))]
    return found


@pytest.fixture(scope="module")
def bare():
    """Run a command line as it is without any extra."""
    wanted = closure(PROJECT["dependencies"]) | {"embedcam"}
    kept, modules = set(), set()
    for distribution in importlib.metadata.distributions():  # `packages_distributions` of Python 3.10 misses many
        paths = (line.partition("/")[0] for line in (distribution.read_text("RECORD") or "").splitlines())
        own = {path.partition(",")[0].removesuffix(".py") for path in paths}
        modules |= own
        if re.sub(r"[-_.]+", "-", distribution.name).lower() in wanted:
            kept |= own
    missing = modules - kept
    assert {"torch", "onnxruntime", "av", "fastapi", "matplotlib", "sklearn", "faiss", "safetensors"} <= missing
    assert not {"cmap", "filelock", "h5py", "numpy", "PIL", "rich", "scipy", "typer"} & missing

    def bare(*words):
        command = [sys.executable, "-c", BARE.format(missing=missing), *map(str, words)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COV_CORE")}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return bare


@pytest.mark.parametrize("words", [("--help",), ("explain", "--help"), ("inspect", GOLDEN / "weights-1.0.0.h5")])
def test_help_and_inspection_need_no_extra(bare, words):
    done = bare(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("demo --out OUT", "train"),
        ("train --data digits --backbone tiny --out OUT/n.safetensors", "train"),
        ("build --net NET --data digits --out OUT/w.h5", "train"),
        ("evaluate --net NET --db DB --data digits", "train"),
        ("explain --net NET --db DB x.png", "torch"),
        ("explain --onnx ONNX x.png", "onnx"),
        ("export --net NET --db DB --out OUT/e.onnx", "export"),
        ("classmap --net mobilenet_v2 --weights DEFAULT x.png", "torch"),
        ("serve --onnx ONNX", "app"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_the_mend(bare, tmp_path, words, extra):
    places = {
        "NET": GOLDEN / "net-1.safetensors",
        "DB": GOLDEN / "weights-1.0.0.h5",
        "ONNX": GOLDEN / "explainer-1.onnx",
        "OUT": tmp_path,
    }
    # Split before the paths, which may have spaces, are put in.
    done = bare(*(re.sub("NET|DB|ONNX|OUT", lambda name: str(places[name[0]]), word) for word in words.split()))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f'pip install "embedcam[{extra}]"' in done.stderr


def test_every_extra_that_a_message_or_a_page_names_exists():
    named = set()
    for path in (*(ROOT / "embedcam").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")):
        found = re.findall(r"pip install ['\"]embedcam\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        named |= {extra for group in found for extra in group.split(",")}
    assert {"torch", "train", "onnx", "export", "video", "app"} <= named
    assert named <= PROJECT["optional-dependencies"].keys()


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation
    assert embedcam.__version__ == PROJECT["version"]


def test_the_pythons_that_are_promised_are_those_that_are_tested():
    tested = re.search(r"PYTHONS = \((.*)\)", (ROOT / "tests" / "versions.py").read_text())[1]
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert promised == re.findall(r"3\.\d+", tested)
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_type_checkers_find_misspelt_names_and_every_room():
    """What is loaded when first used must be told to type checkers by hand."""
    text = (ROOT / "embedcam" / "__init__.py").read_text()
    told = text.partition("if TYPE_CHECKING:")[2].partition("__version__")[0]
    for name in inspect.getclosurevars(embedcam._load).nonlocals["homes"]:
        assert re.search(rf"\b{name}\b", told), name
    assert "if not TYPE_CHECKING:" in text
