"""What is finished of an evaluation is kept, and is what an undisturbed one gives."""

import copy

import numpy as np
import pytest
from PIL import Image

from embedcam.data import load
from embedcam.database import WeightDatabase
from embedcam.errors import DataError, OutputError
from embedcam.evaluate.method import Method
from embedcam.evaluate.table import evaluate
from embedcam.nets import EmbeddingNet
from embedcam.utils import shards


@pytest.fixture
def everything(trained, folder, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 4)
    net, database = EmbeddingNet.load(trained / "net.safetensors"), WeightDatabase.load(trained / "weights.h5")
    return net, database, load(f"folder:{folder}", "test"), load(f"folder:{folder}", "train")


def without_times(result):
    result = copy.deepcopy(result)
    for row in result["rows"]:
        del row["ms_per_image"]
    return result


@pytest.mark.parametrize("compare", [False, True])
def test_a_resumed_evaluation_ends_as_an_undisturbed_one_and_does_only_what_is_left(
    everything, compare, tmp_path, monkeypatch
):
    wanted = evaluate(*everything, compare=compare, batch_size=2)
    run, done = Method.run, []

    def interrupted(self, images, indices):
        if len(done) == 3 * len(wanted["rows"]):
            raise KeyboardInterrupt
        done.append(len(indices))
        return run(self, images, indices)

    monkeypatch.setattr(Method, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*everything, compare=compare, batch_size=2, work=tmp_path / "work")
    left = []
    monkeypatch.setattr(Method, "run", lambda *given: left.append(len(given[2])) or run(*given))
    found = evaluate(*everything, compare=compare, batch_size=2, work=tmp_path / "work", resume=True)
    assert without_times(found) == without_times(wanted)
    assert sum(left) < wanted["images"] * len(wanted["rows"])


def test_the_work_of_another_evaluation_is_refused(everything, tmp_path):
    evaluate(*everything, work=tmp_path)
    with pytest.raises(OutputError, match="another run.*batch_size 16 then, 8 now"):
        evaluate(*everything, work=tmp_path, batch_size=8, resume=True)


def test_a_shard_without_a_readable_image_is_left_out(everything, tmp_path):
    net, database, _, training = everything
    names = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    for name in names[:4]:
        (tmp_path / name).write_text("no picture")
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "e.png")
    result = evaluate(net, database, load(f"folder:{tmp_path}", "all"), training)
    assert (result["images"], result["skipped"]) == (1, 4)
    (tmp_path / "e.png").write_text("no picture either")
    with pytest.raises(DataError, match="none of the 5 images can be read"):
        evaluate(net, database, load(f"folder:{tmp_path}", "all"), training)
