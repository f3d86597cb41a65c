import pytest

from embedcam.errors import OutputError
from embedcam.utils.files import atomic_path, remove_unfinished, require_writable, write_bytes, write_text


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
    with pytest.raises(OutputError, match=r"cannot write .*file/a\.txt"):
        write_text(tmp_path / "file" / "a.txt", "")
    with pytest.raises(OutputError, match=r"cannot write .*file/b/a\.txt"):
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
