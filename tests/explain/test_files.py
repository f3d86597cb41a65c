"""What `embedcam explain` writes, read back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from embedcam.data.images import read_image
from embedcam.errors import DataError, EmbedcamError, OutputError
from embedcam.explain import Explainer
from embedcam.explain.files import DrawOptions, explain_files, find_files
from embedcam.nets import EmbeddingNet
from embedcam.show.boxes import find_boxes
from embedcam.show.overlay import overlay


@pytest.fixture
def explainer(trained):
    return Explainer(EmbeddingNet.load(trained / "net.safetensors"), trained / "weights.h5")


def write_picture(path, size=(40, 40), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_files_and_folders_are_searched_through_in_order(tmp_path):
    for name in ("b/2.png", "b/1.jpg", "b/deep/3.png", "a.png", "b/.hidden.png", "b/.git/objects/4.png"):
        write_picture(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    found = find_files([tmp_path / "b", tmp_path / "a.png"])
    assert found.ids == ("1.jpg", "2.png", "deep/3.png", "a.png")
    assert found.files[2] == tmp_path / "b" / "deep" / "3.png"


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path):
    names = ("x/a.png", "y/a-2.png", "z/a.png", "w/a.png")
    found = find_files([write_picture(tmp_path / name) for name in names])
    assert found.ids == ("a.png", "a-2.png", "a-3.png", "a-4.png")


def test_a_missing_input_and_a_folder_without_pictures_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere; check"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no image in"):
        find_files([tmp_path])


def test_the_files_say_what_the_explainer_says(explainer, folder, tmp_path):
    images = [folder / "images" / f"class{i}" / "00.png" for i in range(3)]
    lines = explain_files(explainer, images, tmp_path, batch_size=2)

    assert lines == [json.loads(line) for line in (tmp_path / "explanations.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [str(image) for image in images]
    pictures = [read_image(image) for image in images]
    batch = np.stack([explainer.preprocess(picture) for picture in pictures])
    expected = explainer(torch.from_numpy(batch))
    db = explainer.database
    for i, line in enumerate(lines):
        cluster = int(expected.clusters[i])
        assert line["cluster"] == cluster
        assert line["cluster_labels"] == dict(db.labels_of(cluster))
        assert line["distance"] == pytest.approx(expected.distances[i], abs=1e-6)
        assert line["looks_like"] == db.exemplars.path[expected.neighbors[i]]
        assert line["looks_like_label"] == db.label_names[db.exemplars.label[expected.neighbors[i]]]
        assert line["notes"] == expected.notes[i]
        assert "boxes" not in line
        with np.load(tmp_path / line["map"]) as maps:
            np.testing.assert_allclose(maps["heatmap"], expected.heatmaps[i], atol=1e-5)
            np.testing.assert_allclose(maps["raw"], expected.raw[i], rtol=1e-4, atol=1e-9)
            drawn = overlay(np.asarray(pictures[i]), maps["heatmap"])
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / line["overlay"])), drawn)


def test_boxes_are_in_pixels_of_the_overlay(explainer, tmp_path):
    image = write_picture(tmp_path / "wide.png", size=(96, 64))
    (line,) = explain_files(explainer, [image], tmp_path / "out", DrawOptions(boxes=True, threshold=0.6))

    with np.load(tmp_path / "out" / line["map"]) as maps:
        heatmap = maps["heatmap"]
    large = np.asarray(Image.fromarray(heatmap).resize((96, 64), Image.Resampling.BILINEAR)).clip(0, 1)
    boxes = find_boxes(large, 0.6)
    assert boxes
    assert line["boxes"] == [
        {"left": b.left, "top": b.top, "right": b.right, "bottom": b.bottom, "score": b.score} for b in boxes
    ]
    drawn = np.asarray(Image.open(tmp_path / "out" / line["overlay"]))
    assert drawn.shape == (64, 96, 3)
    assert not np.array_equal(drawn, overlay(np.asarray(read_image(image)), heatmap))


def test_large_pictures_are_drawn_at_1600_pixels(explainer, tmp_path):
    image = write_picture(tmp_path / "large.png", size=(2000, 50))
    (line,) = explain_files(explainer, [image], tmp_path / "out")
    assert Image.open(tmp_path / "out" / line["overlay"]).size == (1600, 40)


def test_the_contact_sheet_has_four_pairs_a_row_and_at_most_forty(explainer, tmp_path):
    for number in range(41):
        write_picture(tmp_path / "in" / f"{number:02d}.png", seed=number)
    lines = explain_files(explainer, [tmp_path / "in"], tmp_path / "out")
    assert len(lines) == 41
    full = Image.open(tmp_path / "out" / "contact_sheet.png").size
    explain_files(explainer, [tmp_path / "in" / f"{n:02d}.png" for n in range(5)], tmp_path / "five")
    five = Image.open(tmp_path / "five" / "contact_sheet.png").size
    assert full[0] == five[0] > 8 * 160
    assert 4 < full[1] / five[1] <= 5


def test_an_unreadable_picture_is_left_out_or_an_error(explainer, tmp_path, caplog):
    images = [write_picture(tmp_path / "good.png"), tmp_path / "bad.png"]
    images[1].write_bytes(images[0].read_bytes()[:100])
    (line,) = explain_files(explainer, images, tmp_path / "out")
    assert line["image"] == str(images[0])
    assert "1 of 2 images could not be read and were left out" in caplog.text
    with pytest.raises(DataError, match=r"cannot read .*bad.png"):
        explain_files(explainer, images, tmp_path / "strict", strict=True)
    assert not list((tmp_path / "strict").iterdir())


def test_what_cannot_be_drawn_or_written_is_an_error(explainer, tmp_path):
    image = write_picture(tmp_path / "good.png")
    with pytest.raises(EmbedcamError, match="no colour map 'turbbo'; did you mean 'turbo'"):
        explain_files(explainer, [image], tmp_path / "out", DrawOptions(colormap="turbbo"))
    with pytest.raises(OutputError, match="cannot write"):
        explain_files(explainer, [image], image)
