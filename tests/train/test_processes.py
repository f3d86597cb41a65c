"""Training in several processes."""

import pytest
import torch
from safetensors.torch import save_file

from embedcam.nets import EmbeddingNet


@pytest.mark.parametrize("pretrained", [True, False])
def test_two_processes_train_the_network_of_one(folder, tmp_path, processes, pretrained):
    """With pretrained weights, batch-norm statistics stay as they are; without, they are those of the whole batch.

    Pictures are not augmented: differences of rounding grow faster with crops.
    """
    given = ("train", "--data", f"folder:{folder}", "--backbone", "tiny", "--image-size", 32, "--dim", 8)
    given += ("--epochs", 2, "--batch-size", 13, "--lr", 1e-2, "--objective", "proxy-anchor", "--no-augment")
    if pretrained:
        torch.manual_seed(1)
        save_file(EmbeddingNet("tiny", 8, image_size=32).backbone.state_dict(), tmp_path / "tiny.safetensors")
        given += ("--weights", tmp_path / "tiny.safetensors")
    states = []
    for epochs, count in ((0, 1), (2, 1), (2, 2)):
        out = tmp_path / f"{epochs}-{count}.safetensors"
        done = processes(count, *given, "--epochs", epochs, "--out", out)
        assert [each.returncode for each in done] == [0] * count, done
        assert [each.stdout.count("wrote") for each in done] == [1] + [0] * (count - 1)
        backbone = EmbeddingNet.load(out).backbone.state_dict()
        states.append({name: value.float() for name, value in backbone.items() if "tracked" not in name})
    start, one, two = states
    moved = max(float((one[name] - start[name]).abs().max()) for name in one if "running" not in name)
    assert moved > 1e-3
    for name in one:
        assert (one[name] - two[name]).abs().max() < 1e-2 * max(moved, float(one[name].abs().max())), name
