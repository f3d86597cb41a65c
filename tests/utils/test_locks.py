import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from embedcam.errors import OutputError
from embedcam.utils.locks import locked

HOLD = "import sys, embedcam.utils.locks\nwith embedcam.utils.locks.locked(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"

FORK = """import os, sys
from embedcam.utils.locks import locked
with locked(sys.argv[1]):
    if child := os.fork():
        print(child, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a file."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a.h5")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_refused_and_the_file_named(holder, tmp_path):
    with (
        pytest.raises(OutputError, match=r"another process is writing .*a\.h5; wait until it is done"),
        locked(tmp_path / "a.h5"),
    ):
        pass
    with locked(tmp_path / "b.h5"):
        pass


def test_once_it_is_done_the_next_may_write(holder, tmp_path):
    holder.communicate()
    assert holder.returncode == 0
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a.h5"):
        pass


def test_a_killed_process_leaves_no_lock(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".a.h5.lock"]
    with locked(tmp_path / "a.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_refused_one_takes_no_lock_away(holder, tmp_path):
    for _ in range(2):
        with pytest.raises(OutputError, match="another process"), locked(tmp_path / "a.h5"):
            pass


def test_one_process_cannot_write_a_file_twice_at_once(tmp_path):
    with locked(tmp_path / "a.h5"), pytest.raises(OutputError, match="another process"), locked(tmp_path / "a.h5"):
        pass


def test_an_error_lets_go(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "new" / "a.h5"):
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_lock_files_that_are_removed_let_no_two_write_at_once(tmp_path):
    writing, overlaps, turns = set(), [], []

    def take_turns(name):
        while turns.count(name) < 20:
            with contextlib.suppress(OutputError), locked(tmp_path / "a.h5"):
                writing.add(name)
                overlaps.extend(writing - {name})
                turns.append(name)
                writing.remove(name)

    threads = [threading.Thread(target=take_turns, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(turns), overlaps) == (80, [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_killed_process_holds_no_lock(tmp_path):
    command = [sys.executable, "-c", FORK, str(tmp_path / "a.h5")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path / "a.h5"):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_can_be_written(tmp_path, monkeypatch, answer):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "a.h5"), locked(tmp_path / "a.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*file.a\.h5"), locked(tmp_path / "file" / "a.h5"):
        pass
