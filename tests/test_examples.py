"""The examples start `embedcam` with options that it has."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedcam.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["slurm.sh", "pytorchjob.yaml"])
def test_options_of_the_examples_exist(name):
    text = (EXAMPLES / name).read_text()
    started = text[text.index("embedcam", text.index("torchrun")) :].partition("resources:")[0]
    verb = re.search(r"\b(build|train)\b", started)[0]
    known = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
    options = re.findall(r"(?<![\w-])--[a-z][a-z-]+", started)
    assert {"--net", "--data", "--out", "--resume"} <= set(options)
    assert [option for option in options if option not in known] == []


def test_the_shell_script_is_sound():
    subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sh")], check=True)
