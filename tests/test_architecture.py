"""The house: who may import whom, and what runs without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "embedcam"
# A room uses only rooms below it.
ORDER = ["app", "evaluate", "explain", "database", "train", "gradient", "nets", "data", "show"]


def imports(path: Path) -> set[str]:
    """Modules of embedcam that a file imports, anywhere in it, as dotted names without the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(path.relative_to(PACKAGE).parts[: -node.level])
            name = [*base, *(node.module.split(".") if node.module else [])]
            found |= {".".join([*name, alias.name]) for alias in node.names} | {".".join(name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("embedcam"):
            found.add(node.module.removeprefix("embedcam."))
    return found


@pytest.mark.parametrize("room", ORDER)
def test_a_room_uses_only_rooms_below_it(room):
    above = ORDER[: ORDER.index(room)]
    for path in (PACKAGE / room).rglob("*.py"):
        rooms = {name.split(".")[0] for name in imports(path)}
        assert not rooms & set(above), path


def test_the_online_half_never_imports_the_offline_half():
    code = (
        "import sys, embedcam.explain, embedcam.explain.files\n"
        "bad = [m for m in sys.modules if m.startswith(('embedcam.train', 'embedcam.gradient', 'embedcam.database.build',"
        " 'pytorch_metric_learning', 'matplotlib', 'sklearn'))]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_databases_and_drawing_run_without_torch(trained):
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'faiss', 'sklearn', 'matplotlib', 'safetensors'): sys.modules[name] = None\n"
        "import embedcam, embedcam.show, embedcam.cli, embedcam.data\n"
        f"assert embedcam.WeightDatabase.load({str(trained / 'weights.h5')!r}).clusters == 4\n"
        "try: embedcam.EmbeddingNet\n"
        "except embedcam.EmbedcamError as error: assert 'pip install' in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_onnx_explainer_needs_neither_torch_nor_a_database():
    blocked = ("torch", "torchvision", "faiss", "onnx", "onnxscript", "safetensors", "h5py", "scipy", "cmap", "typer")
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import embedcam.explain\n"
        "embedcam.explain.OnnxExplainer, embedcam.OnnxExplainer\n"
        "bad = [m for m in sys.modules if m.startswith('embedcam.database')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_unpickled():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text, path
        assert "allow_pickle=True" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path
