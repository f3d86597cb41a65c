import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, threading
from embedcam.utils.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 100_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def run():
    faults()
    print(faults() < 1000)

if {kept}: keep_freed_memory()
run()
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
@pytest.mark.parametrize("kept", [False, True])
def test_blocks_of_100_mb_are_used_again_without_new_pages_in_every_thread(kept):
    done = subprocess.run([sys.executable, "-c", CODE.format(kept=kept)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(kept)] * 2


def test_without_glibc_nothing_happens(monkeypatch):
    from embedcam.utils import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()
