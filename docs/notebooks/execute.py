"""Execute notebooks in place, and keep the outputs that a reader sees.

    python docs/notebooks/execute.py docs/notebooks/own_network.ipynb
    OPACITY=1 BUTTERFLIES=/path/to/butterflies python docs/notebooks/execute.py docs/notebooks/cub.ipynb

Paths must be absolute, because a notebook runs in a temporary folder. `SOURCE_DATE_EPOCH` fixes the time of creation
in databases.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

# An output has several formats; a reader sees the first of these that is present.
SHOWN = ("text/html", "image/png", "text/plain")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook: nbformat.NotebookNode, folder: str | Path, timeout: int = 1200) -> None:
    """Run all cells in a new kernel.

    Args:
        notebook: The notebook; outputs are added in place.
        folder: Working directory of the kernel.
        timeout: Limit for one cell in seconds.

    Raises:
        CellExecutionError: If a cell fails.
    """
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Keep one format per output, images in 256 colours, and no metadata of the machine.

    Args:
        notebook: Changed in place.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "data" in output:
                form = next(form for form in SHOWN if form in output.data)
                output.data = nbformat.from_dict({form: output.data[form]})
                if form == "image/png":
                    output.data[form] = _small(output.data[form])


def _small(png: str) -> str:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    # With its own palette given, Pillow dithers, which avoids visible steps in heat maps.
    picture.quantize(palette=picture.quantize(256)).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Execute the notebooks named on the command line."""
    for path in map(Path, sys.argv[1:]):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, folder)
        tidy(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
