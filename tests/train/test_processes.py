"""Training in several processes."""

import torch
from safetensors.torch import save_file

from embedcam.nets import EmbeddingNet


def test_two_processes_train_the_network_of_one(folder, tmp_path, processes):
    torch.manual_seed(1)
    # Pretrained weights: batch-norm statistics stay as they are, or each process would have its own images'.
    save_file(EmbeddingNet("tiny", 8, image_size=32).backbone.state_dict(), tmp_path / "tiny.safetensors")
    given = ("train", "--data", f"folder:{folder}", "--backbone", "tiny", "--weights", tmp_path / "tiny.safetensors")
    given += ("--image-size", 32, "--dim", 8, "--epochs", 2, "--batch-size", 13, "--lr", 1e-2)
    given += ("--objective", "proxy-anchor")
    nets = []
    for count in (1, 2):
        out = tmp_path / f"{count}.safetensors"
        done = processes(count, *given, "--out", out)
        assert [each.returncode for each in done] == [0] * count, done
        assert [each.stdout.count("wrote") for each in done] == [1] + [0] * (count - 1)
        nets.append(torch.cat([value.flatten() for value in EmbeddingNet.load(out).backbone.parameters()]))
    one, two = nets
    start = EmbeddingNet("tiny", 8, image_size=32, weights=tmp_path / "tiny.safetensors").backbone.parameters()
    moved = (one - torch.cat([value.flatten() for value in start])).abs().max()
    assert moved > 1e-3
    assert (one - two).abs().max() < 1e-2 * moved
