import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from embedcam.errors import OutputError
from embedcam.utils.files import (
    atomic_path,
    destination,
    is_stream,
    remove_unfinished,
    require_writable,
    temporary_folder,
    write_bytes,
    write_text,
)
from embedcam.utils.locks import locked
from embedcam.utils.resume import SavedParts, work_folder


def link(path, target):
    """Make a symbolic link; Windows allows that only to some."""
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("needs symbolic links")


def test_a_file_appears_whole(tmp_path):
    with atomic_path(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "deep" / "a.txt").exists()
        temporary.write_text("whole")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_text() == "whole"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new, but not all of it")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    write_bytes(tmp_path / "file", b"")
    with pytest.raises(OutputError, match=r"cannot write .*file.a\.txt"):
        write_text(tmp_path / "file" / "a.txt", "")
    with pytest.raises(OutputError, match=r"cannot write .*file.b.a\.txt"):
        require_writable(tmp_path / "file" / "b" / "a.txt")


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    with pytest.raises(OutputError, match="it is a folder"):
        require_writable(tmp_path)


def test_asking_leaves_nothing_behind(tmp_path):
    require_writable(tmp_path / "new" / "a.txt")
    assert list((tmp_path / "new").iterdir()) == []


def test_only_temporary_files_of_a_killed_process_are_removed(tmp_path):
    for name in ("a.png", ".a.png", ".a.0123abcd.png", ".a.b.89ef0123.npz", ".a.jsonl.0123abcd", "a.0123abcd.png"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.png", "a.0123abcd.png", "a.png"]


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
    target = tmp_path / "big" / "target.txt"
    write_text(target, "old")
    link(tmp_path / "first.txt", "second.txt")
    link(tmp_path / "second.txt", "big/target.txt")
    with atomic_path(tmp_path / "first.txt") as temporary:
        assert temporary.parent == target.parent.resolve()
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert (tmp_path / "first.txt").is_symlink() and target.read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["big", "first.txt", "second.txt", "target.txt"]


def test_a_dangling_link_gets_its_target(tmp_path):
    link(tmp_path / "link.txt", "new/target.txt")
    require_writable(tmp_path / "link.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "new" / "target.txt").read_text() == "new"


def test_a_loop_of_links_is_named(tmp_path):
    link(tmp_path / "a", "b")
    link(tmp_path / "b", "a")
    for write in (require_writable, lambda path: write_text(path, "")):
        with pytest.raises(OutputError, match=r"cannot write .*a: its symbolic links form a loop"):
            write(tmp_path / "a")


def test_a_device_is_written_through():
    require_writable(os.devnull)
    write_text(os.devnull, "gone")
    with locked(os.devnull):
        pass
    assert not is_stream(Path(os.devnull).parent) and is_stream(destination(os.devnull))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    link(tmp_path / "link.txt", "pipe.txt")
    require_writable(tmp_path / "link.txt")
    with work_folder(tmp_path / "link.txt") as work, ThreadPoolExecutor(1) as reader:
        assert tmp_path not in work.parents
        read = reader.submit((tmp_path / "pipe.txt").read_text)
        write_text(tmp_path / "link.txt", "through")
        assert read.result() == "through"
    assert stat.S_ISFIFO((tmp_path / "pipe.txt").stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.txt", "pipe.txt"]


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="needs /dev/stdout")
def test_standard_output_is_written_through_between_what_is_printed(tmp_path):
    code = (
        "from embedcam.utils.files import require_writable, write_text\n"
        "print('before', flush=True)\n"
        "require_writable('/dev/stdout')\n"
        "write_text('/dev/stdout', 'file\\n')\n"
        "print('after')\n"
    )
    with (tmp_path / "out.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out.txt").read_text() == "before\nfile\nafter\n"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout.split() == [
        *(b"before", b"file", b"after")
    ]


def test_an_output_that_is_an_input_is_refused(tmp_path):
    write_text(tmp_path / "film.mp4", "film")
    link(tmp_path / "link.mp4", "film.mp4")
    for name in ("film.mp4", "link.mp4"):
        with pytest.raises(OutputError, match=rf"cannot write .*{name}: it would replace .*film\.mp4, which is read"):
            require_writable(tmp_path / name, [None, "resnet50", tmp_path / "gone", tmp_path / "film.mp4"])
    require_writable(tmp_path / "other.mp4", [tmp_path / "film.mp4"])
    require_writable(os.devnull, [os.devnull])


def test_a_folder_for_temporary_files_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match=r"no temporary folder can be made: .*; set TMPDIR"), temporary_folder():
        pass


@pytest.mark.parametrize("name", ["a" * 251 + ".txt", "鳥" * 83 + ".txt", "." + "é" * 120, "a." + "b" * 250])
def test_a_name_as_long_as_the_file_system_allows_is_written_and_locked(tmp_path, name):
    require_writable(tmp_path / name)
    with work_folder(tmp_path / name) as work, pytest.raises(OutputError, match="another process"):
        SavedParts(work, {}).write("part", rows=np.zeros(1))
        with locked(tmp_path / name):
            pass
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("long")
        assert [file.name for file in tmp_path.iterdir()] == [temporary.name]
    assert (tmp_path / name).read_text() == "long"
    (tmp_path / temporary.name).touch()
    remove_unfinished(tmp_path.iterdir())
    assert [file.name for file in tmp_path.iterdir()] == [name]
