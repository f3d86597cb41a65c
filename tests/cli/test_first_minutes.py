"""What a newcomer meets first: the help, completion in the shell, the end of the demo, and no escape codes unasked."""

import functools
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from embedcam import cli
from embedcam.cli import completion, console, printing
from embedcam.show.grid import save_png

GROUP = typer.main.get_command(cli.app)
VERBS = sorted(GROUP.commands)
PROGRAM = Path(sys.executable).with_name("embedcam")
# Everything that is printed with style: help, an error, a wrong usage, tables, a bar.
STYLED = """
import functools, sys
from embedcam import cli
from embedcam.utils import progress
from embedcam.cli import console, printing
for line in ("--help", "build --help", "inspect nowhere.h5", "frobnicate", "inspect " + sys.argv[1]):
    console.run(functools.partial(cli.app, line.split()), debug=False)
printing.print_randomisation(
    {"images": 1, "rows": [{"method": "", "stages": [], "between_images": {"spearman": None}}]}
)
list(progress.track(range(3), "reading", 3))
"""
DATABASE = Path(__file__).parents[1] / "golden" / "weights-1.0.0.h5"


@pytest.fixture
def run(capsys, monkeypatch):
    """Run one command line that must succeed; give what it printed."""
    monkeypatch.setattr(console.progress, "_shown", False)
    monkeypatch.setattr(console.signal, "signal", lambda *_: None)

    def run(*words):
        code = console.run(functools.partial(cli.app, [str(word) for word in words]), debug=False)
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_terminal_and_has_an_example_that_parses(run, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    said = run(verb, "--help")
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    assert "\x1b" not in said
    lines = [line.strip() for line in said.splitlines()]
    (start,) = (number for number, line in enumerate(lines, 1) if line in ("Example:", "Examples:"))
    shown = " ".join(line.removesuffix("\\") for line in itertools.takewhile(bool, lines[start:]))
    examples = [shlex.split(f"embedcam{each}") for each in shown.split("embedcam")[1:]]
    assert examples
    for words in examples:
        assert words[:2] == ["embedcam", verb]
        GROUP.commands[verb].make_context(verb, words[2:])  # raises if an option or a value is wrong


def test_a_wrong_option_would_be_seen():
    with pytest.raises(Exception, match=r"[Nn]o such option"):
        GROUP.commands["inspect"].make_context("inspect", ["weights.h5", "--nonsense"])


def test_long_lists_of_options_are_in_groups(run):
    for verb in ("train", "build", "explain", "evaluate"):
        assert "─ Running ─" in run(verb, "--help")


def test_help_lists_the_registered_parts(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = " ".join(run("build", "--help").replace("│", " ").split())
    assert "digits, folder:PATH" in said
    assert "torchvision:NAME" in said
    assert "{" not in said


def test_help_of_the_program_imports_no_torch_and_no_numpy():
    script = "import sys; from embedcam import cli; from embedcam.cli import console; import functools\n"
    script += "console.run(functools.partial(cli.app, ['--help']), debug=False)\n"
    script += "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_needs_no_torch():
    script = "import sys; sys.modules['torch'] = None; from embedcam.cli import app; app(['explain', '--help'])"
    environment = os.environ | {"COLUMNS": "300"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert "torchvision:NAME" in done.stdout
    assert "(listed if torch is installed)" in done.stdout


def complete(words, shell="zsh"):
    environment = os.environ | {"_EMBEDCAM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
    return subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("embedcam cl", "classmap"),
        ("embedcam build --clus", "--clusters"),
        ("embedcam export --preset p", "paper"),
        ("embedcam build --data cub-", "cub-metric:"),
        ("embedcam build --net torch", "torchvision:"),
    ],
)
def test_the_shell_completes(words, completed):
    assert completed.replace(":", "\\:") in complete(words).replace("\\\\", "\\")


def test_names_are_completed():
    assert completion.registered("datasets")("f") == ["folder:"]
    assert {"digits", "wds:", "cub:"} <= set(completion.registered("datasets")(""))
    assert completion.registered("networks")("tor") == ["torchvision:"]
    assert completion.registered("transfers")("neigh") == ["neighbors"]
    assert completion.colormaps("virid") == ["viridis"]
    assert completion.backbones("mobilenet_v2") == ["mobilenet_v2"]
    assert "tiny" in completion.backbones("")


def test_backbones_are_not_completed_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert completion.backbones("") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_is_installed_for_bash(tmp_path):
    script = f"""
    {shlex.quote(str(PROGRAM))} --install-completion >/dev/null || exit 1
    source "$HOME/.bashrc" && complete -p embedcam
    """
    # An editor's or a job's environment may name another shell than the one that runs.
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("complete ")


def test_what_the_demo_says_next_works_as_printed(run, trained, tmp_path, monkeypatch):
    out = tmp_path / "a demo"

    def demo(out, seed):
        for name in ("net.safetensors", "weights.h5"):
            out.mkdir(exist_ok=True)
            shutil.copy(trained / name, out)
        save_png(np.zeros((32, 32, 3), np.uint8), out / "images" / "0.png")

    monkeypatch.setattr("embedcam.demo.demo", demo)
    monkeypatch.setattr(printing, "print_scores", lambda _: None)
    said = run("demo", "--out", out)
    assert f"Open {out}/report.html" in said
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("  embedcam ")]
    assert [words[1] for words in commands] == ["inspect", "explain", "train"]
    for words in commands:
        run(*words[1:])
    assert (out / "explained" / "contact_sheet.png").is_file()


def on_a_terminal(**environment):
    """Print everything that has style on a terminal of a process of its own; give the bytes that arrive there."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-c", STYLED, str(DATABASE)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=plain | {"TERM": "xterm"} | environment) as job:
        os.close(theirs)
        arrived = b""
        try:
            while part := os.read(ours, 65536):
                arrived += part
        except OSError:  # how Linux says that the other side is closed
            pass
    os.close(ours)
    assert job.returncode == 0, arrived.decode()
    assert b"cluster" in arrived
    assert b"reading" in arrived
    return arrived


def test_a_terminal_gets_colours():
    assert b"\x1b[" in on_a_terminal()


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_escape_codes_gets_none(environment):
    assert b"\x1b" not in on_a_terminal(**environment)


def test_a_file_gets_no_escape_codes():
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "GITHUB_ACTIONS")}
    done = subprocess.run([sys.executable, "-c", STYLED, DATABASE], capture_output=True, env=plain | {"TERM": "xterm"})
    assert done.returncode == 0, done.stderr.decode()
    assert b"\x1b" not in done.stdout + done.stderr
