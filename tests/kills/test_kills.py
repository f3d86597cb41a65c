import random

import kills


def test_a_killed_build_loses_nothing(tmp_path, forks):
    runs = {run.name: run for run in kills.make(tmp_path, forks)}
    assert set(runs) == {"train", "build", "explain", "evaluate"}
    assert kills.kill_until_done(runs["build"], tmp_path, random.Random(0), forks) >= 2
