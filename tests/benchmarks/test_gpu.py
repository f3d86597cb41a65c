import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.docs


def test_the_code_for_the_gpu_runs_on_the_cpu(run):
    printed, rows = run("gpu.py", "--device", "cpu", "--quick", "--workers", 2)
    assert {row["work"] for row in rows} == {
        "Pillow, one core",
        "embed",
        "build",
        "index",
        "match",
        "forward",
        "explain",
    }
    measured = {(row["work"], row.get("precision"), row.get("batch")) for row in rows}
    assert {("explain", precision, count) for precision in ("float32", "bfloat16") for count in (1, 4)} <= measured
    assert "device cpu" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured():
    command = [sys.executable, str(Path(__file__).parents[2] / "benchmarks" / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("bench-gpu: torch finds no CUDA GPU here, nothing was measured")
