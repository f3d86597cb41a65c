import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn


@pytest.fixture
def options(trained, folder, tmp_path):
    given = {"--net": trained / "net.safetensors", "--db": trained / "weights.h5", "--data": f"folder:{folder}"}
    return [str(part) for pair in {**given, "--out": tmp_path}.items() for part in pair]


def test_all_figures_are_drawn(script, options, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "NETWORKS", {"resnet18": "layer4"})
    assert script.main(options) == 0
    for name in ("pipeline", "clusters", "placing"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 10


def test_pictures_of_another_data_set_are_refused(script, options, capsys):
    options[options.index("--data") + 1] = "digits"
    assert script.main(options) == 1
    assert "is not in the training data" in capsys.readouterr().err


def test_a_cell_depends_on_what_its_convolutions_reach(script):
    torch.manual_seed(0)
    # Two convolutions of stride 2: cell 10 is centred on pixel 40 and reaches three pixels beyond.
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
    strength = script.receptive_field(model, "1", 10)
    rows, columns = np.nonzero(strength)
    smoothing = 4
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (40 - 3 - smoothing, 40 + 3 + smoothing)
