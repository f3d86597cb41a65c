"""An explainer of one file, without torch."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import embedcam
from embedcam.errors import DatabaseError, DataError, EmbedcamError, NetworkError
from embedcam.explain.explanation import FLAT, NOT_FINITE
from embedcam.onnx.explainer import OnnxExplainer, with_checksum
from embedcam.onnx.export import export
from embedcam.onnx.record import OnnxRecord

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()


@pytest.fixture(scope="module")
def explainer(spread):
    return embedcam.Explainer(*spread)


@pytest.fixture
def file(exported):
    return exported


def test_an_image_that_is_not_finite_is_noted_and_leaves_the_others_alone(explainer, file):
    images = IMAGES.copy()
    images[1, 0, 3, 3] = np.nan
    ours, theirs = explainer(images), OnnxExplainer(file)(images)
    assert theirs.notes == ours.notes
    assert theirs.notes[1] == [NOT_FINITE]
    assert not theirs.heatmaps[1].any()
    np.testing.assert_allclose(theirs.heatmaps, ours.heatmaps, atol=1e-4)
    np.testing.assert_allclose(theirs.distances, ours.distances, atol=1e-6)
    np.testing.assert_array_equal(theirs.clusters[[0, 2]], ours.clusters[[0, 2]])


def test_maps_of_one_value_a_cell_are_placed_by_the_explainer(explainer, tmp_path):
    export(explainer, tmp_path / "cells.onnx", heatmap="map")
    session = onnxruntime.InferenceSession(tmp_path / "cells.onnx")
    raw, heatmap = session.run(["raw", "heatmap"], {"images": IMAGES})
    assert raw.shape == heatmap.shape == (3, 8, 8)
    assert heatmap.max() == pytest.approx(1)
    np.testing.assert_allclose(
        OnnxExplainer(tmp_path / "cells.onnx")(IMAGES).heatmaps, explainer(IMAGES).heatmaps, atol=1e-4
    )


def test_flat_maps_are_noted(explainer, file, monkeypatch):
    written = OnnxExplainer(file)
    run = written._session.run

    class Dark:
        def run(self, names, inputs):
            heatmap, raw, *rest = run(names, inputs)
            return [heatmap * 0, raw * 0, *rest]

    monkeypatch.setattr(written, "_session", Dark())
    assert all(FLAT in notes for notes in written(IMAGES).notes)


def test_pictures_are_prepared_for_a_file_that_takes_numbers(explainer, file):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    written = OnnxExplainer(file)
    prepared = np.stack([written.preprocess(Image.fromarray(p)) for p in pictures])
    np.testing.assert_array_equal(written(pictures).heatmaps, written(prepared).heatmaps)


def test_an_empty_batch_gives_an_empty_explanation(file):
    for nothing in (IMAGES[:0], np.empty((0, 32, 32, 3), np.uint8)):
        found = OnnxExplainer(file)(nothing)
        assert len(found) == 0
        assert found.heatmaps.shape == (0, 32, 32)
        assert found.embeddings.shape == (0, 8)


def test_labels_are_those_of_the_database_and_exemplars_are_refused(explainer, file):
    written = OnnxExplainer(file)
    for cluster in range(4):
        assert written.labels_of(cluster) == explainer.labels_of(cluster) != []
    with pytest.raises(DatabaseError, match="holds no training images"):
        written.exemplar(0)


def test_images_that_do_not_fit_are_refused(file):
    written = OnnxExplainer(file)
    with pytest.raises(DataError, match=r"takes images of 32 x 32 pixels, got 40 x 32"):
        written(np.zeros((1, 3, 40, 32), np.float32))
    for wrong in (IMAGES.astype(np.float64), IMAGES[0], IMAGES[:, :2]):
        with pytest.raises(DataError, match="expected images float32"):
            written(wrong)


def test_execution_providers_are_chosen(file):
    assert OnnxExplainer(file, ["CPUExecutionProvider"]).providers == ["CPUExecutionProvider"]
    with pytest.raises(NetworkError, match=r"no execution provider 'TPU' here; use one of .*CPUExecutionProvider"):
        OnnxExplainer(file, ["TPU"])


def test_a_file_that_is_missing_foreign_or_cut_short_is_refused(file, tmp_path):
    with pytest.raises(NetworkError, match=r"no ONNX explainer .*make one with `embedcam export`"):
        OnnxExplainer(tmp_path / "none.onnx")
    content = file.read_bytes()
    other = tmp_path / "other.onnx"
    for damaged in (b"", b"hello", content[:-1], content[: len(content) // 2], content[:-83]):
        other.write_bytes(damaged)
        with pytest.raises(NetworkError, match=r"other.onnx is not an ONNX explainer of embedcam, or its end"):
            OnnxExplainer(other)


def test_a_single_changed_bit_is_found(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bit.onnx").write_bytes(content)
    with pytest.raises(NetworkError, match=r"checksum of .*bit.onnx does not match"):
        OnnxExplainer(tmp_path / "bit.onnx")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no 'embedcam' record"),
        ("{", "metadata is damaged"),
        ("[]", "metadata is damaged"),
        ('{"schema": 2}', "has schema 2, this embedcam reads 1; update embedcam"),
        ('{"schema": 1}', "metadata is damaged: KeyError"),
        ("[" * 100_000, "metadata is damaged"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(file, tmp_path, metadata, message):
    model = onnx.load(file)
    del model.metadata_props[:]
    if metadata is not None:
        model.metadata_props.add(key="embedcam", value=metadata)
    (tmp_path / "e.onnx").write_bytes(with_checksum(model.SerializeToString()))
    with pytest.raises(NetworkError, match=message):
        OnnxExplainer(tmp_path / "e.onnx")


def test_what_onnxruntime_cannot_run_is_refused(tmp_path):
    (tmp_path / "e.onnx").write_bytes(with_checksum(b"\x08\x0a"))  # a version, and no graph
    with pytest.raises(NetworkError, match=r"e.onnx: onnxruntime cannot run it: .*export it again"):
        OnnxExplainer(tmp_path / "e.onnx")


def test_a_record_is_read_as_it_was_written(file):
    record = OnnxExplainer(file).record
    assert OnnxRecord.from_json(record.to_json()) == record
    with pytest.raises(EmbedcamError, match="labels of 4 clusters, not of 5"):
        OnnxRecord.from_json(record.to_json().replace('"clusters": 4', '"clusters": 5'))


def test_two_processes_explain_at_once(explainer, file):
    code = (
        "import sys, numpy as np, embedcam\nprint(*embedcam.OnnxExplainer(sys.argv[1])(np.load(sys.argv[2])).clusters)"
    )
    np.save(file.with_name("images.npy"), IMAGES)
    command = [sys.executable, "-c", code, str(file), str(file.with_name("images.npy"))]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    wanted = " ".join(map(str, explainer(IMAGES).clusters))
    assert [process.communicate()[0].strip() for process in running] == [wanted, wanted]
    assert not any(process.returncode for process in running)


def test_an_image_is_explained_without_torch(explainer, file, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'faiss', 'onnx', 'onnxscript', 'safetensors', 'h5py', 'scipy', 'sklearn',\n"
        "             'matplotlib', 'cmap', 'typer'): sys.modules[name] = None\n"
        "import numpy as np, embedcam\n"
        f"found = embedcam.OnnxExplainer({str(file)!r})(np.load({str(tmp_path / 'images.npy')!r}))\n"
        f"np.save({str(tmp_path / 'maps.npy')!r}, found.heatmaps)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "maps.npy"), explainer(IMAGES).heatmaps, atol=1e-4)


def test_a_missing_onnxruntime_is_named(file):
    code = (
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "import embedcam\n"
        f"try: embedcam.OnnxExplainer({str(file)!r})\n"
        "except embedcam.EmbedcamError as error: assert 'embedcam[onnx]' in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
