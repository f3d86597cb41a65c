"""`embedcam evaluate` without a weight database."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from embedcam import cli
from embedcam.cli import console
from embedcam.data import load
from embedcam.evaluate.ranking import Side, rank
from embedcam.gallery import index
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed


@pytest.fixture
def run(capsys, monkeypatch):
    """Run one command line; give its exit code, stdout and stderr."""
    monkeypatch.setattr(console.progress, "_shown", False)

    def run(*arguments):
        code = console.run(functools.partial(cli.app, [str(a) for a in arguments]), debug=False)
        said, err = capsys.readouterr()
        return code, said, " ".join(err.replace("│", "").split())

    return run


@pytest.fixture(scope="module")
def persons(tmp_path_factory):
    """Four persons before two cameras, in the layout of Market-1501, and a network."""
    root, rng = tmp_path_factory.mktemp("persons"), np.random.default_rng(0)
    for folder, cameras in (("bounding_box_train", (1, 2)), ("query", (1,)), ("bounding_box_test", (1, 2))):
        for person in (1, 2, 3, 4):
            for camera in cameras:
                pixels = rng.integers(0, 90, (32, 32, 3)).astype(np.uint8)
                pixels[8:24, 8:24] = np.eye(3)[person % 3] * 50 * person
                (root / folder).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(root / folder / f"{person:04}_c{camera}s1_000{camera}51_00.png")
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32).eval()
    net.save(root / "net.safetensors")
    return root, net


def side(net, spec):
    samples = load(spec)
    embedded = embed(net, samples)
    return Side.of(samples, embedded.kept, embedded.embeddings)


def test_a_published_data_set_is_scored_by_its_protocol(run, persons, tmp_path):
    root, net = persons
    spec = f"market1501:{root}"
    command = ("evaluate", "--net", root / "net.safetensors", "--data", spec, "--json", tmp_path / "scores.json")
    code, said, err = run(*command)
    assert code == 0, err
    result = json.loads((tmp_path / "scores.json").read_text())
    expected = rank(side(net, f"{spec}@query"), side(net, f"{spec}@gallery")).scores()
    assert {key: result[key] for key in expected} == expected
    assert (result["schema"], result["data"], result["skipped"]) == (1, spec, 0)
    assert "mAP" in said
    assert "4 queries, 8 images searched" in said

    index(net, load(f"{spec}@gallery"), tmp_path / "gallery.h5")
    code, said, err = run(*command, "--index", tmp_path / "gallery.h5")
    assert code == 0, err
    assert json.loads((tmp_path / "scores.json").read_text()) == result


def test_training_classes_that_are_others_are_not_searched(run, persons, folder):
    root, _ = persons
    command = ("evaluate", "--net", root / "net.safetensors", "--data")
    assert "12 queries, 18 images searched" in run(*command, f"folder:{folder}")[1]
    assert "12 queries, 12 images searched" in run(*command, f"market1501:{root}@test")[1]


def test_queries_without_any_right_image_are_named(run, persons, folder, tmp_path):
    root, net = persons
    index(net, load(f"market1501:{root}@gallery"), tmp_path / "gallery.h5")
    code, _, err = run(
        "evaluate", "--index", tmp_path / "gallery.h5", "--net", root / "net.safetensors", "--data", f"folder:{folder}"
    )
    assert code == 1
    assert "none of the 12 queries has an image of its label among the 8 that are searched" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give --net, --index or --db"),
        (("--net", "n.safetensors", "--compare"), "--compare has no effect without --db"),
        (("--net", "n.safetensors", "--resume"), "--resume has no effect without --db"),
        (("--db", "d.h5", "--index", "g.h5"), "--index has no effect with --db"),
    ],
)
def test_options_of_the_other_kind_are_refused(run, options, said):
    code, _, err = run("evaluate", "--data", "digits", *options)
    assert code == 2
    assert said in err
