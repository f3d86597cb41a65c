"""The house: who may import whom, and what runs without torch."""

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "embedcam"


def test_the_online_half_never_imports_the_offline_half():
    code = (
        "import sys, embedcam.explain.explainer, embedcam.batch.files\n"
        "bad = [m for m in sys.modules if m.startswith(('embedcam.train', 'embedcam.gradient', 'embedcam.builder.build',"
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
        "import embedcam.onnx\n"
        "embedcam.onnx.OnnxExplainer, embedcam.OnnxExplainer\n"
        "bad = [m for m in sys.modules if m.startswith('embedcam.database')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stored_matches_are_explained_without_torch_and_the_writer():
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'faiss', 'safetensors'): sys.modules[name] = None\n"
        "import embedcam\n"
        "embedcam.Gallery, embedcam.gallery.Matches\n"
        "assert 'embedcam.gallery.writer' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_unpickled():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text, path
        assert "allow_pickle=True" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path
