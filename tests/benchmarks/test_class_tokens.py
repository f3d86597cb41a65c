import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.docs


def test_all_maps_of_a_class_token_stand_in_one_table(run, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    options = ("--net", "timm:vit_tiny_patch16_224", "--weights", "vit.safetensors", "--images", 4, "--size", 64)
    printed, rows = run("class_tokens.py", *options, "--data", "digits")
    assert {row["method"] for row in rows} >= {"e . z", "cos(e - m, z)", "attention rollout", "Grad-CAM, last block"}
    assert all(0 <= row["mean_ratio"] <= 1 for row in rows)
    assert "| e . z" in printed
