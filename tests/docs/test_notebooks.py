"""The notebooks run from end to end, and what is committed of them are the outputs of such a run."""

import base64
import copy
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcam.show import colorize

nbformat = pytest.importorskip("nbformat", reason="the extra docs")
pytest.importorskip("nbclient", reason="the extra docs")

pytestmark = pytest.mark.docs

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
SHARED = Path(__file__).parents[3] / "shared"
BIRDS = SHARED / "data" / "cub10"
NAMES = ["own_network.ipynb", "cub.ipynb"]
LARGEST = 600_000


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("execute", NOTEBOOKS / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=NAMES)
def notebook(request):
    return nbformat.read(NOTEBOOKS / request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def forms(notebook):
    """Name the forms of each cell's outputs, in order."""
    return [[form for output in cell.outputs for form in output.get("data", ["text"])] for cell in code_cells(notebook)]


def without_outputs(notebook):
    bare = copy.deepcopy(notebook)
    for cell in code_cells(bare):
        cell.outputs, cell.execution_count = [], None
    return bare


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_shows_what_is_committed(script, name, tmp_path, monkeypatch):
    for variable in ("CUB", "BUTTERFLIES", "WEIGHTS", "OPACITY"):
        monkeypatch.delenv(variable, raising=False)  # cub.ipynb on the built-in digits is quick
    committed = nbformat.read(NOTEBOOKS / name, as_version=4)
    run = without_outputs(committed)
    script.execute(run, tmp_path)
    script.tidy(run)
    assert forms(run) == forms(committed)


@pytest.mark.skipif(not BIRDS.is_dir(), reason="the real birds are not in this checkout")
def test_cub_notebook_runs_on_real_birds(script, tmp_path, monkeypatch):
    monkeypatch.setenv("CUB", str(BIRDS))
    monkeypatch.setenv("WEIGHTS", str(SHARED / "weights" / "mobilenet_v2_imagenet.safetensors"))
    monkeypatch.setenv("OPACITY", "1")
    run = without_outputs(nbformat.read(NOTEBOOKS / "cub.ipynb", as_version=4))
    script.execute(run, tmp_path)
    said = "".join(output.get("text", "") for cell in code_cells(run) for output in cell.outputs)
    assert "images with a box" in said
    assert "head over tail" in said


def test_committed_cells_were_run_once_and_in_order(notebook):
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_committed_outputs_hold_no_error_or_warning(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert outputs
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []


def test_committed_notebook_says_nothing_about_the_machine_or_the_time(script, notebook):
    assert notebook.metadata == script.METADATA
    assert [cell.metadata for cell in notebook.cells if cell.metadata] == []
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    said = "\n".join(output.get("text", "") + "".join(output.get("data", {}).values()) for output in outputs)
    said = re.sub(r"[A-Za-z0-9+/=\n]{200,}", "", said)  # pictures, whose letters may spell anything
    assert re.findall(r"(?<![\w<])/(?:[\w.-]+/)+|[A-Z]:\\\w+", said) == []


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_small(name):
    assert (NOTEBOOKS / name).stat().st_size < LARGEST


def share_of_heat_map_colors(png):
    """Among the pixels that are not paper, letters or frames, all three grey."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).reshape(-1, 3).astype(int)
    pixels = pixels[np.ptp(pixels, axis=1) > 30]
    colors = colorize(np.linspace(0, 1, 256)[None])[0].astype(int)
    away = np.abs(pixels[::7, None] - colors).max(axis=2).min(axis=1)
    return float((away < 25).mean())


def test_photographs_that_may_not_be_passed_on_are_hidden():
    shared = {
        name: [
            share_of_heat_map_colors(output.data["image/png"])
            for cell in code_cells(nbformat.read(NOTEBOOKS / name, as_version=4))
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        ]
        for name in NAMES
    }
    assert len(shared["cub.ipynb"]) == 1
    assert min(shared["cub.ipynb"]) > 0.95
    assert max(shared["own_network.ipynb"]) < 0.7  # overlays of photographs are told apart


def test_tidy_keeps_the_form_that_is_seen_and_what_is_in_a_picture(script):
    picture = Image.new("RGB", (4, 3), (200, 10, 30))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [
        nbformat.v4.new_output("execute_result", {"text/plain": "<html>", "text/html": "<b>1</b>", "image/png": png}),
        nbformat.v4.new_output("display_data", {"text/plain": "<Figure>", "image/png": png}),
        nbformat.v4.new_output("stream", text="as it is"),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"machine": "mine"})
    script.tidy(notebook)
    page, figure, stream = cell.outputs
    assert page.data == {"text/html": "<b>1</b>"}
    assert list(figure.data) == ["image/png"]
    kept = Image.open(io.BytesIO(base64.b64decode(figure.data["image/png"]))).convert("RGB")
    assert kept.size == (4, 3) and kept.getpixel((1, 1)) == (200, 10, 30)
    assert stream.text == "as it is"
    assert notebook.metadata == script.METADATA
