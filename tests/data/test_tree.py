import os
from pathlib import Path

import pytest
from PIL import Image

from embedcam.data.loading import batches
from embedcam.data.preprocess import Preprocess
from embedcam.data.sets.folder import folder
from embedcam.data.tree import find_pictures
from embedcam.errors import DataError


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(path)


def test_pictures_are_listed_folder_by_folder(tmp_path):
    for name in ("b/1.png", "a.png", "b/deep/2.JPG", "b-c/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_pictures(tmp_path).ids() == ["a.png", "b/1.png", "b/deep/2.JPG", "b-c/3.png"]


@pytest.mark.parametrize(
    "name", [".git", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"]
)
def test_hidden_and_system_folders_are_never_searched(tmp_path, name):
    draw(tmp_path / "photo.png")
    draw(tmp_path / name / "photo.png" / "thumbnail.png")
    draw(tmp_path / "album" / name / "deleted.png")
    tree = find_pictures(tmp_path)
    assert tree.ids() == ["photo.png"]
    assert not tree.left_out


def test_links_are_followed_to_any_level_and_loops_are_not(tmp_path):
    draw(tmp_path / "elsewhere" / "a.png")
    draw(tmp_path / "elsewhere" / "sub" / "b.png")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "same").symlink_to(".")
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("../link")
    (tmp_path / "in" / "self.png").symlink_to("self.png")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    tree = find_pictures(tmp_path / "in")
    assert tree.ids() == ["link/a.png", "link/sub/b.png"]
    assert tree.left_out == {"broken links": 2, "links to listed folders": 2}


def test_a_folder_that_is_linked_too_is_listed_in_its_own_place(tmp_path):
    draw(tmp_path / "z" / "a.png")
    (tmp_path / "a").symlink_to("z")
    assert find_pictures(tmp_path).ids() == ["z/a.png"]


def test_what_embedcam_wrote_is_no_input(tmp_path):
    written = (
        *("runs/explain/explanations.jsonl", "runs/explain/overlays/a.png.png", "runs/explain/contact_sheet.png"),
        *("against/pairs.jsonl", "against/pairs/a.png.png", "stopped/explanations.jsonl.parts/run.json"),
        *("stopped/overlays/a.png.png", "net.safetensors", "net.png", "boxed/cat_boxes.png", "boxed/cat_classes.png"),
        *("demo/scores.json", "demo/gallery.png"),
    )
    pictures = ("a.png", "demo/images/b.png", "boxed/cat.png", "overlays/c.png")
    for name in (*written, *pictures):
        draw(tmp_path / name) if name.endswith(".png") else (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    tree = find_pictures(tmp_path)
    assert sorted(tree.ids()) == sorted(pictures)
    assert tree.left_out == {"embedcam's own output": 8}
    assert find_pictures(tmp_path, out=tmp_path).ids() == [name for name in tree.ids() if "overlays" not in name]


@pytest.fixture
def unlistable(tmp_path, monkeypatch):
    """A folder that cannot be listed, also not by root."""
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "lost+found/0.png"):
        draw(tmp_path / "images" / name)
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return tmp_path


def test_a_folder_that_cannot_be_listed_is_left_out_with_a_warning_and_stops_a_strict_run(unlistable, caplog):
    samples = folder(unlistable, "all")
    assert samples.names == ("cat", "dog")
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot list {unlistable / 'images' / 'lost+found'}: Permission denied; pass a readable folder",
        f"1 files or folders left out of {unlistable / 'images'}: folders that cannot be listed 1",
    ]
    assert sum(len(rows) for rows, _ in batches(samples, Preprocess((8, 8)), 2)) == 3
    with pytest.raises(DataError, match=r"cannot list .*lost\+found: Permission denied"):
        next(batches(samples.subset([0]), Preprocess((8, 8)), 2, strict=True))


def test_the_folder_itself_must_be_listed(unlistable):
    with pytest.raises(DataError, match="cannot list .*Permission denied"):
        find_pictures(unlistable / "images" / "lost+found")
