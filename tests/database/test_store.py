import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedcam.data.preprocess import Preprocess
from embedcam.database import Exemplars, Fusion, NetworkRecord, Refinement, WeightDatabase
from embedcam.database.neighbors import Partitions
from embedcam.database.store import seal
from embedcam.errors import DatabaseError, OutputError
from embedcam.nets.geometry import Geometry

C, K, D, T, N, L, FINE = 3, 10, 4, 5, 8, 2, 6


def database() -> WeightDatabase:
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((C, K)) * 1e-8).astype(np.float32)
    order = np.argsort(-weights, axis=1)[:, :T]
    top = np.take_along_axis(weights, order, axis=1)
    cluster = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    return WeightDatabase(
        network=NetworkRecord("ab" * 32, "resnet18", "layer4", K, D, "cosine", Preprocess((32, 48))),
        geometry=Geometry((32.0, 16.0), (0.5, 8.0)),
        method="gradcam",
        target="triplet_margin",
        pairs=50,
        seed=7,
        created="2026-01-01T00:00:00+00:00",
        centroids=rng.standard_normal((C, D)).astype(np.float32),
        counts=np.bincount(cluster),
        weights_mean=weights,
        weights_std=np.abs(weights),
        top_channels=order.astype(np.int32),
        top_weights=top,
        distance_quantiles=np.sort(rng.random((C, 5)).astype(np.float32), axis=1),
        label_names=("Ünïcode", "東京"),
        label_histogram=np.array([[2, 0], [1, 2], [0, 2]]),
        exemplars=Exemplars(
            rng.standard_normal((N, D)).astype(np.float32),
            order.astype(np.int32)[cluster],
            top[cluster],
            cluster,
            np.array([0, 0, 0, 1, 1, 1, 1, -1]),
            tuple(f"class/{i}.jpg" for i in range(N)),
            Partitions(rng.standard_normal((2, D)).astype("f4"), np.array([0, 1] * (N // 2), dtype="i4"), 1),
        ),
        refinement=Refinement(
            (64, 96), 2.5, Fusion("layer3", Geometry((16.0, 8.0), (0.5, 4.0)), rng.random((C, FINE)).astype("f4"))
        ),
        embedcam_version="0.1.0",
    )


def assert_same(a: WeightDatabase, b: WeightDatabase) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, Exemplars):
            parts = (
                [(value, other)] if value.partitions is None else [(value, other), (value.partitions, other.partitions)]
            )
            for mine, theirs in parts:
                for key in set(vars(mine)) - {"partitions"}:
                    np.testing.assert_array_equal(getattr(mine, key), getattr(theirs, key))
                    assert type(getattr(mine, key)) is type(getattr(theirs, key))
        elif isinstance(value, Refinement):
            assert (value.input_size, value.distance_scale) == (other.input_size, other.distance_scale)
            if value.fusion is None:
                assert other.fusion is None
                continue
            assert (value.fusion.layer, value.fusion.geometry) == (other.fusion.layer, other.fusion.geometry)
            np.testing.assert_array_equal(value.fusion.weights_mean, other.fusion.weights_mean)
        elif isinstance(value, np.ndarray):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other)
        else:
            assert value == other, name


@pytest.fixture
def path(tmp_path):
    database().save(tmp_path / "weights.h5")
    return tmp_path / "weights.h5"


def edit(path, change):
    """Change a file as another program would; HDF5 drops the checksum behind its end."""
    with h5py.File(path, "r+") as file:
        change(file)
    assert b"embedcam-sha256" not in path.read_bytes()


def replace_item(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def test_a_database_comes_back_as_it_was(path):
    assert_same(WeightDatabase.load(path), database())


def test_labels_exemplars_and_a_refinement_are_optional(tmp_path):
    bare = replace(database(), label_names=None, label_histogram=None, exemplars=None, refinement=None)
    bare.save(tmp_path / "bare.h5")
    assert_same(WeightDatabase.load(tmp_path / "bare.h5"), bare)


def test_saving_twice_gives_the_same_bytes(tmp_path, path):
    WeightDatabase.load(path).save(tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_the_file_is_format_1(path):
    with h5py.File(path) as file:
        assert file.attrs["encoding-type"] == "embedcam-weight-database"
        assert file.attrs["encoding-version"] == "1.0.0"
        assert {"embedcam_version", "created", "seed", "method", "target", "pairs", "metric"} <= set(file.attrs)
        network = {"sha256", "architecture", "layer", "channels", "dim", "input_size", "mean", "std", "interpolation"}
        assert network <= set(file["network"].attrs)
        assert list(file["geometry"].attrs["cell_stride"]) == [32, 16]
        assert list(file["geometry"].attrs["first_cell_center"]) == [0.5, 8]
        datasets = {}

        def visit(name, item):
            assert "encoding-type" in item.attrs
            assert "encoding-version" in item.attrs
            if isinstance(item, h5py.Dataset):
                datasets[name] = (item.shape, str(item.dtype))
                assert item.compression == "gzip"
                assert item.shuffle
                assert item.fletcher32

        file.visititems(visit)
    strings = {name: datasets.pop(name)[0] for name in ("labels/names", "exemplars/path")}
    assert strings == {"labels/names": (L,), "exemplars/path": (N,)}
    assert datasets == {
        "clusters/centroids": ((C, D), "float32"),
        "clusters/counts": ((C,), "int64"),
        "clusters/weights_mean": ((C, K), "float32"),
        "clusters/weights_std": ((C, K), "float32"),
        "clusters/top_channels": ((C, T), "int32"),
        "clusters/top_weights": ((C, T), "float32"),
        "clusters/distance_quantiles": ((C, 5), "float32"),
        "labels/histogram": ((C, L), "int64"),
        "exemplars/embeddings": ((N, D), "float32"),
        "exemplars/top_channels": ((N, T), "int32"),
        "exemplars/top_weights": ((N, T), "float32"),
        "exemplars/cluster": ((N,), "int64"),
        "exemplars/label": ((N,), "int64"),
        "exemplars/partitions/centroids": ((2, D), "float32"),
        "exemplars/partitions/partition": ((N,), "int32"),
        "refinement/fusion/weights_mean": ((C, FINE), "float32"),
    }


def test_a_file_of_another_writer_needs_no_checksum(path):
    edit(path, lambda file: None)
    assert_same(WeightDatabase.load(path), database())


def test_every_flipped_bit_is_noticed_or_harmless(path):
    """Flip one bit at 1,000 places and in the last 100: an error in one line, or exactly what was written."""
    good, noticed = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    places = [*rng.integers(len(good), size=1000), *range(len(good) - 100, len(good))]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            assert_same(WeightDatabase.load(path), database())
        except DatabaseError as error:
            noticed += 1
            assert "\n" not in str(error)
            assert str(path) in str(error)
    assert noticed >= len(places) - 8  # without the start of its mark the checksum is not looked for


@pytest.mark.parametrize("left", [0, 100, 5000, -1000, -100, -64, -10, -1])
def test_a_truncated_file_is_refused(path, left):
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DatabaseError, match=r"weights\.h5"):
        WeightDatabase.load(path)


def test_a_file_that_is_not_hdf5_is_refused(path):
    path.write_text("channel,weight\n1,2\n")
    with pytest.raises(DatabaseError, match="not a readable weight database"):
        WeightDatabase.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DatabaseError, match=r"no weight database .*embedcam build"):
        WeightDatabase.load(tmp_path / "none.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.modify("encoding-type", "anndata"), "encoding-type: expected 'embedcam-weight-database'"),
        (lambda f: f.attrs.modify("encoding-version", "2.0.0"), "reads 1.0.0, found 2.0.0; update embedcam"),
        (
            replace_item("clusters/centroids", np.zeros((C, D + 1), "f4")),
            r"/clusters/centroids: expected shape \(3, 4\)",
        ),
        (replace_item("clusters/counts", np.array([8, 0, 0])), "/clusters/counts: expected no empty cluster"),
        (
            replace_item("clusters/top_channels", np.full((C, T), K, "i4")),
            r"/clusters/top_channels: expected indices in 0\.\.9",
        ),
        (
            replace_item("clusters/top_channels", np.full((C, T), -1, "i4")),
            r"/clusters/top_channels: expected indices in 0\.\.9",
        ),
        (
            replace_item("clusters/weights_mean", np.full((C, K), np.nan, "f4")),
            "/clusters/weights_mean: expected finite",
        ),
        (replace_item("clusters/weights_std", np.zeros((C, K), "f8")), "/clusters/weights_std: expected float32"),
        (replace_item("clusters/top_weights", np.tile(np.arange(T, dtype="f4"), (C, 1))), "strongest first"),
        (replace_item("exemplars/cluster", np.full(N, C)), r"/exemplars/cluster: expected indices in 0\.\.2"),
        (replace_item("exemplars/label", np.full(N, L)), "/exemplars/label"),
        (replace_item("exemplars/partitions/partition", np.full(N, 2, "i4")), "/exemplars/partitions/partition"),
        (lambda file: file["exemplars/partitions"].attrs.modify("probes", 3), "/exemplars/partitions probes"),
        (lambda f: f.__delitem__("clusters/weights_std"), "/clusters/weights_std: expected a dataset, found nothing"),
        (lambda f: f["geometry"].attrs.modify("cell_stride", [0.0, 1.0]), "/geometry cell_stride"),
        (
            replace_item("refinement/fusion/weights_mean", np.zeros((C + 1, FINE), "f4")),
            r"/refinement/fusion/weights_mean: expected shape \(3",
        ),
        (
            lambda f: f["refinement/fusion"].attrs.modify("cell_stride", [16.0, np.nan]),
            "/refinement/fusion: expected finite",
        ),
        (lambda f: f["refinement"].attrs.modify("input_size", [0, 96]), "/refinement input_size: expected positive"),
        (
            lambda f: f["refinement"].attrs.modify("distance_scale", np.inf),
            "/refinement distance_scale: expected a positive",
        ),
        (
            lambda f: f["refinement"].attrs.modify("input_size", [10**5, 10**5]),
            "/refinement input_size: .* 16,777,216 pixels",
        ),
        (lambda f: f["network"].attrs.modify("input_size", [10**5, 10**5]), "/network: .* more than 16,777,216 pixels"),
        (lambda f: f["network"].attrs.modify("std", [1.0, 0.0, 1.0]), "/network: .* std positive"),
        (lambda f: f["network"].attrs.modify("mean", [1.0, np.nan, 1.0]), "/network: .* must be finite"),
        (lambda f: f["network"].attrs.modify("layer", "\x1b[2J"), "/network: 'layer' is not plain text"),
        (
            lambda f: f["network"].attrs.modify("layer", "x" * 2000),
            "/network: 'layer' is not plain text of at most 1024",
        ),
        (lambda f: f["network"].attrs.__delitem__("dim"), "/network: expected an attribute 'dim', found none"),
        (lambda f: f["network"].attrs.__setitem__("dim", "four"), "/network: it is damaged .*'four'"),
        (lambda f: f.__delitem__("geometry"), "/geometry: expected .* found nothing"),
        (replace_item("labels/names", np.zeros(L, "f4")), "/labels/names: expected a list of strings, found float32"),
        (replace_item("exemplars/path", np.array([b"a"] * (N + 1))), "/exemplars/path: expected 8 names, found 9"),
        (replace_item("clusters/centroids", np.float32(1)), r"/clusters/centroids: expected shape"),
        (replace_item("clusters/top_channels", np.zeros((C, 0), "i4")), "/clusters/top_"),
        (replace_item("clusters/centroids", np.array(["text"], dtype=h5py.string_dtype())), "/clusters/centroids"),
        (lambda f: f.attrs.modify("metric", "manhattan"), "metric: expected cosine or euclidean"),
        (lambda f: f.__setitem__("clusters/extra", h5py.ExternalLink("/etc/passwd", "/")), "found a link"),
        (lambda f: f.__setitem__("clusters/extra", h5py.SoftLink("/clusters")), "found a link"),
    ],
)
def test_wrong_content_is_refused_by_name(path, change, message):
    edit(path, change)
    with pytest.raises(DatabaseError, match=message):
        WeightDatabase.load(path)


def test_a_newer_minor_version_is_read_with_a_notice(path, caplog):
    assert_same(WeightDatabase.load(path), database())
    assert not caplog.messages

    def newer(file):
        file.attrs.modify("encoding-version", "1.1.0")
        file["clusters/of_a_newer_version"] = np.zeros(3)
        file.create_group("newer")

    edit(path, newer)
    assert_same(WeightDatabase.load(path), database())
    (notice,) = caplog.messages
    assert "weights.h5 has format 1.1.0; this embedcam supports 1.0.0" in notice


@pytest.mark.parametrize("version", ["2.0.0", "10.0.0", "0.9.0", "1.x", "", "1.0.0\n"])
def test_other_major_versions_are_refused(path, version):
    edit(path, lambda file: file.attrs.modify("encoding-version", version))
    with pytest.raises(DatabaseError, match="encoding-version"):
        WeightDatabase.load(path)


def test_a_file_with_a_true_checksum_is_not_trusted_either(path):
    edit(path, replace_item("clusters/weights_mean", np.full((C, K), np.inf, "f4")))
    path.write_bytes(seal(path.read_bytes()))
    with pytest.raises(DatabaseError, match="/clusters/weights_mean: expected finite"):
        WeightDatabase.load(path)


def test_a_file_too_large_to_be_a_database_is_not_read(tmp_path):
    with (tmp_path / "sparse.h5").open("wb") as file:
        file.truncate(2**34 + 1)
    with pytest.raises(DatabaseError, match="has 17,179,869,185 bytes, a weight database has at most 17,179,869,184"):
        WeightDatabase.load(tmp_path / "sparse.h5")


def test_a_database_is_read_without_h5py(path):
    code = f"import sys; sys.modules['h5py'] = None; import embedcam; embedcam.WeightDatabase.load({str(path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@st.composite
def databases(draw):
    """Any valid database, from one cluster, channel and dimension up."""
    c, k, d = (draw(st.integers(1, 4)) for _ in range(3))
    t = draw(st.integers(1, k))

    def numbers(*shape):
        return draw(arrays.arrays("f4", shape, elements=FLOATS))

    def indices(end, *shape, first=0, dtype="i8"):
        return draw(arrays.arrays(dtype, shape, elements=st.integers(first, end - 1)))

    names = draw(st.none() | st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple))
    exemplars = None
    if draw(st.booleans()):
        n = draw(st.integers(1, 5))
        own = -np.sort(-numbers(n, t), axis=1)
        label = indices(len(names or "1"), n, first=-1)
        paths = tuple(draw(NAMES) for _ in range(n))
        exemplars = Exemplars(numbers(n, d), indices(k, n, t, dtype="i4"), own, indices(c, n), label, paths)
    positive = st.floats(1e-3, 1e3)
    sides = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
    geometries = st.builds(Geometry, st.tuples(positive, positive), st.tuples(st.floats(-99, 99), st.floats(-99, 99)))
    fusion = draw(st.none() | st.builds(Fusion, NAMES, geometries, st.just(numbers(c, draw(st.integers(1, 3))))))
    return WeightDatabase(
        network=NetworkRecord(
            "cd" * 32,
            draw(NAMES),
            draw(NAMES),
            k,
            d,
            draw(st.sampled_from(["cosine", "euclidean"])),
            Preprocess(draw(sides), (0.1, 0.2, 0.3), draw(st.tuples(positive, positive, positive)), "bicubic"),
        ),
        geometry=draw(geometries),
        method=draw(st.sampled_from(["gradcam", "gradcam++-exact"])),
        target="triplet_margin",
        pairs=draw(st.integers(0, 10**6)),
        seed=draw(st.integers(0, 2**62)),
        created="2026-01-01T00:00:00+00:00",
        centroids=numbers(c, d),
        counts=indices(2**40, c, first=1),
        weights_mean=numbers(c, k),
        weights_std=numbers(c, k),
        top_channels=indices(k, c, t, dtype="i4"),
        top_weights=-np.sort(-numbers(c, t), axis=1),
        distance_quantiles=np.sort(numbers(c, 5), axis=1),
        label_names=names,
        label_histogram=None if names is None else indices(2**40, c, len(names)),
        exemplars=exemplars,
        refinement=draw(st.none() | st.builds(Refinement, sides, positive, st.just(fusion))),
        embedcam_version=draw(NAMES),
    )


@given(databases())
@settings(max_examples=40)
def test_any_valid_database_comes_back_as_it_was(db):
    with tempfile.TemporaryDirectory() as folder:
        db.save(Path(folder) / "weights.h5")
        assert_same(WeightDatabase.load(Path(folder) / "weights.h5"), db)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        replace(database(), seed=8).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_labels_of_a_cluster_come_commonest_first():
    assert database().labels_of(1) == [("東京", 2), ("Ünïcode", 1)]
    assert database().labels_of(2) == [("東京", 2)]


def test_typicality_by_hand():
    db = replace(database(), distance_quantiles=np.tile(np.array([1, 2, 3, 4, 5], "f4"), (C, 1)))
    distances = np.array([0, 0.5, 1, 1.5, 2, 5, 5.01], "f4")

    found = db.typicality(np.zeros(7, dtype=np.int64), distances)

    np.testing.assert_allclose(found, [1, 0.75, 0.5, 0.3, 0.1, 0, 0], atol=1e-6)


def test_anomaly_is_the_distance_in_units_of_the_outermost_percent():
    quantiles = np.tile(np.array([1, 2, 3, 4, 5], "f4"), (C, 1))
    # Alike in all clusters: one image in a hundred lies beyond 4.
    db = replace(database(), distance_quantiles=quantiles)
    np.testing.assert_allclose(db.anomaly(np.array([0, 2, 4, 6], "f4")), [0, 0.5, 1, 1.5], atol=1e-6)
    # 2, 3 and 3 images: of the first cluster, twice as wide, 4 % must lie beyond for 1 % of all: at its 0.96, 6.5.
    wide = replace(db, distance_quantiles=quantiles * np.array([[2], [1], [1]], "f4"))
    np.testing.assert_allclose(wide.anomaly(np.array([6.5], "f4")), 1, atol=1e-6)
    flat = replace(db, distance_quantiles=np.zeros((C, 5), "f4"))
    np.testing.assert_array_less(flat.anomaly(np.array([0, 1e-7], "f4")), 1)


def test_typicality_and_anomaly_as_numpy_interpolates():
    rng = np.random.default_rng(1)
    rows = np.sort(rng.random((40, 5)).astype("f4"), axis=1)
    rows[3] = rows[3, 0]  # a cluster of one image
    rows[4] = 0
    many = np.repeat(np.arange(C), 1)
    for start in range(0, 39, C):
        quantiles = rows[start : start + C]
        if len(quantiles) < C:
            break
        db = replace(database(), distance_quantiles=quantiles)
        distances = np.concatenate([rng.random(20), 1.0001 * quantiles.ravel()]).astype("f4")
        for cluster in many:
            row, shares = np.array([0.0, *quantiles[cluster]]), [1, 0.5, 0.1, 0.05, 0.01, 0]
            wanted = [
                1 if d <= row[1] * 1e-6 + 1e-6 else np.interp(d, row, shares) if d <= row[-1] else 0
                for d in distances.astype(float)
            ]
            found = db.typicality(np.full(len(distances), cluster), distances)
            np.testing.assert_allclose(found, wanted, atol=1e-4)  # the smallest distances count from 1e-6 on
        steps = np.unique(quantiles.astype(float))
        beyond = [
            np.average([float(db.typicality(np.array([c]), np.array([s]))[0]) for c in range(C)], weights=db.counts)
            for s in steps
        ]
        far = np.interp(-0.01, -np.array(beyond), steps)
        np.testing.assert_allclose(db.anomaly(np.array([1], "f4")), 1 / max(far, 1e-6), rtol=1e-4)


def test_distances_grow_with_the_size_that_is_looked_at():
    db = database()  # 32 x 48, explained at 64 x 96, where they are 2.5 times as large
    assert db.distance_scale((32, 48)) == 1
    assert db.distance_scale((64, 96)) == pytest.approx(2.5)
    assert db.distance_scale((128, 192)) == pytest.approx(2.5**2)
    assert replace(db, refinement=None).distance_scale((64, 96)) == 1
    same = replace(db, refinement=replace(db.refinement, input_size=(32, 48)))
    assert same.distance_scale((64, 96)) == 1
    # Sizes almost alike and an absurd scale would give a number that no float holds.
    absurd = replace(db, refinement=replace(db.refinement, input_size=(32, 49), distance_scale=1e300))
    assert 1e15 < absurd.distance_scale((640, 960)) < 1e20
    assert 0 < absurd.distance_scale((8, 8)) < 1e-6


def test_another_network_is_refused_and_all_differences_are_named(net):
    record = NetworkRecord.of(net)
    record.require_same(net)
    other = replace(record, sha256="cd" * 32, dim=9, architecture="another name", source=None)
    with pytest.raises(DatabaseError) as caught:
        other.require_same(net)
    message = str(caught.value)
    assert f"sha256 cdcdcdcdcdcd... recorded, {record.sha256[:12]}... in the network" in message
    assert f"dim 9 recorded, {record.dim} in the network" in message
    assert "channels" not in message
    assert "architecture" not in message


def test_a_database_and_its_exemplars_tell_what_they_are_in_a_line(trained):
    database = WeightDatabase.load(trained / "weights.h5")
    assert repr(database) == f"<WeightDatabase of tiny at {database.network.layer}: 4 clusters of 18 images>"
    assert repr(database.exemplars) == "<18 exemplars>"
