"""The command line for real: the whole pipeline, and what a user sees when something is wrong."""

import functools
import json
import logging
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import embedcam
from embedcam import cli
from embedcam.cli import console
from embedcam.data import load
from embedcam.errors import EmbedcamError
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed

TRAIN = ("--backbone", "tiny", "--dim", 8, "--image-size", 32, "--batch-size", 12)
BUILD = ("--clusters", 4, "--top-k", 12, "--pairs", 5)
# Runs the command line after the first argument, and presses Ctrl-C when a line of stderr begins with that.
INTERRUPTED = """
import signal, sys
from embedcam.cli import main

class Stderr:
    line = ""

    def write(self, text):
        sys.__stderr__.write(text)
        self.line += text
        if self.line.endswith("\\n"):
            line, self.line = self.line, ""
            if line.startswith(after):
                signal.raise_signal(signal.SIGINT)

    def __getattr__(self, name):
        return getattr(sys.__stderr__, name)

# Shells start background jobs with Ctrl-C ignored; a person's terminal does not.
signal.signal(signal.SIGINT, signal.default_int_handler)
after, sys.stderr = sys.argv.pop(1), Stderr()
main()
"""


@pytest.fixture
def run(capsys, monkeypatch):
    """Run one command line; give its exit code, stdout and stderr."""
    monkeypatch.setattr(console.progress, "_shown", False)  # put back after the test

    def run(*arguments):
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = console.run(functools.partial(cli.app, [str(a) for a in arguments]), debug=False)
        finally:
            signal.signal(signal.SIGTERM, before)
            logging.getLogger("embedcam").handlers.clear()  # as a process that ends
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return run


@pytest.fixture
def fails(run):
    """Run one command line that must fail; give its one line of error."""

    def fails(*arguments):
        code, _, err = run(*arguments)
        errors = [
            line for line in err.splitlines() if line.startswith("embedcam: ") and "embedcam: warning: " not in line
        ]
        assert code == 1, err
        assert len(errors) == 1, err
        assert err.rstrip().endswith(errors[0])
        assert "Traceback" not in err
        return errors[0]

    return fails


@pytest.fixture
def net_and_db(trained):
    return ("--net", trained / "net.safetensors", "--db", trained / "weights.h5")


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def left_in(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) if path.is_dir() else []


def write_truncated_jpeg(path):
    Image.effect_noise((200, 200), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def test_the_whole_pipeline_on_a_folder(run, folder, tmp_path, monkeypatch):
    monkeypatch.delattr("os.link")  # as on a file system without hard links
    net, db, out, scores = (tmp_path / n for n in ("net.safetensors", "weights.h5", "out", "scores.json"))
    data = ("--data", f"folder:{folder}")

    code, said, err = run("train", *data, *TRAIN, "--epochs", 2, "--out", net)
    assert code == 0, err
    assert said.startswith(f"wrote {net} (Recall@1 ")
    assert "epoch 2: loss" in err
    assert left_in(tmp_path) == ["net.png", "net.safetensors"]

    code, said, err = run("build", "--net", net, *data, *BUILD, "--out", db)
    assert (code, said) == (0, f"wrote {db}: 4 clusters of 18 images\n"), err

    code, said, _ = run("inspect", db)
    assert code == 0
    assert "tiny, cosine, 8 dimensions" in said
    assert "top 12 channels" in said
    assert len(said.split("strongest channels")[1].splitlines()) == 1 + 4

    explained = (folder / "images", "--boxes", "--transfer", "nearest", "--out", out)
    code, said, err = run("explain", "--net", net, "--db", db, *explained)
    assert code == 0, err
    assert "and 10 more in" in said
    lines = [json.loads(line) for line in (out / "explanations.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    files = [name for line in lines for name in (line["overlay"], line["map"])]
    assert left_in(out) == sorted(["contact_sheet.png", "explanations.jsonl", *files])

    code, said, err = run("evaluate", "--net", net, "--db", db, *data, "--compare", "--json", scores)
    assert code == 0, err
    assert "embedcam (default)" in said
    assert "12 images, 12 with a mask" in said
    result = json.loads(scores.read_text())
    assert result["schema"] == 1
    assert [row["default"] for row in result["rows"]].count(True) == 1
    keys = {"method", "default", "backprop", "mean_ratio", "iou_50", "best_iou", "pointing", "ms_per_image"}
    assert all(keys <= row.keys() for row in result["rows"])
    assert {row["backprop"] for row in result["rows"]} == {True, False}
    assert 0 <= result["recall_at_1"] <= 1


def test_explaining_in_another_size_and_the_published_way(run, fused, folder, tmp_path):
    net, db = fused
    net.save(tmp_path / "net.safetensors")
    db.save(tmp_path / "weights.h5")
    files = ("--net", tmp_path / "net.safetensors", "--db", tmp_path / "weights.h5")
    picture = folder / "images" / "class0" / "00.png"
    sizes = {}
    for name, options in {"default": (), "paper": ("--preset", "paper"), "asked": ("--explain-size", 96)}.items():
        assert run("explain", picture, *files, *options, "--out", tmp_path / name)[0] == 0
        sizes[name] = np.load(tmp_path / name / "maps" / "00.png.npz")["heatmap"].shape
    assert sizes == {"default": (128, 128), "paper": (64, 64), "asked": (96, 96)}


def test_images_are_compared_with_another(run, fails, trained, folder, tmp_path):
    files = ("--net", trained / "net.safetensors", "--db", trained / "weights.h5", "--out", tmp_path / "out")
    other = folder / "images" / "class0" / "00.png"
    code, said, err = run("explain", folder / "images" / "class0", *files, "--against", other)
    assert code == 0, err
    assert f"{other}: similarity 1.000" in said
    lines = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert left_in(tmp_path / "out") == sorted(["pairs.jsonl", *(line["pair"] for line in lines)])
    assert len(lines) == 10
    assert "no such file" in fails("explain", other, *files, "--against", tmp_path / "none.png").lower()


def test_images_are_asked_towards_and_versus(run, fails, spread, folder, tmp_path):
    net, db = spread
    net.save(tmp_path / "net.safetensors")
    db.save(tmp_path / "weights.h5")
    files = ("--net", tmp_path / "net.safetensors", "--db", tmp_path / "weights.h5", "--out", tmp_path / "out")
    picture, other = (folder / "images" / f"class{label}" / "00.png" for label in (0, 1))
    for towards in ("class1", "cluster:0", other):
        code, said, err = run("explain", picture, *files, "--towards", towards, "--versus", "2")
        assert code == 0, err
        (line,) = map(json.loads, (tmp_path / "out" / "explanations.jsonl").read_text().splitlines())
        assert str(towards).partition(":")[2] in line["towards"] or str(towards) in line["towards"]
        assert line["versus"] == db.describe(2)
        assert f"{line['similarity']:+.3f} towards {line['towards']} rather than {db.describe(2)} (for" in said
    assert "did you mean 'class1'" in fails("explain", picture, *files, "--towards", "clas1")
    code, _, err = run("explain", picture, "--onnx", "x.onnx", "--towards", "class1")
    assert (code, "an ONNX file answers none" in err) == (2, True)


def test_an_exported_explainer_says_the_same(run, fails, spread, folder, tmp_path):
    net, db = spread
    net.save(tmp_path / "net.safetensors")
    db.save(tmp_path / "weights.h5")
    files = ("--net", tmp_path / "net.safetensors", "--db", tmp_path / "weights.h5")
    code, said, err = run("export", *files, "--out", tmp_path / "explainer.onnx")
    assert code == 0, err
    assert "the same clusters" in said
    picture = folder / "images" / "class0" / "00.png"
    given = {"torch": files, "onnx": ("--onnx", tmp_path / "explainer.onnx")}
    for name, options in given.items():
        assert run("explain", picture, *options, "--out", tmp_path / name)[0] == 0
    maps = [np.load(tmp_path / name / "maps" / "00.png.npz")["heatmap"] for name in given]
    np.testing.assert_allclose(*maps, atol=1e-3)
    assert "or --onnx alone" in run("explain", picture, *files, *given["onnx"])[2]
    assert "or --onnx alone" in run("explain", picture, *files[:2])[2]
    assert "--preset has no effect on an ONNX file" in run("explain", picture, *given["onnx"], "--preset", "paper")[2]
    assert "--provider needs --onnx" in run("explain", picture, *files, "--provider", "CPUExecutionProvider")[2]
    assert "no execution provider 'Tpu' here; use one of" in fails(
        "explain", picture, *given["onnx"], "--provider", "Tpu"
    )
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((tmp_path / "explainer.onnx").read_bytes()[:5000])
    assert "damaged.onnx" in fails("explain", picture, "--onnx", damaged, "--out", tmp_path / "out")


def test_anomalies_are_listed_the_most_unlike_first(run, trained, folder, tmp_path):
    files = ("--net", trained / "net.safetensors", "--db", trained / "weights.h5")
    code, said, err = run("explain", folder / "images", *files, "--anomaly", "--out", tmp_path / "out")
    assert code == 0, err
    listed = [float(line.split("anomaly ")[1].split(";")[0]) for line in said.splitlines() if "anomaly " in line]
    assert len(listed) == 20
    assert listed == sorted(listed, reverse=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    assert max(line["anomaly"] for line in lines) == pytest.approx(listed[0], abs=0.01)
    flagged = [line for line in lines if line["anomaly"] > 1]
    assert all(line["typicality_in_words"] == "unlike the training images" for line in flagged)
    assert all(line["notes"][0].startswith("unlike the training images: ") for line in flagged)


def test_faithfulness_and_randomisation_are_printed_drawn_and_written(run, trained, folder, tmp_path):
    files = ("--net", trained / "net.safetensors", "--db", trained / "weights.h5", "--data", f"folder:{folder}")
    out, scores = tmp_path / "out", tmp_path / "scores.json"
    options = ("--faithfulness", "--randomisation", "--out", out, "--json", scores)
    code, said, err = run("evaluate", *files, *options)
    assert code == 0, err
    assert "random order" in said
    assert "between images" in said
    assert left_in(out) == ["faithfulness.png", "randomisation.png"]
    result = json.loads(scores.read_text())
    assert [row["method"] for row in result["faithfulness"]["rows"]][:2] == ["embedcam", "cluster transfer (paper)"]
    assert result["randomisation"]["rows"][0]["stages"][0]["spearman"] == pytest.approx(1)


def test_heat_by_part_and_boxes_of_birds_are_printed_and_written(run, trained, folder, tmp_path):
    birds, scores = tmp_path / "birds", tmp_path / "scores.json"
    pictures = sorted((folder / "images").rglob("*.png"))
    (birds / "parts").mkdir(parents=True)
    (birds / "images").symlink_to(folder / "images")

    def write(name, lines):
        (birds / name).write_text("".join(f"{line}\n" for line in lines))

    numbered = list(enumerate(pictures, start=1))
    write("classes.txt", [f"{i} class{i - 1}" for i in (1, 2, 3)])
    write("images.txt", [f"{i} {file.parent.name}/{file.name}" for i, file in numbered])
    write("image_class_labels.txt", [f"{i} {int(file.parent.name[-1]) + 1}" for i, file in numbered])
    write("train_test_split.txt", [f"{i} {i % 2}" for i, _ in numbered])
    write("bounding_boxes.txt", [f"{i} 5 5 30 20" for i, _ in numbered])
    write("parts/parts.txt", ["1 beak", "2 tail"])
    write("parts/part_locs.txt", [f"{i} {part} {part * 10} 10 1" for i, _ in numbered for part in (1, 2)])
    files = ("--net", trained / "net.safetensors", "--db", trained / "weights.h5", "--data", f"cub:{birds}")
    code, said, err = run("evaluate", *files, "--parts", "--json", scores)
    assert code == 0, err
    assert "15 with a box" in said
    assert "head over tail" in said
    result = json.loads(scores.read_text())
    assert result["parts"]["images"] == result["masks"] == 15
    code, _, err = run("evaluate", *files[:-1], f"folder:{folder}", "--parts")
    assert (code, "no keypoints" in err) == (1, True)
    code, _, err = run("evaluate", *files[:-1], f"folder:{folder}", "--grid", 2)
    assert (code, "at least 4 classes, found 3" in err) == (1, True)


def test_same_seed_same_network_and_same_database(run, folder, tmp_path):
    for name in ("a", "b"):
        net = tmp_path / name / "net.safetensors"
        assert run("train", "--data", f"folder:{folder}", *TRAIN, "--epochs", 1, "--seed", 3, "--out", net)[0] == 0
        db = tmp_path / name / "weights.h5"
        assert run("build", "--net", net, "--data", f"folder:{folder}", *BUILD, "--out", db)[0] == 0
    for name in ("net.safetensors", "weights.h5"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("verb", ["train", "build"])
def test_a_missing_path_and_an_empty_folder(fails, trained, tmp_path, verb):
    options = TRAIN if verb == "train" else ("--net", trained / "net.safetensors", *BUILD)
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()

    error = fails(verb, "--data", f"folder:{tmp_path}/nowhere", *options, "--out", out / "file")
    assert error == f"embedcam: {tmp_path}/nowhere does not exist; pass the folder that contains the pictures"
    error = fails(verb, "--data", f"folder:{tmp_path}/empty", *options, "--out", out / "file")
    assert error.startswith(f"embedcam: no pictures in {tmp_path}/empty; put them into")
    assert left_in(out) == []


def test_explaining_a_missing_path_and_an_empty_folder(fails, net_and_db, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, error in (("nowhere.jpg", "no such file or folder: {}; check"), ("empty", "no image in {}; use")):
        path = tmp_path / name
        assert error.format(path) in fails("explain", path, *net_and_db, "--out", tmp_path / "out")
    assert left_in(tmp_path) == []


def test_images_of_one_name_do_not_overwrite_their_class_maps(fails, tmp_path):
    images = (tmp_path / "a" / "street.jpg", tmp_path / "b" / "street.png")
    error = fails("classmap", *images, "--net", "mobilenet_v2", "--weights", "DEFAULT", "--out", tmp_path / "out")
    assert error.startswith("embedcam: several images would write street_boxes.png")


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_an_unreadable_image_is_skipped_and_counted(run, trained, net_and_db, copy, tmp_path, damage):
    bad = copy / "images" / "class1" / "bad.jpg"
    bad.write_text("hello") if damage == "text" else write_truncated_jpeg(bad)
    data, net = ("--data", f"folder:{copy}@all"), trained / "net.safetensors"
    warning = f"embedcam: warning: skipped: {'' if damage == 'text' else 'cannot read '}{bad}"

    code, _, err = run("train", *data, *TRAIN, "--epochs", 1, "--out", tmp_path / "net.safetensors")
    assert (code, err.count(warning)) == (0, 1), err

    code, said, err = run("build", *data, "--net", net, *BUILD, "--out", tmp_path / "weights.h5")
    assert (code, err.count(warning)) == (0, 1), err
    assert "4 clusters of 30 images, 1 unreadable skipped" in said

    code, _, err = run("explain", copy / "images", *net_and_db, "--out", tmp_path / "out")
    assert (code, err.count(warning)) == (0, 1), err
    assert "embedcam: warning: 1 of 31 images could not be read and were left out" in err
    assert len((tmp_path / "out" / "explanations.jsonl").read_text().splitlines()) == 30

    code, said, err = run("evaluate", *data, *net_and_db, "--json", tmp_path / "scores.json")
    assert (code, err.count(warning)) == (0, 1), err
    assert "30 images, 30 with a mask, 1 unreadable skipped" in said
    assert json.loads((tmp_path / "scores.json").read_text())["skipped"] == 1


def test_an_unreadable_image_is_an_error_with_strict(fails, trained, net_and_db, copy, tmp_path):
    bad, out = write_truncated_jpeg(copy / "images" / "class0" / "00-bad.jpg"), tmp_path / "out"
    data, net = ("--data", f"folder:{copy}@all"), trained / "net.safetensors"
    for command in (
        ("train", *data, *TRAIN, "--out", out / "net.safetensors"),
        ("build", *data, "--net", net, *BUILD, "--out", out / "weights.h5"),
        ("explain", copy / "images", *net_and_db, "--out", out),
        ("evaluate", *data, *net_and_db, "--json", out / "scores.json"),
    ):
        error = fails(*command, "--strict")
        assert error.startswith(f"embedcam: cannot read {bad}: ")
        assert error.endswith("; replace it or remove it")
    assert left_in(out) == []


def test_nothing_but_unreadable_images_is_an_error(fails, net_and_db, tmp_path):
    bad = write_truncated_jpeg(tmp_path / "bad.jpg")
    assert str(bad) in fails("explain", bad, *net_and_db, "--out", tmp_path / "out")
    assert left_in(tmp_path / "out") == []


def test_a_class_with_one_image_stops_neither_training_nor_building(run, trained, copy, tmp_path):
    data = ("--data", f"folder:{copy}@all")
    for image in sorted((copy / "images" / "class0").iterdir())[1:]:
        image.unlink()
    code, _, err = run("train", *data, *TRAIN, "--epochs", 1, "--out", tmp_path / "net.safetensors")
    assert code == 0, err
    assert "1 of 3 classes have one image" in err
    code, _, err = run("build", "--net", trained / "net.safetensors", *BUILD, *data, "--out", tmp_path / "weights.h5")
    assert code == 0, err
    assert "1 of 3 classes have a single image, which has no positive" in err


def test_one_class_only_trains_nothing_but_is_built_from_clusters(run, fails, trained, copy, tmp_path):
    out, data = tmp_path / "out", ("--data", f"folder:{copy}@all")
    shutil.rmtree(copy / "images" / "class0")
    shutil.rmtree(copy / "images" / "class2")
    assert "'class1'" in fails("train", *data, *TRAIN, "--out", out / "net.safetensors")
    assert left_in(out) == []
    code, _, err = run("build", "--net", trained / "net.safetensors", *BUILD, *data, "--out", tmp_path / "weights.h5")
    assert code == 0, err
    assert "all images are of class 'class1'; clusters stand for classes" in err


def test_a_build_takes_given_embeddings_and_no_labels(run, fails, trained, folder, tmp_path):
    samples = load(f"folder:{folder}", "all")
    net = EmbeddingNet.load(trained / "net.safetensors")
    embeddings = embed(net, samples, pooled=False).embeddings
    np.save(tmp_path / "birds.npy", embeddings[::-1])
    (tmp_path / "paths.txt").write_text("\n".join(samples.ids[::-1]))
    out = tmp_path / "weights.h5"
    command = ("build", "--net", trained / "net.safetensors", "--data", f"folder:{folder}", *BUILD, "--out", out)
    given = ("--embeddings", tmp_path / "birds.npy", "--paths", tmp_path / "paths.txt")
    code, _, err = run(*command, *given, "--unlabelled")
    assert code == 0, err
    assert embedcam.WeightDatabase.load(out).label_names is None
    (tmp_path / "paths.txt").write_text("\n".join(samples.ids))
    assert "they are in another order" in fails(*command, *given)
    code, _, err = run(*command, *given[:2])
    assert code == 2
    assert "give --embeddings and --paths together" in err


def test_an_unknown_layer_is_answered_with_the_nearest_names(fails, trained, folder, tmp_path):
    data, out = ("--data", f"folder:{folder}"), tmp_path / "out"
    build = ("build", "--net", trained / "net.safetensors", *data, *BUILD)
    error = fails(*build, "--layer", "featurs", "--out", out / "db")
    assert "no layer 'featurs'; did you mean features " in error
    error = fails("train", *data, *TRAIN, "--train-from", "featurs.5", "--out", out / "net.safetensors")
    assert "no layer 'featurs.5'; did you mean features.5 " in error
    assert left_in(out) == []


def test_a_database_of_another_network(fails, trained, folder, tmp_path):
    torch.manual_seed(1)
    EmbeddingNet("tiny", 8, image_size=32).save(tmp_path / "other.safetensors")
    models, out = ("--net", tmp_path / "other.safetensors", "--db", trained / "weights.h5"), tmp_path / "out"
    for command in (
        ("explain", folder / "images", *models, "--out", out),
        ("evaluate", "--data", f"folder:{folder}", *models, "--json", out / "scores.json"),
    ):
        error = fails(*command)
        assert "the weight database was made for another network: sha256" in error
        assert "use the network it was built with, or build a database for this one" in error
    assert left_in(out) == []


def test_a_damaged_database(fails, trained, folder, tmp_path):
    whole = (trained / "weights.h5").read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 4
    for damaged in (whole[: len(whole) // 2], bytes(flipped)):
        file = tmp_path / "damaged.h5"
        file.write_bytes(damaged)
        models = ("--net", trained / "net.safetensors", "--db", file)
        for command in (("inspect", file), ("explain", folder / "images", *models, "--out", tmp_path / "out")):
            error = fails(*command)
            assert str(file) in error
            assert "is damaged" in error
    assert left_in(tmp_path) == ["damaged.h5"]


def test_files_of_another_kind(fails, trained, folder, tmp_path):
    net, db = trained / "net.safetensors", trained / "weights.h5"
    assert f"no weight database {tmp_path}/none.h5; make one with" in fails("inspect", tmp_path / "none.h5")
    assert f"{net} is not a readable weight database" in fails("inspect", net)
    images = (folder / "images", "--out", tmp_path / "out")
    assert "no network file" in fails("explain", *images, "--net", tmp_path / "none", "--db", db)
    assert "not a network of embedcam" in fails("explain", *images, "--net", db, "--db", db)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("size", "value", "said"),
    [
        ((7, 9), 255, "is 7 x 9 pixels but its picture is 40 x 40; create"),
        ((40, 40), 0, "marks no pixel as object; mark"),
    ],
)
def test_a_mask_that_cannot_be_right_stops_a_strict_run(fails, net_and_db, copy, tmp_path, size, value, said):
    mask = copy / "masks" / "class1" / "05.png"
    Image.new("L", size, value).save(mask)
    scores = tmp_path / "scores.json"
    error = fails("evaluate", "--data", f"folder:{copy}@all", *net_and_db, "--json", scores, "--strict")
    assert f"mask {mask} {said}" in error
    assert not scores.exists()


def test_an_output_that_cannot_be_written(fails, trained, net_and_db, folder, tmp_path):
    file, data = tmp_path / "file", ("--data", f"folder:{folder}")
    file.write_text("kept")  # permissions do not stop root, a file in the folder's place does
    for command, target in (
        (("train", *data, *TRAIN, "--out"), "net.safetensors"),
        (("build", *data, "--net", trained / "net.safetensors", *BUILD, "--out"), "weights.h5"),
        (("evaluate", *data, *net_and_db, "--json"), "scores.json"),
    ):
        assert f"cannot write {file / target}: " in fails(*command, file / target)
    for command in (("explain", folder / "images", *net_and_db, "--out"), ("demo", "--out")):
        error = fails(*command, file)
        assert f"cannot write {file}/" in error
        assert error.endswith("; choose another place")
    assert file.read_text() == "kept"
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "digit"), "unknown data set 'digit'; did you mean 'digits'?"),
        (("--backbone", "resnet51"), "unknown backbone 'resnet51'; did you mean resnet50"),
        (("--objective", "tripet"), "unknown objective 'tripet'; did you mean triplet?"),
        (("--device", "tpu"), "device 'tpu' cannot be used: "),
        (("--weights", "/nowhere/weights.pth"), "no network file /nowhere/weights.pth; give"),
    ],
)
def test_train_options_that_cannot_be_used(fails, folder, tmp_path, options, said):
    out = tmp_path / "out" / "net.safetensors"
    assert said in fails("train", "--data", f"folder:{folder}", *TRAIN, "--out", out, *options)
    assert left_in(tmp_path) == []


def test_nearest_transfer_needs_exemplars(fails, run, trained, folder, tmp_path):
    net, db = trained / "net.safetensors", tmp_path / "weights.h5"
    run("build", "--net", net, "--data", f"folder:{folder}", *BUILD, "--no-exemplars", "--out", db)
    explain = ("explain", folder / "images", "--net", net, "--db", db, "--out", tmp_path / "out")
    assert "holds no exemplars; use --transfer cluster" in fails(*explain, "--transfer", "nearest")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing option '--data'"),
        (["inspect"], "give a weight database, or --net"),
        (["inspect", "weights.h5", "--tpo", "3"], "No such option"),
        (["inspect", "weights.h5", "--top", "0"], "Invalid value for '--top'"),
        (["train", "--data", "digits", "--backbone", "tiny", "--out", "n", "--lr", "-1"], "Invalid value for '--lr'"),
        (["explain", "x.jpg", "--net", "n", "--db", "d", "--transfer", "both"], "Invalid value for '--transfer'"),
        (["explain", "x.jpg", "--net", "n", "--db", "d", "--preset", "best"], "Invalid value for '--preset'"),
        (["explain", "x.jpg", "--net", "n", "--db", "d", "--explain-size", "2"], "Invalid value for '--explain-size'"),
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments, said):
    code, _, err = run(*arguments)
    assert code == 2
    assert said in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "x.jpg", "--threshold", "0.5"], "--threshold has no effect without --boxes"),
        (["explain", "x.mp4", "--threshold", "0.5"], "--threshold has no effect without --boxes"),
        (["explain", "x.mp4", "--anomaly"], "--anomaly has no effect on a video"),
        (["explain", "x.mp4", "--batch-size", "4"], "--batch-size has no effect on a video"),
        (["explain", "x.mp4", "--resume"], "--resume has no effect on a video"),
        (["explain", "x.mp4", "--strict"], "--strict has no effect on a video"),
        (["explain", "x.mp4", "--workers", "2"], "--workers has no effect on a video"),
        (["explain", "x.mp4", "--boxes", "--alpha", "0.5"], "--alpha has no effect on a video with --boxes"),
        (["explain", "x.mp4", "--boxes", "--colormap", "jet"], "--colormap has no effect on a video with --boxes"),
        (["explain", "x.jpg", "--smoothing", "0.5"], "--smoothing has no effect on images"),
        (["explain", "x.jpg", "--against", "y.jpg", "--anomaly"], "--anomaly has no effect with --against"),
        (["explain", "x.jpg", "--against", "y.jpg", "--resume"], "--resume has no effect with --against"),
        (["explain", "x.jpg", "--against", "y.jpg", "--compile"], "--compile has no effect with --against"),
        (["explain", "x.jpg", "--against", "y.jpg", "--transfer", "nearest"], "--transfer has no effect with"),
        (["explain", "x.jpg", "--against", "y.jpg", "--precision", "float16"], "--precision has no effect with"),
        (["explain", "x.jpg", "--towards", "a", "--against", "y.jpg"], "--against has no effect with --towards"),
        (["explain", "x.jpg", "--versus", "a", "--compile"], "--compile has no effect with --towards or --versus"),
        (["evaluate", "--data", "digits", "--out", "o"], "--out has no effect without --faithfulness or"),
    ],
)
def test_an_option_without_effect_is_refused(run, arguments, said):
    code, _, err = run(*arguments, "--net", "n.safetensors", "--db", "d.h5")
    assert code == 2
    assert said in " ".join(err.replace("│", "").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--onnx", "x.onnx", "--device", "cpu"], "--device has no effect on an ONNX file"),
        (["serve", "--onnx", "x.onnx", "--data", "digits"], "--data has no effect on an ONNX file"),
        (["serve", "--onnx", "x.onnx", "--index", "g.h5"], "--index has no effect on an ONNX file"),
        (["serve", "--index", "g.h5", "--data", "digits"], "--data has no effect without --db"),
        (["serve", "--index", "g.h5", "--no-check"], "--check has no effect without --db"),
        (["serve", "--net", "n.safetensors"], "give --db, --index or both"),
        (["explain", "x.jpg", "--onnx", "x.onnx", "--device", "auto"], "--device has no effect on an ONNX file"),
        (["inspect", "weights.h5", "--verify", "--top", "3"], "--top has no effect with --verify"),
    ],
)
def test_an_option_without_effect_on_one_file_is_refused(run, arguments, said):
    code, _, err = run(*arguments)
    assert code == 2
    assert said in " ".join(err.replace("│", "").split())


def test_version_and_help_are_no_errors(run):
    assert run("--version")[:2] == (0, f"embedcam {cli.__version__}\n")
    code, said, _ = run("evaluate", "-h")
    assert code == 0
    assert "--compare" in said


def test_debug_shows_the_traceback():
    with pytest.raises(EmbedcamError, match="no weight database nowhere"):
        console.run(functools.partial(cli.app, ["inspect", "nowhere.h5"]), debug=True)


@pytest.fixture
def interrupt(forks):
    """Run a command line in a process of its own, with Ctrl-C at a line of its stderr; give exit code and stderr."""

    def interrupt(after, *arguments):
        done = forks.run(INTERRUPTED, after, *arguments)
        return done.returncode, done.stderr.splitlines(keepends=True)

    return interrupt


def test_ctrl_c_during_training_keeps_the_finished_epochs(run, interrupt, folder, tmp_path):
    out = tmp_path / "out" / "net.safetensors"
    command = ("train", "--data", f"folder:{folder}", *TRAIN, "--epochs", 3, "--out", out)
    code, lines = interrupt("epoch 2: loss", *command)

    assert code == 130
    assert lines[-1] == "embedcam: interrupted; finished work is kept: continue with --resume\n"
    assert not [line for line in lines if "Traceback" in line or "Error" in line]
    assert left_in(out.parent) == ["net.png", "net.safetensors.parts/epoch.npz", "net.safetensors.parts/run.json"]

    code, _, err = run(*command, "--resume")
    assert code == 0, err
    assert "resuming after epoch 1" in err
    assert "epoch 1: loss" not in err
    assert left_in(out.parent) == ["net.png", "net.safetensors"]


def test_ctrl_c_during_a_build_leaves_nothing(interrupt, trained, tmp_path):
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(tmp_path / "a.jpg")
    for label in "ab":
        images = tmp_path / "data" / "images" / label
        images.mkdir(parents=True)
        (images / "00.jpg").write_text("its warning shows that embedding has begun")
        for number in range(1, 100):
            (images / f"{number:02d}.jpg").symlink_to(tmp_path / "a.jpg")
    out = tmp_path / "out" / "weights.h5"
    build = ("build", "--net", trained / "net.safetensors", "--batch-size", 4, *BUILD)
    code, lines = interrupt("embedcam: warning", *build, "--data", f"folder:{tmp_path / 'data'}@all", "--out", out)

    assert code == 130
    assert lines[-1] == "embedcam: interrupted; finished work is kept: continue with --resume\n"
    assert not [line for line in lines if "Traceback" in line or "Error" in line]
    assert left_in(out.parent) == []


def test_a_gif_with_a_film_as_output_is_a_video_of_all_its_frames(run, net_and_db, tmp_path):
    pytest.importorskip("av")
    frames = [Image.new("RGB", (40, 40), (40 * number, 0, 0)) for number in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    code, out, err = run("explain", tmp_path / "a.gif", *net_and_db, "--out", tmp_path / "a.mp4")
    assert code == 0, err
    assert out.startswith("5 frames") and (tmp_path / "a.mp4").is_file()
