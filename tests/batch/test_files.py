"""What `embedcam explain` writes, read back."""

import io
import json
import sys
import threading
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import embedcam
from embedcam.batch.files import DrawOptions, explain_files, find_files
from embedcam.data import samples
from embedcam.data.images import read_image
from embedcam.errors import DataError, EmbedcamError, OutputError
from embedcam.explain import Explainer
from embedcam.nets import EmbeddingNet
from embedcam.show.boxes import find_boxes
from embedcam.show.overlay import overlay, overlay_signed
from embedcam.utils.locks import locked


@pytest.fixture
def explainer(trained):
    return Explainer(EmbeddingNet.load(trained / "net.safetensors"), trained / "weights.h5")


@pytest.fixture
def pictures(tmp_path):
    for number in range(7):
        write_picture(tmp_path / "in" / f"{number}.png", seed=number)
    return tmp_path / "in"


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("embedcam")]


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


def test_names_that_some_file_system_takes_for_one_are_different(tmp_path):
    names = ("x/Möwe.png", "y/MÖWE.png", f"z/{unicodedata.normalize('NFD', 'möwe')}.png")
    found = find_files([write_picture(tmp_path / name) for name in names])
    folded = {unicodedata.normalize("NFC", name).casefold() for name in found.ids}
    assert folded == {"möwe.png", "möwe-2.png", "möwe-3.png"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts letters, not bytes")
@pytest.mark.parametrize("stem", ["鳥" * 80, "a" * 251, "é" * 125])
def test_a_name_as_long_as_the_file_system_allows_is_explained_like_others(explainer, pictures, tmp_path, stem):
    write_picture(pictures / f"{stem}.png", seed=9)
    lines = list(explain_files(explainer, [pictures], tmp_path / "out"))
    assert len(lines) == 8
    assert {(tmp_path / "out" / line[kind]).is_file() for line in lines for kind in ("overlay", "map")} == {True}
    assert len({line["overlay"] for line in lines}) == 8


def test_a_contact_sheet_that_is_an_input_is_refused(explainer, tmp_path):
    sheet = write_picture(tmp_path / "contact_sheet.png")
    before = sheet.read_bytes()
    with pytest.raises(OutputError, match=r"contact_sheet\.png: it would replace .*contact_sheet\.png, which is read"):
        explain_files(explainer, [sheet], tmp_path)
    assert sheet.read_bytes() == before


def test_a_missing_input_and_a_folder_without_pictures_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere; check"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no image in"):
        find_files([tmp_path])


def test_patterns_are_expanded_unless_a_file_has_that_name(tmp_path):
    for name in ("b.png", "a.png", "c[1].png", "c1.png"):
        write_picture(tmp_path / name)
    assert find_files([f"{tmp_path}/[ab].png", f"{tmp_path}/c[1].png"]).ids == ("a.png", "b.png", "c[1].png")
    with pytest.raises(DataError, match=r"no file matches .*\*\.jpg; check the pattern"):
        find_files([f"{tmp_path}/*.jpg"])


def test_addresses_are_refused_with_what_is_taken():
    with pytest.raises(
        DataError, match=r"is an address; files, folders, patterns .* and - \(standard input\) are taken"
    ):
        find_files(["https://example.org/cat.jpg"])


def test_standard_input_is_one_image(explainer, pictures, tmp_path, monkeypatch):
    content = (pictures / "3.png").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    (line,) = explain_files(explainer, ["-"], tmp_path / "out", strict=True)
    assert (line["image"], line["overlay"]) == ("-", "overlays/stdin.png")
    (same,) = explain_files(explainer, [pictures / "3.png"], tmp_path / "out")
    assert line["cluster"] == same["cluster"] and line["distance"] == same["distance"]


def test_a_run_in_its_input_folder_repeats_and_resumes(explainer, pictures):
    for out in (pictures / "runs", pictures, pictures / "runs" / "again"):
        lines = list(explain_files(explainer, [pictures], out))
        assert [line["image"] for line in lines] == [str(pictures / f"{number}.png") for number in range(7)]
        assert len(explain_files(explainer, [pictures], out)) == 7
    obstacle = pictures / "stopped" / "maps" / "4.png.npz"
    obstacle.mkdir(parents=True)
    with pytest.raises(OutputError):
        explain_files(explainer, [pictures], pictures / "stopped", batch_size=2)
    obstacle.rmdir()
    assert len(explain_files(explainer, [pictures], pictures / "stopped", batch_size=2, resume=True)) == 7


def test_the_files_say_what_the_explainer_says(explainer, folder, tmp_path):
    images = [folder / "images" / f"class{i}" / "00.png" for i in range(3)]
    lines = list(explain_files(explainer, images, tmp_path, batch_size=2))

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


def test_an_answer_stands_beside_its_heat_map_in_the_files(spread, folder, tmp_path):
    asking = Explainer(*spread).asking(towards=1, versus="class0")
    image = folder / "images" / "class1" / "00.png"
    (line,) = explain_files(asking, [image], tmp_path)

    expected = asking(asking.preprocess(read_image(image))[None])
    assert (line["towards"], line["versus"]) == (expected.towards[0], expected.versus[0])
    assert line["for"] + line["against"] + line["rest"] == pytest.approx(line["similarity"], abs=1e-5)
    assert line["similarity"] == pytest.approx(expected.similarity[0], abs=1e-5)
    with np.load(tmp_path / line["map"]) as maps:
        np.testing.assert_allclose(maps["contributions"], expected.contributions[0], atol=1e-5)
        np.testing.assert_allclose(maps["signed"], expected.signed[0], atol=1e-4)
    drawn = np.asarray(Image.open(tmp_path / line["overlay"]))
    picture = np.asarray(read_image(image))
    assert drawn.shape == (40, 80, 3)
    np.testing.assert_array_equal(drawn[:, :40], overlay(picture, expected.heatmaps[0]))
    np.testing.assert_array_equal(drawn[:, 40:], overlay_signed(picture, expected.scaled[0]))


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
    with pytest.raises(EmbedcamError, match="unknown colormap 'turbbo'; did you mean 'turbo'"):
        explain_files(explainer, [image], tmp_path / "out", DrawOptions(colormap="turbbo"))
    with pytest.raises(OutputError, match="cannot write"):
        explain_files(explainer, [image], image)


@pytest.mark.parametrize("workers", [0, 5])
def test_files_do_not_depend_on_the_workers(explainer, pictures, tmp_path, workers):
    explain_files(explainer, [pictures], tmp_path / "two", DrawOptions(boxes=True), batch_size=3)
    explain_files(explainer, [pictures], tmp_path / "out", DrawOptions(boxes=True), batch_size=3, workers=workers)
    assert content(tmp_path / "out") == content(tmp_path / "two")
    assert not threads()


def test_concurrent_batches_write_the_same_files(explainer, pictures, tmp_path):
    class Shared:
        """Lets no batch end before another has begun, but for the last: there are seven."""

        preprocess, labels_of, exemplar = explainer.preprocess, explainer.labels_of, explainer.exemplar
        lock, meeting, left = threading.Lock(), threading.Barrier(2, timeout=600), 6

        def __call__(self, images):
            if threading.current_thread().name.startswith("embedcam-explain"):
                with self.lock:
                    alone, Shared.left = Shared.left == 0, Shared.left - 1
                if not alone:
                    self.meeting.wait()
            with self.lock:
                return explainer(images)

    explain_files(explainer, [pictures], tmp_path / "one", batch_size=1)
    explain_files(Shared(), [pictures], tmp_path / "two", batch_size=1, concurrency=2)
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert not threads()


def test_every_picture_is_read_once(explainer, pictures, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(samples, "read_image", lambda path: read.append(path.name) or read_image(path))
    explain_files(explainer, [pictures], tmp_path / "out", batch_size=3)
    assert sorted(read) == [f"{number}.png" for number in range(7)]


def test_a_disk_that_is_full_ends_the_run_which_can_go_on_later(explainer, pictures, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    explain_files(explainer, [pictures], whole, batch_size=2)
    obstacle = out / "maps" / "4.png.npz"
    obstacle.mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot write .*maps/4\.png\.npz"):
        explain_files(explainer, [pictures], out, batch_size=2)
    assert not threads()
    assert not (out / "explanations.jsonl").exists()
    obstacle.rmdir()
    written = (out / "overlays" / "3.png.png").stat().st_mtime_ns
    explain_files(explainer, [pictures], out, batch_size=2, resume=True)
    assert (out / "overlays" / "3.png.png").stat().st_mtime_ns == written
    assert content(out) == content(whole)


def test_an_interruption_leaves_whole_files_and_no_thread(explainer, pictures, tmp_path):
    explain_files(explainer, [pictures], tmp_path / "whole", batch_size=2)

    class Interrupted(Explainer):
        calls = 0

        def __call__(self, images):
            Interrupted.calls += 1
            if Interrupted.calls == 5:  # one is the made picture, the fifth the last batch
                raise KeyboardInterrupt
            return super().__call__(images)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        explain_files(Interrupted(explainer.net, explainer.database), [pictures], out, batch_size=2)
    assert not threads()
    left = content(out)
    finished = {path for path in left if path.parent.name == "explanations.jsonl.parts"}
    assert len(finished) >= 2  # the description of the run, and some batches
    left = {path: data for path, data in left.items() if path not in finished}
    assert left.items() <= content(tmp_path / "whole").items()
    explain_files(explainer, [pictures], out, batch_size=2, resume=True)
    assert content(out) == content(tmp_path / "whole")


def test_finished_lines_stay_until_the_new_ones_are_whole(explainer, pictures, tmp_path):
    out = tmp_path / "out"
    explain_files(explainer, [pictures], out, batch_size=2)
    before = (out / "explanations.jsonl").read_bytes()
    (pictures / "5.png").write_text("no picture")
    with pytest.raises(DataError, match="5.png"):
        explain_files(explainer, [pictures], out, batch_size=2, strict=True)
    assert (out / "explanations.jsonl").read_bytes() == before
    assert len(explain_files(explainer, [pictures], out, batch_size=2)) == 6


@pytest.fixture
def stopped(explainer, pictures, tmp_path):
    """A folder whose run ended before its last picture."""
    good = (pictures / "6.png").read_bytes()
    (pictures / "6.png").write_text("no picture")
    with pytest.raises(DataError, match="6.png"):
        explain_files(explainer, [pictures], tmp_path / "out", batch_size=2, strict=True)
    (pictures / "6.png").write_bytes(good)
    return tmp_path / "out"


def test_a_strict_run_goes_on_once_the_picture_is_mended(explainer, pictures, stopped):
    lines = list(explain_files(explainer, [pictures], stopped, batch_size=2, strict=True, resume=True))
    assert [line["image"] for line in lines] == [str(pictures / f"{number}.png") for number in range(7)]


def test_only_the_same_run_goes_on(explainer, pictures, stopped, tmp_path):
    net, db = explainer.net, explainer.database
    others = {
        "images": {"inputs": [pictures, write_picture(tmp_path / "more.png")]},
        "explainer": {"explainer": Explainer(net, db, preset="paper")},
        "explainer ": {"explainer": Explainer(net, replace(db, centroids=db.centroids[::-1].copy()))},
        "batch_size 2 then, 3 now": {"batch_size": 3},
        "boxes False then, True now": {"draw": DrawOptions(boxes=True)},
    }
    before = content(stopped)
    for said, other in others.items():
        given = {"explainer": explainer, "inputs": [pictures], "out": stopped, "batch_size": 2, "resume": True} | other
        with pytest.raises(OutputError, match=rf"explanations\.jsonl\.parts holds the work of another run \({said}"):
            explain_files(**given)
    assert content(stopped) == before


def test_a_strict_run_does_not_go_on_after_pictures_were_left_out(explainer, pictures, tmp_path):
    (pictures / "1.png").write_text("no picture")
    (tmp_path / "out" / "maps" / "6.png.npz").mkdir(parents=True)
    with pytest.raises(OutputError):
        explain_files(explainer, [pictures], tmp_path / "out", batch_size=2)
    with pytest.raises(DataError, match="1 of the first 5 images could not be read and were left out by"):
        explain_files(explainer, [pictures], tmp_path / "out", batch_size=2, strict=True, resume=True)


def test_a_map_that_is_gone_is_named_when_the_contact_sheet_is_drawn_again(explainer, pictures, stopped):
    (stopped / "maps" / "1.png.npz").unlink()
    with pytest.raises(OutputError, match=r"cannot read .*maps/1\.png\.npz of the interrupted run"):
        explain_files(explainer, [pictures], stopped, batch_size=2, resume=True)


def test_two_runs_do_not_write_one_folder(explainer, pictures, tmp_path):
    with locked(tmp_path / "out" / "explanations.jsonl"), pytest.raises(OutputError, match="another process"):
        explain_files(explainer, [pictures], tmp_path / "out")


def test_maps_of_a_centre_crop_lie_in_the_middle_of_the_picture(folder, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    torch.manual_seed(0)
    preprocess = embedcam.Preprocess((32, 32), crop_pct=0.5)
    net = embedcam.wrap(torch.nn.Sequential(*module, torch.nn.Flatten()), "1", preprocess=preprocess)
    db = embedcam.build_database(net, f"folder:{folder}", clusters=2, top_k=4, refinement=False)
    picture = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)).save(picture)
    (line,) = explain_files(embedcam.Explainer(net, db), [picture], tmp_path / "out")
    heatmap = np.load(tmp_path / "out" / line["map"])["heatmap"]
    assert heatmap.shape == (64, 128)
    assert heatmap[16:48, 48:80].any()
    heatmap[16:48, 48:80] = 0
    assert not heatmap.any()
