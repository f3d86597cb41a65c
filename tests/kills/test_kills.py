import importlib.util
import random
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("kills", Path(__file__).with_name("kills.py"))
kills = importlib.util.module_from_spec(spec)
sys.modules["kills"] = kills  # where dataclasses look for it
spec.loader.exec_module(kills)


def test_a_killed_build_loses_nothing(tmp_path):
    runs = {run.name: run for run in kills.make(tmp_path)}
    assert set(runs) == {"train", "build", "explain", "evaluate"}
    assert kills.kill_until_done(runs["build"], tmp_path, random.Random(0)) >= 0
