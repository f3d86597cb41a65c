import re

import pytest

pytestmark = pytest.mark.docs

for peer in ("captum", "onnxruntime", "onnxscript", "pytorch_grad_cam", "torchcam"):
    pytest.importorskip(peer)

PLAIN = ["torch forward", "torch forward, channels last", "ONNX forward"]
OURS = ["embedcam, attached", "embedcam, default", "embedcam, paper"]
OURS_ONNX = [f"embedcam ONNX, {name}" for name in ("default", "paper", "default, int8")]
BACKPROP = ["embedcam, Grad-CAM", "torchcam", "captum", "grad-cam"]


def test_every_method_is_timed_at_every_batch_against_what_its_ratios_name(run):
    options = ("--backbones", "tiny", "--image-size", 32, "--batches", 1, 3, "--rounds", 2, "--int8")
    printed, rows = run("explain_peers.py", *options)
    assert re.search(r"left in float by int8 \{'tiny': '\d of 5'\}", printed)
    assert [row["batch"] for row in rows] == [1] * 13 + [3] * 13
    for found in (rows[:13], rows[13:]):
        assert {row["method"]: row["backprop"] for row in found} == {
            **dict.fromkeys([*PLAIN, *OURS, *OURS_ONNX], False),
            **dict.fromkeys(BACKPROP, True),
        }
        of = {row["method"]: row for row in found}
        baselines = {"x torch": "torch forward", "x channels last": "torch forward, channels last"}
        baselines |= {"x ONNX": "ONNX forward", "grad-cam / this": "grad-cam", "torchcam / this": "torchcam"}
        for column, baseline in baselines.items():
            assert of[baseline][column] == {"value": 1, "low": 1, "high": 1}
        for row in found:
            ratios = [column for column in baselines if row[column] is not None]
            assert ("x ONNX" in ratios) == ("ONNX" in row["method"])
            assert all(0 < row[name]["low"] <= row[name]["value"] <= row[name]["high"] for name in ["ms", *ratios])
