"""A package outside embedcam adds one part of each kind: the one that docs/extending.md shows, used as it says there."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedcam.gallery import Gallery

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
RUN = """
import os, runpy, sys
site = sys.argv.pop(1)
os.chdir(os.path.dirname(site))
sys.path.insert(0, site)
runpy.run_module("embedcam", run_name="__main__")
"""


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def install(site, module, project):
    """Write a package as pip installs it: its module, and its entry points in the metadata."""
    site.mkdir()
    (site / "lab.py").write_text(module)
    metadata = site / "lab-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    groups = project[project.index("[project.entry-points") :]
    groups = re.sub(r'\[project\.entry-points\."(.+)"\]', r"[\1]", groups).replace('"', "")
    (metadata / "entry_points.txt").write_text(groups)


@pytest.fixture
def embedcam(forks, folder, tmp_path, monkeypatch):
    """Run the command line where the page's package is installed; give its exit code and what it printed."""
    (project,) = blocks("text")
    install(tmp_path / "site", "\n\n".join(blocks("python")), project)
    images = sorted((folder / "images").rglob("*.png"))[::2]
    with (tmp_path / "birds.csv").open("w", newline="") as file:
        for image in images:
            csv.writer(file).writerow(
                [image, image.parent.name, folder / "masks" / image.relative_to(folder / "images")]
            )
    shutil.copy(images[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")  # no name is broken
    return lambda *words: forks.run(RUN, tmp_path / "site", *words)


def test_the_page_shows_a_part_of_each_kind():
    (project,) = blocks("text")
    groups = re.findall(r'entry-points\."embedcam\.(\w+)"', project)
    assert sorted(groups) == ["datasets", "networks", "scores", "searchers", "transfers", "weightings"]


def test_parts_of_another_package_are_used_from_the_command_line(embedcam, tmp_path):
    (commands,), said = blocks("sh"), ""
    for command in commands.splitlines():
        if "--searcher" in command:
            with Gallery.open(tmp_path / "gallery.h5") as gallery:
                np.save(tmp_path / "vectors.npy", np.concatenate([block for _, _, block in gallery.blocks()]))
        done = embedcam(*shlex.split(command)[1:])
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert "coverage" in said
    assert "photo.jpg: 1. " in said
    result = json.loads((tmp_path / "scores.json").read_text())
    assert all(0 <= row["coverage"] <= 1 for row in result["rows"])
    assert {"overall", "xgradcam, 50 triplets"} <= {row["method"] for row in result["rows"]}
    inspected = embedcam("inspect", "lab.h5").stdout
    assert "xgradcam" in inspected
    assert "64 channels" in inspected


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("build", ["filters:CHANNELS", "sheet:FILE", "xgradcam"]),
        ("explain", ["filters:CHANNELS", "overall"]),
        ("evaluate", ["filters:CHANNELS", "sheet:FILE", "xgradcam", "overall", "coverage"]),
        ("match", ["filters:CHANNELS", "array:FILE"]),
    ],
)
def test_parts_of_another_package_are_listed_in_help(embedcam, verb, names):
    said = embedcam(verb, "--help").stdout
    assert [name for name in names if name not in said] == []


def test_a_file_that_another_package_cannot_open_is_one_line(embedcam):
    done = embedcam("build", "--net", "filters:4", "--data", "sheet:none.csv", "--out", "lab.h5")
    assert done.returncode == 1
    assert "data set 'sheet:none.csv' cannot be read: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--net", "filter:3", "unknown network family 'filter'; did you mean 'filters'?"),
        ("--data", "tabel:x", "unknown data set 'tabel'; did you mean 'table'?"),
        ("--method", "xgradcan", "unknown method 'xgradcan'; did you mean 'xgradcam'?"),
    ],
)
def test_names_of_another_package_are_suggested(embedcam, option, value, said):
    options = {"--net": "filters:4", "--data": "sheet:birds.csv", "--out": "lab.h5", option: value}
    done = embedcam("build", *(word for pair in options.items() for word in pair))
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_a_package_that_cannot_be_imported_disturbs_nothing_else(embedcam, folder, trained, tmp_path):
    (tmp_path / "site" / "lab.py").write_text("import no_such_library")
    done = embedcam("build", "--net", "filters:4", "--data", f"folder:{folder}", "--out", "lab.h5")
    assert done.returncode == 1
    assert "network family 'filters' of 'lab:filters' cannot be loaded: ModuleNotFoundError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "filters:..." in embedcam("build", "--help").stdout
    options = ("--clusters", 4, "--pairs", 5, "--out", "own.h5")
    done = embedcam("build", "--net", trained / "net.safetensors", "--data", f"folder:{folder}", *options)
    assert done.returncode == 0, done.stderr
