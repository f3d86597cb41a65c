import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models


@pytest.fixture
def smallest_network(script, monkeypatch):
    # The others only take longer.
    monkeypatch.setattr(script, "NETWORKS", {"squeezenet1_1": script.NETWORKS["squeezenet1_1"]})


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def sheets(folder):
    return {depth: np.asarray(Image.open(folder / f"{depth}.png")) for depth in ("deep", "shallow")}


@pytest.mark.usefixtures("smallest_network")
def test_untrained_networks_give_both_sheets(script, picture, tmp_path):
    assert script.main([picture, "--random", "--out", str(tmp_path / "out")]) == 0
    made = sheets(tmp_path / "out")
    assert made["deep"].shape == made["shallow"].shape and not np.array_equal(made["deep"], made["shallow"])


@pytest.mark.usefixtures("smallest_network")
def test_weights_are_found_by_name_in_a_folder(script, picture, tmp_path):
    torch.manual_seed(1)
    state = models.squeezenet1_1(weights=None).state_dict()
    torch.save(state, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    assert script.main([picture, "--weights", str(tmp_path), "--out", str(tmp_path / "trained")]) == 0
    assert script.main([picture, "--random", "--out", str(tmp_path / "untrained")]) == 0
    trained, untrained = sheets(tmp_path / "trained"), sheets(tmp_path / "untrained")
    assert not np.array_equal(trained["deep"], untrained["deep"])


@pytest.mark.usefixtures("smallest_network")
def test_missing_weights_are_told_in_one_line(script, picture, tmp_path, capsys):
    assert script.main([picture, "--weights", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no weights of squeezenet1_1" in capsys.readouterr().err
    assert not (tmp_path / "out" / "deep.png").exists()


def test_all_five_networks_have_the_layers_that_are_named(script):
    from embedcam.nets import layers

    assert len(script.NETWORKS) == 5
    for name, named in script.NETWORKS.items():
        with torch.device("meta"):
            model = models.get_model(name, weights=None)
        assert all(layers.resolve(model, layer) is not None for layer in named)
