import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from embedcam.builder.build import build_database
from embedcam.data import load
from embedcam.nets import EmbeddingNet

pytestmark = pytest.mark.docs
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "localization.py"


def test_data_sets_stand_in_one_table_with_peers_rivals_and_controls(tmp_path):
    torch.manual_seed(0)
    net, digits = EmbeddingNet("tiny", 8, image_size=32).eval(), load("digits", "train")
    net.save(tmp_path / "net.safetensors")
    few = digits.subset(np.concatenate([np.flatnonzero(digits.labels == label)[:6] for label in range(10)]))
    build_database(net, few, clusters=4, top_k=12, pairs=5).save(tmp_path / "weights.h5")
    digits_run = ("--run", "net.safetensors", "weights.h5", "digits")
    options = ("--images", "12", "--grid", "2", "--brief", "--out", "out")
    command = [sys.executable, str(SCRIPT), *digits_run, *digits_run, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    result, again = json.loads((tmp_path / "out" / "localization.json").read_text())["data"]
    assert again["rows"][0]["grid_share"] == pytest.approx(result["rows"][0]["grid_share"], abs=1e-3)
    rows = {row["method"]: row for row in result["rows"]}
    assert result["images"] == 12
    assert {"embedcam", "EigenCAM", "FEM", "Gaussian in the centre", "embedcam, untrained head"} <= set(rows)
    for name in ("GradCAM", "LayerCAM", "HiResCAM", "FinerCAM", "KPCA-CAM"):
        assert rows[f"grad-cam 1.5.7 {name}"]["grid_share_partner"] is not None
    # Where the head sees only means, the gradients of all cells are equal.
    gradcam, hirescam = rows["grad-cam 1.5.7 GradCAM"], rows["grad-cam 1.5.7 HiResCAM"]
    assert hirescam["mean_ratio"] == pytest.approx(gradcam["mean_ratio"], abs=1e-3)
    assert rows["torchcam GradCAM"]["mean_ratio"] == pytest.approx(gradcam["mean_ratio"], abs=0.02)
    table = (tmp_path / "out" / "localization.md").read_text()
    assert table.count("| digits | ") == 2 * len(rows)
    assert (tmp_path / "out" / "localization.png").exists()
