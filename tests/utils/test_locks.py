import os
import signal
import subprocess
import sys

import pytest

from embedcam.errors import OutputError
from embedcam.utils import locks
from embedcam.utils.locks import locked

HOLD = "import sys, embedcam.utils.locks\nwith embedcam.utils.locks.locked(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"


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
    os.kill(holder.pid, signal.SIGKILL)
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


def test_a_lock_that_was_removed_just_before_it_was_taken_is_none(tmp_path, monkeypatch):
    acquire, removed = locks._acquire, []

    def late(file):
        if not removed:  # whoever held it is done, and removes the file that was opened already
            removed.append((tmp_path / ".a.h5.lock").unlink())
        return acquire(file)

    monkeypatch.setattr(locks, "_acquire", late)
    with locked(tmp_path / "a.h5"), pytest.raises(OutputError, match="another process"), locked(tmp_path / "a.h5"):
        pass
    assert removed


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*file/a\.h5"), locked(tmp_path / "file" / "a.h5"):
        pass
