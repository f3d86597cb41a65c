"""Networks of the user on every verb that takes one."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

NETWORKS = """
import torch
from torch import nn
import embedcam

def make():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    return nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))

class Two(nn.Sequential):
    def forward(self, images):
        return {"embedding": super().forward(images)}

def two():
    return Two(make())

def wrapped():
    return embedcam.wrap(make(), "0", preprocess=embedcam.Preprocess((32, 32)))
"""
RUN = """
import os, runpy, sys
os.chdir(sys.argv.pop(1))
runpy.run_module("embedcam", run_name="__main__")
"""


@pytest.fixture
def embedcam(forks, tmp_path):
    """Run a command line that must succeed, beside a module of the user's own."""
    (tmp_path / "users.py").write_text(NETWORKS)

    def run(*words, code=0):
        done = forks.run(RUN, tmp_path, *words)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def test_a_wrapped_network_is_built_explained_evaluated_and_exported(embedcam, folder, tmp_path):
    net, data = ("--net", "python:users:wrapped"), ("--data", f"folder:{folder}")
    explained = (*net, "--db", "weights.h5")
    images = folder / "images" / "class0"
    embedcam("build", *net, *data, "--clusters", 4, "--top-k", 8, "--pairs", 5, "--out", "weights.h5")
    embedcam("explain", *explained, images, "--out", "torch")
    embedcam("evaluate", *explained, *data, "--json", "scores.json")
    assert all(0 <= row["mean_ratio"] <= 1 for row in json.loads((tmp_path / "scores.json").read_text())["rows"])
    embedcam("export", *explained, "--out", "explainer.onnx")
    embedcam("explain", "--onnx", "explainer.onnx", images, "--out", "onnx")
    maps = [np.load(tmp_path / runtime / "maps" / "00.png.npz")["heatmap"] for runtime in ("torch", "onnx")]
    np.testing.assert_allclose(*maps, atol=1e-3)
    assert "wrote 10 pictures" in embedcam("explain", *explained, images, "--against", images / "00.png")


def test_weights_go_with_a_name_alone(embedcam, folder, trained):
    database = ("--db", trained / "weights.h5")
    said = embedcam("explain", "--net", trained / "net.safetensors", *database, "--weights", "x.pth", folder, code=1)
    assert "weights cannot be chosen:" in said and "has its own; leave it out" in said
    said = embedcam("explain", "--net", "python:users:make", *database, "--weights", "x.pth", folder, code=1)
    assert "no weights file x.pth" in said
    said = embedcam("explain", "--onnx", "explainer.onnx", "--weights", "x.pth", folder, code=2)
    assert "or --onnx alone" in said


def test_an_unknown_family_is_answered_with_the_nearest(embedcam, trained, folder):
    said = embedcam("explain", "--net", "torchvison:resnet18", "--db", trained / "weights.h5", folder, code=1)
    assert "unknown network family 'torchvison'; did you mean 'torchvision'?" in said


def test_a_networks_options_are_the_same_on_every_verb(embedcam, folder, tmp_path):
    net = ("--net", "python:users:two", "--output", "embedding", "--metric", "euclidean", "--input-size", "48x32")
    data = ("--data", f"folder:{folder}")
    build = ("build", *net, *data, "--layer", "0.0.2", "--clusters", 4, "--top-k", 8, "--out", "weights.h5")
    embedcam(*build)
    said = embedcam("inspect", "weights.h5")
    assert "euclidean" in said
    assert "48 x 32" in said
    assert "0.0.2" in said
    embedcam("explain", *net, "--db", "weights.h5", folder / "images" / "class0" / "00.png")
    for size in ("48 x 32", "0"):
        assert "--input-size must be like 224" in embedcam("build", *net[:-1], size, *data, "--out", "w.h5", code=2)


def test_a_database_finds_its_network_again(embedcam, folder, trained, tmp_path):
    image, data = folder / "images" / "class0" / "00.png", ("--data", f"folder:{folder}")
    shutil.copy(trained / "net.safetensors", tmp_path)
    embedcam("build", "--net", "net.safetensors", *data, "--clusters", 4, "--top-k", 8, "--out", "weights.h5")
    assert "net.safetensors" in embedcam("inspect", "weights.h5")
    embedcam("explain", "--db", "weights.h5", image)
    embedcam("evaluate", "--db", "weights.h5", *data)
    embedcam("index", "--net", "net.safetensors", *data, "--out", "gallery.h5")
    for command in (
        ("evaluate", "--db", "weights.h5", *data, "--json", "net.safetensors"),
        ("evaluate", "--index", "gallery.h5", *data, "--json", "net.safetensors"),
        ("export", "--db", "weights.h5", "--out", "net.safetensors"),
    ):
        assert "it would replace" in embedcam(*command, code=1)
    said = embedcam("explain", "--db", "weights.h5", "--layer", "features.5", image, code=2)
    assert "the options of a network need --net" in said

    moved = tmp_path / "moved"  # both files together, seen from the old folder
    moved.mkdir()
    for name in ("net.safetensors", "weights.h5"):
        (tmp_path / name).rename(moved / name)
    embedcam("explain", "--db", moved / "weights.h5", image)
    other = (moved / "net.safetensors").read_bytes()
    (moved / "net.safetensors").write_bytes(other + b" ")
    said = embedcam("explain", "--db", moved / "weights.h5", image, code=1)
    assert "net.safetensors has changed; restore it, or build or index again with this one" in said
    (moved / "net.safetensors").unlink()
    said = embedcam("explain", "--db", moved / "weights.h5", image, code=1)
    assert "net.safetensors is gone; say where it is with --net" in said


def test_a_network_that_runs_code_is_not_loaded_without_being_named(embedcam, folder):
    data = ("--data", f"folder:{folder}")
    embedcam("build", "--net", "python:users:wrapped", *data, "--clusters", 4, "--top-k", 8, "--out", "weights.h5")
    said = embedcam("explain", "--db", "weights.h5", folder, code=1)
    assert (
        "the recorded network is python:users:wrapped, which runs code and is not loaded without being asked for"
        in said
    )


def test_names_of_networks_keep_their_options_in_the_database(embedcam, folder, tmp_path):
    torch.manual_seed(0)
    save_file(models.resnet18(num_classes=3).state_dict(), tmp_path / "birds.safetensors")
    net = ("--net", "torchvision:resnet18", "--weights", "birds.safetensors", "--input-size", "64", "--layer", "layer3")
    data = ("--data", f"folder:{folder}")
    embedcam("build", *net, "--metric", "euclidean", *data, "--clusters", 4, "--top-k", 8, "--out", "weights.h5")
    said = embedcam("inspect", "weights.h5")
    for part in (
        "torchvision:resnet18",
        "birds.safetensors",
        "euclidean",
        "64 x 64",
        "layer3",
        "4 x 4",
        "torchvision 0.",
    ):
        assert part in said
    embedcam("explain", "--db", "weights.h5", folder / "images" / "class0" / "00.png")
    said = embedcam("explain", *net, "--db", "weights.h5", folder, code=1)
    assert "metric 'euclidean' recorded, 'cosine' in the network" in said
    embedcam("explain", *net, "--no-check", "--db", "weights.h5", folder / "images" / "class0" / "00.png")


def test_a_network_is_inspected_without_a_database(embedcam):
    said = embedcam("inspect", "--net", "python:users:make", "--input-size", "64x32")
    for part in ("Feature layer 0", "16 channels", "16 x 8", "cosine", "8 dimensions", "64 x 32 pixels"):
        assert part in said
    assert "give a weight database, or --net" in embedcam("inspect", code=2)
