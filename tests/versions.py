"""Run the tests with the oldest and the newest dependencies that pyproject.toml claims: `make test-versions`.

For each Python that is installed here, two virtual environments are made under build/versions. What cannot be had (an
interpreter that is not installed, a version that the registry has not got for it) is said and skipped.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def oldest() -> list[str]:
    """The lower bound of each dependency, as a constraint: its last patch, which is what pip would have found then."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = sum(project["optional-dependencies"].values(), project["dependencies"])
    bounds = (re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)(?:;.*)?", item) for item in listed)
    return sorted({f"{bound[1]}=={bound[2]}.*" for bound in bounds if bound})


def install(python: str, which: str) -> tuple[Path, str | None]:
    """Make an environment with the package and its tests.

    Returns:
        The environment's folder, and why it could not be made.
    """
    folder = ROOT / "build" / "versions" / f"{python}-{which}"
    interpreter = shutil.which(f"python{python}")
    # A version manager may hold the name without the interpreter.
    if interpreter is None or subprocess.run([interpreter, "-c", ""], capture_output=True).returncode:
        return folder, "skipped, there is no such interpreter here"
    constraints = folder.with_name(f"{folder.name}.txt")
    folder.parent.mkdir(parents=True, exist_ok=True)
    constraints.write_text("\n".join(oldest() if which == "oldest" else []))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # What has no wheel for a Python was not released for it; grad-cam never has one.
    pip += ["--only-binary", ":all:", "--no-binary", "grad-cam"]
    for command in (
        [interpreter, "-m", "venv", "--clear", str(folder)],
        [*pip, "--upgrade", "--constraint", str(constraints), "--editable", f"{ROOT}[test]"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            return folder, f"cannot be installed: {said[-1] if said else 'no reason given'}"
    return folder, None


def main() -> int:
    """Print one line for each pair of a Python and a choice of versions; exit with 1 if tests fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="3.x")
    parser.add_argument("--versions", nargs="+", choices=("oldest", "newest"), default=("oldest", "newest"))
    parser.add_argument("--tests", nargs="+", default=["tests"], help="handed to pytest")
    options = parser.parse_args()
    failed = False
    for python in options.python:
        for which in options.versions:
            folder, reason = install(python, which)
            if reason is None:
                command = [
                    str(folder / "bin" / "python"),
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    *options.tests,
                ]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                log = folder.with_name(f"{folder.name}.log")
                log.write_text(done.stdout + done.stderr)
                failed |= done.returncode != 0
                reason = f"{(done.stdout.strip() or done.stderr.strip()).splitlines()[-1].strip('= ')} ({log})"
            print(f"Python {python}, {which} versions: {reason}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
