"""Install the wheel with each extra by itself, and use the part that it is for: `make test-extras`.

Each gets a virtual environment under build/extras; downloads gigabytes.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
NETWORK = f"--net {GOLDEN / 'net-1.safetensors'} --db {GOLDEN / 'weights-1.0.0.h5'}"
ONNX = f"--onnx {GOLDEN / 'explainer-1.onnx'}"
PICTURE = 'python -c \'from PIL import Image; Image.effect_noise((64, 64), 90).convert("RGB").save("picture.png")\''
FILM = """
import av, numpy as np
with av.open("film.mp4", "w") as film:
    stream = film.add_stream("mpeg4", rate=5)
    stream.width = stream.height = 64
    for level in range(0, 250, 50):
        film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8))))
    film.mux(stream.encode())
"""
PAGE = f"""
from embedcam import OnnxExplainer
from embedcam.app import create_app
assert any(route.path == "/explain" for route in create_app(OnnxExplainer({str(GOLDEN / "explainer-1.onnx")!r})).routes)
"""
FONTS = "from embedcam.show.text import printable; labels = 'Жук 日本語 한국어 עברית العربية ไทย हिन्दी'"
FONTS += "; assert printable(labels) == labels, printable(labels)"

# What is installed (extras, with a comma between them), and command lines that must then end well; after "!", those
# that must name the extra that they lack.
EXTRAS: dict[str, list[str]] = {
    "": [
        "embedcam --help",
        f"embedcam inspect {GOLDEN / 'weights-1.0.0.h5'}",
        "! embedcam[train] embedcam demo",
        "! embedcam[train] embedcam build --net n --data digits --out w.h5",
        f"! embedcam[torch] embedcam explain picture.png {NETWORK}",
        f"! embedcam[onnx] embedcam explain picture.png {ONNX}",
        f"! embedcam[export] embedcam export {NETWORK} --out e.onnx",
        f"! embedcam[app] embedcam serve {ONNX}",
    ],
    "onnx": [PICTURE, f"embedcam explain picture.png {ONNX}", f"! embedcam[video] embedcam explain film.mp4 {ONNX}"],
    "onnx,video": [f"python -c {shlex.quote(FILM)}", f"embedcam explain film.mp4 {ONNX} --out explained.mp4"],
    "onnx,app": [f"python -c {shlex.quote(PAGE)}"],
    "fonts": [f"python -c {shlex.quote(FONTS)}"],
    "torch": [PICTURE, f"embedcam explain picture.png {NETWORK}"],
    "train": ["embedcam train --data digits --backbone tiny --image-size 32 --dim 8 --epochs 0 --out net.safetensors"],
    "export": [f"embedcam export {NETWORK} --out explainer.onnx"],
}


def use(extras: str, wheel: Path) -> list[str]:
    """Make an environment with the wheel and these extras, and run the command lines.

    Returns:
        What went wrong.
    """
    folder = ROOT / "build" / "extras" / (extras or "none")
    python = folder / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            f"{wheel}[{extras}]" if extras else str(wheel),
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return [done.stderr]
    wrong = []
    for line in EXTRAS[extras]:
        lacks, line = line.removeprefix("! ").split(" ", 1) if line.startswith("! ") else (None, line)
        program, *words = shlex.split(line)
        # A folder of its own: the working tree must not be what is imported.
        done = subprocess.run([folder / "bin" / program, *words], cwd=folder, capture_output=True, text=True)
        said = done.stderr.strip()
        if lacks is None and done.returncode:
            wrong.append(f"{line}\n{said}")
        elif lacks is not None and (done.returncode != 1 or len(said.splitlines()) != 1 or lacks not in said):
            wrong.append(f"{line}\nmust say that it lacks {lacks}, and said:\n{said}")
    return wrong


def main() -> int:
    """Print one line for each choice of extras, and what went wrong; exit with 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="+", choices=list(EXTRAS), default=list(EXTRAS), metavar="NAME")
    options = parser.parse_args()
    built = ROOT / "build" / "extras" / "wheel"
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(built), str(ROOT)]
    subprocess.run(command, check=True)
    wheel = max(built.glob("embedcam-*.whl"), key=lambda path: path.stat().st_mtime)
    failed = False
    for extras in options.extras:
        wrong = use(extras, wheel)
        failed |= bool(wrong)
        print(f"embedcam[{extras}]: {'FAILED' if wrong else 'works'}", *wrong, sep="\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
