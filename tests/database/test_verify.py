import h5py
import numpy as np
import pytest

from embedcam import WeightDatabase
from embedcam.database.store import seal
from embedcam.database.verify import verify
from embedcam.errors import DatabaseError


@pytest.fixture
def path(trained, tmp_path):
    copy = tmp_path / "weights.h5"
    copy.write_bytes((trained / "weights.h5").read_bytes())
    return copy


def edit(path, name, change):
    """Change one data set in place, and put a new checksum on the file."""
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        change(values)
        file[name][...] = values
    path.write_bytes(seal(path.read_bytes()))


def faults(path):
    return {item: found for item, found, sound in verify(path) if not sound}


def test_a_built_database_is_sound_item_by_item(path, fused, tmp_path):
    outcomes = verify(path)
    assert all(outcome.sound for outcome in outcomes)
    found = {item: text for item, text, _ in outcomes}
    assert found["checksum"] == "matches"
    assert found["format"] == "1.0.0"
    assert found["/clusters/centroids"] == "4 x 8, float32"
    assert found["/exemplars/path"] == f"{len(WeightDatabase.load(path).exemplars)}, text"
    with h5py.File(path) as file:
        stored = []
        file.visititems(lambda name, item: stored.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
    assert set(stored) <= set(found)

    fused[1].save(tmp_path / "fused.h5")
    assert not faults(tmp_path / "fused.h5")
    assert "/refinement/fusion/weights_mean" in {item for item, _, _ in verify(tmp_path / "fused.h5")}


def test_a_file_without_a_checksum_says_so(path):
    with h5py.File(path, "r+"):
        pass
    assert verify(path)[0] == ("checksum", "none, written by another program", True)


def test_a_damaged_file_ends_at_its_checksum(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ((item, found, sound),) = verify(path)
    assert (item, sound) == ("checksum", False)
    assert "does not match" in found


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("clusters/centroids", lambda v: v.put(3, np.nan), "finite numbers, found NaN"),
        ("clusters/counts", lambda v: v.put(0, 0), "no empty cluster, found 0"),
        ("clusters/counts", lambda v: v.put(0, 999), "the exemplars of each cluster, .* found 999"),
        ("clusters/top_weights", lambda v: v.sort(axis=1), "strongest first"),
        ("clusters/top_weights", lambda v: np.multiply(v, 2, out=v), "the weights_mean of the top_channels"),
        ("clusters/top_channels", lambda v: v.put(0, 5000), r"indices in 0\.\.127, found \[5000\]"),
        ("clusters/top_channels", lambda v: v.put(0, v[0, 1]), "different channels"),
        ("clusters/distance_quantiles", lambda v: v.put(0, 99), "rising numbers"),
        ("clusters/weights_std", lambda v: v.put(7, -1), "no negative number"),
        ("labels/histogram", lambda v: v.put(0, v[0, 0] + 1), "the images of each cluster"),
        ("labels/histogram", lambda v: v.put([0, 1], [v[0, 0] + 100, v[0, 1] - 100]), "the images of each cluster"),
        ("exemplars/cluster", lambda v: v.put(0, 4), r"indices in 0\.\.3"),
        ("exemplars/top_weights", lambda v: v.sort(axis=1), "strongest first"),
        ("exemplars/label", lambda v: v.put(0, 3), r"indices in -1\.\.2"),
    ],
)
def test_each_fault_is_named(path, name, change, message):
    edit(path, name, change)
    found = faults(path)
    assert f"/{name}" in found
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found[f"/{name}"])


def test_channels_that_are_not_the_strongest_are_found(path):
    with h5py.File(path, "r+") as file:
        mean = file["clusters/weights_mean"][()]
        weakest = np.argsort(mean, axis=1)[:, ::-1][:, -12:]
        file["clusters/top_channels"][...] = weakest
        file["clusters/top_weights"][...] = np.take_along_axis(mean, weakest, axis=1)
    path.write_bytes(seal(path.read_bytes()))
    assert WeightDatabase.load(path).top_k == 12  # it can be used; only it was not built so
    assert faults(path) == {
        "/clusters/top_channels": "expected the channels with the largest weights_mean, found others"
    }


def test_all_faults_are_listed_and_not_the_first_alone(path):
    with h5py.File(path, "r+") as file:
        del file["clusters/weights_std"]
        file["exemplars/label"].id.write_direct_chunk((0,), b"no chunk")
    assert set(faults(path)) == {"/clusters/weights_std", "/exemplars/label"}
    assert "checksum" in faults(path)["/exemplars/label"]

    with h5py.File(path, "r+") as file:
        for name in ("clusters/weights_std", "exemplars/label"):
            if name in file:
                del file[name]
        file["clusters/weights_std"], file["exemplars/label"] = np.zeros((4, 127), "f4"), np.zeros(2)
    assert set(faults(path)) == {"/clusters/weights_std", "/exemplars/label"}


def test_damaged_settings_are_named(path):
    with h5py.File(path, "r+") as file:
        del file["network"].attrs["sha256"]
    assert faults(path) == {"attributes": "/network: expected an attribute 'sha256', found none; build it again"}


def test_what_is_no_database_is_said_in_one_outcome(tmp_path):
    (tmp_path / "text").write_text("no database")
    assert [(item, sound) for item, _, sound in verify(tmp_path / "text")] == [("checksum", True), ("format", False)]
    with h5py.File(tmp_path / "other.h5", "w", libver="earliest") as file:
        file["x"] = 1
    assert "not a weight database" in faults(tmp_path / "other.h5")["format"]
    with pytest.raises(DatabaseError, match="no weight database"):
        verify(tmp_path / "none.h5")
