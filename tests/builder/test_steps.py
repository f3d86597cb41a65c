"""Builds that are cut into shards, interrupted, resumed, and shared out among processes."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import embedcam
from embedcam.builder import build as building
from embedcam.builder import embedding, steps
from embedcam.data import load
from embedcam.database.neighbors import Partitions
from embedcam.errors import DatabaseError, DataError, OutputError
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed
from embedcam.utils import resume as resuming
from embedcam.utils import shards
from embedcam.utils.locks import locked

OPTIONS = {"clusters": 4, "top_k": 12, "batch_size": 4}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 5)


def build_file(net, folder, out, **options):
    return building.build_file(net, f"folder:{folder}", out, **{**OPTIONS, **options})


def assert_same(one, other):
    np.testing.assert_allclose(
        one.weights_mean, other.weights_mean, rtol=1e-4, atol=1e-6 * np.abs(other.weights_mean).max()
    )
    np.testing.assert_allclose(
        one.weights_std, other.weights_std, rtol=1e-3, atol=1e-5 * np.abs(other.weights_std).max()
    )
    for name in ("counts", "top_channels", "label_histogram"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.exemplars.cluster, other.exemplars.cluster)
    assert one.exemplars.path == other.exemplars.path


def test_shards_change_nothing_but_rounding(net, folder, small_shards, monkeypatch):
    in_shards = embedcam.build_database(net, f"folder:{folder}", **OPTIONS)
    monkeypatch.setattr(shards, "SHARD", 1000)
    assert_same(in_shards, embedcam.build_database(net, f"folder:{folder}", **OPTIONS))


@pytest.mark.parametrize("pairs", [None, 5])
def test_a_build_of_images_in_memory_opens_no_file_and_gives_what_one_with_a_folder_gives(
    net, folder, tmp_path, small_shards, monkeypatch, pairs
):
    samples = load(f"folder:{folder}", "train")
    images = [(net.preprocess(samples.image(i)), label) for i, label in enumerate(samples.labels.tolist())]
    options = {**OPTIONS, "pairs": pairs}
    embedcam.build_database(net, images, work=tmp_path / "work", **options).save(tmp_path / "saved.h5")
    assert (tmp_path / "work" / "embeddings.f32").exists() == (pairs is not None)  # read at random
    with monkeypatch.context() as patch:
        for opens in ("builtins.open", "pathlib.Path.open", "numpy.savez", "tempfile.mkdtemp"):
            patch.setattr(opens, None)
        database = embedcam.build_database(net, images, **options)
    database.save(tmp_path / "memory.h5")
    assert (tmp_path / "memory.h5").read_bytes() == (tmp_path / "saved.h5").read_bytes()


def test_what_is_embedded_already_is_not_embedded_again(net, folder, small_shards, monkeypatch):
    samples = load(f"folder:{folder}", "train")
    expected = embedcam.build_database(net, samples, **OPTIONS)
    seen = embed(net, samples, batch_size=4)
    monkeypatch.setattr(embedding, "embed", None)
    assert_same(embedcam.build_database(net, samples, embedded=seen, **OPTIONS), expected)


class Stop(Exception):
    pass


@pytest.mark.parametrize("done_before", [0, 2, 4, 5, 8])
def test_an_interrupted_build_is_resumed_to_the_same_bytes(
    net, folder, tmp_path, small_shards, monkeypatch, done_before
):
    build_file(net, folder, tmp_path / "whole.h5")
    with monkeypatch.context() as patch:
        written, write = [], resuming.SavedParts.write

        def stop(self, *args, **arrays):
            if len(written) == done_before:
                raise Stop
            written.append(args)
            write(self, *args, **arrays)

        patch.setattr(resuming.SavedParts, "write", stop)  # 4 shards embedded, the clusters, 4 shards weighed
        with pytest.raises(Stop):
            build_file(net, folder, tmp_path / "cut.h5")
        assert not (tmp_path / "cut.h5").exists()
    with monkeypatch.context() as patch:
        embedded = []
        patch.setattr(embedding, "embed", lambda *args, **options: embedded.append(1) or embed(*args, **options))
        build_file(net, folder, tmp_path / "cut.h5", resume=True)
        assert len(embedded) == max(0, 4 - done_before)
    assert (tmp_path / "cut.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.h5", "whole.h5"]


def test_only_the_same_build_is_resumed(net, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(steps, "refine", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_file(net, folder, tmp_path / "a.h5")
    with pytest.raises(OutputError, match=r"another run \(pairs 0 then, 6 now\)"):
        build_file(net, folder, tmp_path / "a.h5", pairs=6, resume=True)


def test_a_file_that_is_being_written_is_left_alone(net, folder, tmp_path):
    with locked(tmp_path / "a.h5"), pytest.raises(OutputError, match="another process is writing"):
        build_file(net, folder, tmp_path / "a.h5")


def test_a_shard_without_a_readable_image_is_left_out(net, folder, tmp_path, small_shards):
    samples = load(f"folder:{shutil.copytree(folder, tmp_path / 'copy')}", "train")
    for row in range(5, 10):
        samples.files[row].write_bytes(b"nothing")
    db = embedcam.build_database(net, samples, **OPTIONS)
    assert db.exemplars.path == tuple(samples.ids[:5] + samples.ids[10:])
    with pytest.raises(DataError, match=samples.files[5].name):
        embedcam.build_database(net, samples, strict=True, **OPTIONS)
    for file in samples.files:
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the 18 images can be read"):
        embedcam.build_database(net, samples, **OPTIONS)


def test_an_embedding_that_is_not_finite_is_named(net, folder, monkeypatch):
    monkeypatch.setattr(EmbeddingNet, "head_embed", lambda self, vector: self.head(vector) * float("nan"))
    samples = load(f"folder:{folder}", "train")
    with pytest.raises(DataError, match=f"the embedding of {samples.ids[0]} is not finite"):
        embedcam.build_database(net, samples, **OPTIONS)


def test_of_many_images_a_sample_is_clustered_and_all_are_assigned(net, folder, monkeypatch):
    monkeypatch.setattr(steps, "_SAMPLE", 9)
    monkeypatch.setattr(steps, "_SAMPLE_PER_CLUSTER", 1)
    sizes, kmeans = [], steps.clustering.kmeans
    monkeypatch.setattr(
        steps.clustering,
        "kmeans",
        lambda points, *rest, **options: sizes.append(len(points)) or kmeans(points, *rest, **options),
    )
    db = embedcam.build_database(net, f"folder:{folder}", **OPTIONS)
    assert sizes == [9, 7, 7, 7, 7, 8]  # once all, then each fifth held out
    assert db.counts.sum() == 18
    away = np.linalg.norm(db.exemplars.embeddings[:, None] - db.centroids, axis=2)
    np.testing.assert_array_equal(db.exemplars.cluster, away.argmin(axis=1))


def test_several_processes_need_a_folder_that_they_share(net, folder):
    with pytest.raises(DatabaseError, match="name a folder"):
        embedcam.build_database(net, f"folder:{folder}", group=embedcam.utils.distributed.Group(0, 2), **OPTIONS)


SMALL_SHARDS = """
from embedcam.utils import shards
shards.SHARD = 5
"""
DIES = """
import os
from embedcam.builder.steps import Build
if os.environ["RANK"] == "1":
    Build.weigh = lambda self: os._exit(137)
"""


def given(net, folder, out):
    net.save(out.with_suffix(".safetensors"))
    files = ("--net", out.with_suffix(".safetensors"), "--data", f"folder:{folder}", "--out", out)
    return ("build", *files, "--clusters", 4, "--top-k", 12)


@pytest.mark.parametrize("drawn", [(), ("--pairs", 5)], ids=["all", "drawn"])
def test_two_and_three_processes_build_the_database_of_one_to_the_bit(net, folder, tmp_path, processes, drawn):
    built = []
    for count in (1, 2, 3):
        done = processes(count, *given(net, folder, tmp_path / "a.h5"), *drawn, before=SMALL_SHARDS)
        assert [each.returncode for each in done] == [0] * count, done
        assert [each.stdout.count("wrote") for each in done] == [1] + [0] * (count - 1)
        built.append((tmp_path / "a.h5").read_bytes())
    assert built[0] == built[1] == built[2]


def test_a_dead_process_ends_the_run_with_a_state_to_resume(net, folder, tmp_path, processes):
    command = given(net, folder, tmp_path / "a.h5")
    (tmp_path / "run.py").write_text(f"{SMALL_SHARDS}{DIES}from embedcam.cli import main\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    torchrun += ["--rdzv-endpoint=localhost:0", tmp_path / "run.py", *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run(torchrun, capture_output=True, env=environment, check=False).returncode != 0
    assert not (tmp_path / "a.h5").exists()
    assert list((tmp_path / "a.h5.parts").glob("embedded-*"))
    done = processes(2, *command, "--resume", before=SMALL_SHARDS)
    assert [each.returncode for each in done] == [0, 0], done
    assert embedcam.WeightDatabase.load(tmp_path / "a.h5").counts.sum() == 18
    assert not (tmp_path / "a.h5.parts").exists()


def test_very_many_exemplars_are_partitioned(net, folder, monkeypatch, tmp_path):
    made = Partitions(np.zeros((2, 8), np.float32), np.arange(18, dtype=np.int32) % 2, 1)
    given = []
    monkeypatch.setattr(steps, "partition", lambda *arguments: given.append(arguments) or made)
    db = building.build_file(net, f"folder:{folder}", tmp_path / "a.h5", **OPTIONS)
    np.testing.assert_array_equal(given[0][0], db.exemplars.embeddings)
    assert given[0][1:] == ("cosine", 0)
    np.testing.assert_array_equal(
        embedcam.WeightDatabase.load(tmp_path / "a.h5").exemplars.partitions.partition, made.partition
    )
