"""An index finds what brute force finds, and its matches add up to the stored similarities."""

import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import embedcam
from embedcam.data import load
from embedcam.errors import DatabaseError, DataError, NetworkError
from embedcam.explain.comparison import Against
from embedcam.gallery import Gallery, index, merge
from embedcam.gallery.matches import versus
from embedcam.nets import DenseNet, EmbeddingNet, load_network


def pictures(samples, count=3):
    return [samples.image(number) for number in range(count)]


def test_the_nearest_are_those_of_brute_force(indexed):
    gallery, samples, net = indexed
    everything = np.stack([item.embedding for item in gallery.items(range(len(gallery)))])
    matches = gallery.search(pictures(samples), top=5)
    for query, hits in zip(matches.queries, matches, strict=True):
        distances = (
            1 - everything @ query.embedding
            if net.metric == "cosine"
            else np.linalg.norm(everything - query.embedding, axis=1)
        )
        assert np.allclose([match.distance for match in hits], np.sort(distances)[:5], atol=1e-5)
        assert hits[0].distance == pytest.approx(distances.min(), abs=1e-5)


def test_blocks_of_a_large_gallery_find_the_same(indexed, monkeypatch):
    gallery, samples, _ = indexed
    queries = np.stack([item.embedding for item in gallery.see(pictures(samples))])
    rows, distances = gallery.nearest(queries, 7)
    monkeypatch.setattr("embedcam.gallery.stored._IN_MEMORY", 0)
    monkeypatch.setattr("embedcam.gallery.stored._BLOCK", 4)
    again, distances_again = gallery.nearest(queries, 7)
    assert np.allclose(distances, distances_again, atol=1e-6)
    assert rows.shape == again.shape


def test_contributions_of_either_side_add_up_to_the_similarity(indexed):
    gallery, samples, _ = indexed
    for match in gallery.search(pictures(samples), top=4)[1]:
        scale = max(abs(match.similarity), float(np.abs(match.contributions()).sum()))
        for side in ("query", "hit"):
            total = match.contributions(side).sum() + match.rest(side)
            assert total == pytest.approx(match.similarity, abs=1e-5 * scale)
        assert abs(match.rest("query")) <= 1e-5 * scale  # not rounded
        assert abs(match.rest("hit")) <= 1e-2 * scale


def test_maps_agree_with_those_of_two_forward_passes(indexed):
    gallery, samples, net = indexed
    if net.metric == "euclidean":
        return  # another embedding is subtracted there
    first, second = (torch.from_numpy(net.preprocess.batch([samples.image(number)])) for number in (0, 7))
    expected = Against(net)(first, second)
    match = gallery.explain_match(gallery.see([samples.image(0)])[0], samples.ids[7])
    assert np.allclose(match.contributions("query"), expected.contributions.images[0], atol=1e-5)
    maps = (match.contributions("hit").ravel(), expected.contributions.other[0].ravel())
    assert np.corrcoef(maps)[0, 1] >= 0.995
    assert match.shared[0].heatmaps.shape == (1, 32, 32)
    assert match.shared[1].overlay([samples.image(7)])[0].dtype == np.uint8


def test_evidence_is_the_contribution_that_rivals_do_not_claim(indexed):
    gallery, _, _ = indexed
    match, unit = gallery.explain_match(3, 9), lambda vector: vector / np.linalg.norm(vector)
    ((_, _, rivals),) = gallery.blocks()
    centre, asked = rivals.mean(axis=0), match.query.embedding
    share = np.empty(match.hit.cells.shape[:2])
    for i, j in np.ndindex(share.shape):
        cell = unit(match.hit.cells[i, j] - centre)
        own = np.exp(cell @ unit(asked - centre) / 0.07)
        others = [
            np.exp(cell @ unit(rival - centre) / 0.07) if unit(rival - centre) @ unit(asked - centre) < 0.5 else 0
            for rival in rivals
        ]
        share[i, j] = own / (own + 50 * np.mean(others))
    expected = match.contributions("hit").clip(min=0) * (share / share.max()) ** 2
    np.testing.assert_allclose(match.evidence("hit"), expected, rtol=1e-3, atol=1e-8)
    with pytest.raises(DataError, match="the sides of a match are 'query' and 'hit', got 'other'"):
        match.evidence("other")
    assert match.shared[1].raw.max() == pytest.approx(match.evidence("hit").max() * match.hit.cells[..., 0].size)


def test_what_cannot_be_searched_or_explained_is_named(indexed):
    gallery, samples, _ = indexed
    picture, match = samples.image(0), gallery.explain_match(0, 1)
    for call, message in (
        (lambda: gallery.search([picture], top=0), "at least 1, got 0"),
        (lambda: gallery.search([]), "got 0 images"),
        (lambda: gallery.search([picture], ids=["a", "b"]), "got 1 images and 2 ids"),
        (lambda: gallery.search(["a.png"]), r"expected a Pillow image or uint8 \(H, W, 3\), got str"),
        (lambda: gallery.search([np.zeros((8, 8, 3))]), r"got ndarray \(8, 8, 3\)"),
        (lambda: gallery.explain_match(0, len(gallery)), f"has images 0 to {len(gallery) - 1}"),
        (lambda: gallery.items([-1]), "asked for -1 to -1"),
        (lambda: match.transfer([(0.5, np.nan)]), "a place is not finite"),
    ):
        with pytest.raises(DataError, match=message):
            call()


def test_a_place_corresponds_to_itself(indexed):
    gallery, _, _ = indexed
    match = gallery.explain_match(3, 3)
    pairs = match.correspondences(most=4)
    assert pairs
    assert all(pair.query == pair.hit for pair in pairs)
    assert [pair.strength for pair in pairs] == sorted((pair.strength for pair in pairs), reverse=True)


def test_places_are_transferred_between_shifted_pictures(net, tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (40, 48, 3), np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    pictures = [Image.fromarray(wide[8:40, start : start + 32]) for start in (8, 16)]
    for number, picture in enumerate(pictures):
        (tmp_path / "a").mkdir(exist_ok=True)
        picture.save(tmp_path / "a" / f"{number}.png")
    index(net, load(f"folder:{tmp_path}"), tmp_path / "gallery.h5")
    with Gallery.open(tmp_path / "gallery.h5", net) as gallery:
        match = gallery.explain_match(0, 1)
        places = np.array([[0.3, 0.6], [0.5, 0.7], [0.6, 0.5]])
        assert np.abs(match.transfer(places) - (places - [0, 8 / 32])).max() < 0.1
        assert np.abs(gallery.explain_match(0, 0).transfer(places) - places).max() < 0.05
        (query,) = gallery.see(pictures[:1])
        assert np.allclose(gallery.explain_match(query, 1).transfer(places), match.transfer(places), atol=0.02)


def test_cells_correspond_where_there_are_no_descriptors(net, folder, tmp_path):
    samples = load(f"folder:{folder}").subset(range(4))
    index(net, samples, tmp_path / "gallery.h5", descriptors=False)
    with Gallery.open(tmp_path / "gallery.h5", net) as gallery:
        match = gallery.explain_match(1, 1)
        centres = match.query.shares(np.array([[1, 2], [3, 0]]), match.query.geometry)
        assert np.allclose(match.transfer(centres), centres, atol=0.1)
        assert gallery.record.space is None
        assert match.correspondences()


def test_an_index_like_another_has_its_descriptors(net, folder, tmp_path):
    samples = load(f"folder:{folder}")
    index(net, samples, tmp_path / "one.h5")
    index(net, samples.subset(range(3)), tmp_path / "two.h5", like=tmp_path / "one.h5")
    with Gallery.open(tmp_path / "one.h5") as one, Gallery.open(tmp_path / "two.h5") as two:
        assert one.record.space.same_as(two.record.space)
        (a,), (b,) = one.items([2]), two.items([2])
        np.testing.assert_array_equal(a.descriptors.vectors, b.descriptors.vectors)
    index(net, samples.subset(range(3, 6)), tmp_path / "like.h5", like=tmp_path / "two.h5")
    index(net, samples.subset(range(3, 6)), tmp_path / "unlike.h5")
    for other, kept in (("like.h5", True), ("unlike.h5", False)):
        merge([tmp_path / "two.h5", tmp_path / other], tmp_path / "merged.h5")
        with Gallery.open(tmp_path / "merged.h5") as merged:
            assert (merged.record.space is not None) == kept
            assert merged.explain_match(0, 4).correspondences()
    torch.manual_seed(1)
    other = EmbeddingNet("tiny", 8, image_size=32).eval()
    with pytest.raises(DatabaseError, match="another network"):
        index(other, samples, tmp_path / "three.h5", like=tmp_path / "one.h5")
    for options in ({"append": True}, {"descriptors": False}):
        with pytest.raises(DataError, match="give one of append, like and no descriptors"):
            index(net, samples, tmp_path / "two.h5", like=tmp_path / "one.h5", **options)


def test_versus_adds_up_to_the_difference_of_two_similarities(indexed):
    gallery, samples, _ = indexed
    best, worse = gallery.search(pictures(samples, 1), top=2)[0]
    signed, rest = versus(best, worse)
    assert signed.sum() + rest == pytest.approx(best.similarity - worse.similarity, abs=1e-5)


def test_ids_labels_and_paths_are_kept(indexed):
    gallery, samples, _ = indexed
    for number in (0, 5, len(samples) - 1):
        (item,) = gallery.items([number])
        assert item.id == samples.ids[number]
        assert item.path == str(samples.files[number].absolute())
        assert item.label == samples.names[samples.labels[number]]
        assert gallery.row(item.id) == number
    with pytest.raises(DataError, match="has no image"):
        gallery.row("none")


def test_appending_gives_the_index_of_all(net, folder, tmp_path):
    samples = load(f"folder:{folder}")
    whole, grown = tmp_path / "whole.h5", tmp_path / "grown.h5"
    index(net, samples, whole)
    index(net, samples.subset(range(5)), grown)
    assert index(net, samples.subset(range(5, len(samples))), grown, append=True) == len(samples)
    with Gallery.open(whole) as one, Gallery.open(grown) as other:
        for row in range(len(samples)):
            (a,), (b,) = one.items([row]), other.items([row])
            assert (a.id, a.path, a.label) == (b.id, b.path, b.label)
            assert np.allclose(a.cells, b.cells, atol=1e-2 * float(np.abs(a.cells).max()))
    with pytest.raises(DataError, match="already"):
        index(net, samples.subset([3]), grown, append=True)


def test_an_interrupted_run_is_resumed(net, folder, tmp_path, monkeypatch):
    samples = load(f"folder:{folder}")
    monkeypatch.setattr("embedcam.utils.shards.SHARD", 4)
    seen = []
    original = type(samples).image

    def image(self, number):
        seen.append(self.ids[number])
        if len(seen) == len(samples) + 10:  # all are read once for the space of the descriptors
            raise KeyboardInterrupt
        return original(self, number)

    monkeypatch.setattr(type(samples), "image", image)
    with pytest.raises(KeyboardInterrupt):
        index(net, samples, tmp_path / "gallery.h5", workers=0)
    seen.clear()
    assert not (tmp_path / "gallery.h5").exists()
    monkeypatch.setattr(type(samples), "image", lambda self, number: seen.append(number) or original(self, number))
    assert index(net, samples, tmp_path / "gallery.h5", workers=0, resume=True) == len(samples)
    assert len(seen) == len(samples) - 8


def test_an_unreadable_image_is_left_out_or_an_error(net, folder, tmp_path, caplog):
    data = shutil.copytree(folder, tmp_path / "pictures")
    samples = load(f"folder:{data}@all")
    samples.files[0].write_text("no image")
    with pytest.raises(DataError, match="not an image"):
        index(net, samples, tmp_path / "gallery.h5", strict=True)
    assert not caplog.messages
    assert index(net, samples, tmp_path / "gallery.h5") == len(samples) - 1
    assert "not an image" in caplog.messages[0]


def test_denser_cells_are_indexed(net, folder, tmp_path):
    net, samples = DenseNet(net), load(f"folder:{folder}").subset(range(6))
    index(net, samples, tmp_path / "gallery.h5")
    with Gallery.open(tmp_path / "gallery.h5", net) as gallery:
        assert gallery.record.cells == net.map_size
        match = gallery.search([samples.image(0)], top=1)[0][0]
        assert match.hit.id == samples.ids[0]
        assert match.contributions("hit").sum() + match.rest("hit") == pytest.approx(1, abs=1e-4)


def test_a_gallery_of_another_network_is_refused(indexed):
    gallery, _, _ = indexed
    torch.manual_seed(1)
    other = EmbeddingNet("tiny", 8, image_size=32).eval()
    with pytest.raises(DatabaseError, match="another network"):
        Gallery.open(gallery.path, other)


@pytest.mark.parametrize("content", [b"", b"not HDF5" * 100])
def test_what_is_no_index_is_refused(tmp_path, content):
    path = tmp_path / "other.h5"
    with pytest.raises(DatabaseError, match="no gallery index"):
        Gallery.open(path)
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match="not a readable gallery index: it is not an HDF5 file"):
        Gallery.open(path)


def test_a_network_of_python_has_to_be_given(indexed):
    gallery, _, _ = indexed
    with Gallery.open(gallery.path) as alone, pytest.raises(NetworkError, match="does not record .*pass it in Python"):
        alone.search([Image.new("RGB", (8, 8))])


def test_the_network_is_found_from_the_record(net, folder, tmp_path):
    net.save(tmp_path / "net.safetensors")
    samples = load(f"folder:{folder}")
    index(load_network(tmp_path / "net.safetensors"), samples, tmp_path / "gallery.h5")
    with embedcam.Gallery.open(tmp_path / "gallery.h5") as gallery:
        assert gallery.search([samples.image(4)], top=1)[0][0].hit.id == samples.ids[4]


@pytest.fixture(scope="module")
def small(net, folder, tmp_path_factory):
    """The bytes of an index of six images, and what is stored of them."""
    path = tmp_path_factory.mktemp("small") / "gallery.h5"
    index(net, load(f"folder:{folder}").subset(range(6)), path)
    return path.read_bytes(), contents(path)


def contents(path):
    with Gallery.open(path) as gallery:
        return [(item.id, item.path, item.label, item.embedding, item.cells) for item in gallery.items(range(6))]


def assert_refused_or_same(path, expected):
    try:
        found = contents(path)
    except DatabaseError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return 1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[:3] == theirs[:3]
        np.testing.assert_array_equal(ours[3], theirs[3])
        np.testing.assert_array_equal(ours[4], theirs[4])
    return 0


def test_every_flipped_bit_is_noticed_or_harmless(small, tmp_path):
    """Flip one bit at 100 places of the file and at 500 in or near its headers: an error in one line, or what was written."""
    (good, expected), rng, path = small, np.random.default_rng(0), tmp_path / "gallery.h5"
    headers = [place for place in range(len(good)) if any(good[max(place - 8, 0) : place + 8])]
    noticed = 0
    for place in [*rng.integers(len(good), size=100), *rng.choice(headers, 500)]:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        noticed += assert_refused_or_same(path, expected)
    assert noticed > 100


def test_a_truncated_index_is_refused(small, tmp_path):
    (good, expected), path = small, tmp_path / "gallery.h5"
    for end in np.linspace(0, len(good) - 1, 60).astype(int):
        path.write_bytes(good[:end])
        assert assert_refused_or_same(path, expected) == 1


def put(name, value):
    def change(file):
        file[name][...] = value

    return change


def replace(name, value, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, data=value, **options)

    return change


CHUNKED = {"chunks": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.modify("encoding-version", "2.0.0"), "reads 1.0.0, found 2.0.0; update embedcam"),
        (
            lambda f: f["network"].attrs.modify("dim", 9),
            r"/embeddings: expected float32 \(6, 9\), found float32 \(6, 8",
        ),
        (lambda f: f["network"].attrs.modify("input_size", [10**5, 10**5]), "/network: .* more than 16,777,216 pixels"),
        (lambda f: f["geometry"].attrs.modify("cell_stride", [0.0, 1.0]), "/geometry cell_stride: expected positive"),
        (lambda f: f.attrs.modify("metric", "manhattan"), "metric: expected cosine or euclidean"),
        (lambda f: f.__delitem__("scales"), "/scales: expected a dataset, found nothing"),
        (replace("scales", np.ones(6, "f8"), **CHUNKED), "/scales: expected float32 .* found float64"),
        (replace("labels", np.zeros(7, "i8"), **CHUNKED), r"/labels: expected int64 \(6,\), found int64 \(7,\)"),
        (replace("labels", np.zeros(6, "i8")), "/labels: expected chunks of numbers"),
        (replace("cells", np.zeros((6, 8), "i1"), **CHUNKED), "/cells: it is damaged"),
        (replace("scales", np.zeros(10**8, "f4"), chunks=(10**7,), compression="gzip"), "/scales: its shape"),
        (put("scales", np.nan), "/scales: expected finite numbers"),
        (put("labels", 99), r"/labels: expected indices in -1\.\.2"),
        (put("ids/ends", 3 - np.arange(6)), "/ids: expected rising ends"),
        (put("ids/ends", 10**9), "/ids: expected rising ends"),
        (put("ids/bytes", 255), "/ids: it is damaged .*utf-8"),
        (lambda f: [f.__delitem__("cells"), f.__setitem__("cells", h5py.ExternalLink("o.h5", "/x"))], "found a link"),
    ],
)
def test_wrong_content_is_refused_by_name(small, tmp_path, change, message):
    path = tmp_path / "gallery.h5"
    path.write_bytes(small[0])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DatabaseError, match=message) as caught:
        contents(path)
    assert str(path) in str(caught.value)


def test_an_index_is_read_without_h5py(indexed):
    code = f"import sys; sys.modules['h5py'] = None; import embedcam; embedcam.Gallery.open({str(indexed[0].path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


SMALL_SHARDS = """
from embedcam.utils import shards
shards.SHARD = 5
"""


def test_two_processes_write_the_index_of_one_to_the_bit(net, folder, tmp_path, processes):
    net.save(tmp_path / "net.safetensors")
    out, written = tmp_path / "gallery.h5", []
    command = ("index", "--net", tmp_path / "net.safetensors", "--data", f"folder:{folder}", "--out", out)
    for count in (1, 2):
        done = processes(count, *command, before=SMALL_SHARDS)
        assert [each.returncode for each in done] == [0] * count, done
        assert [each.stdout.count("wrote") for each in done] == [1] + [0] * (count - 1)
        written.append(out.read_bytes())
    assert written[0] == written[1]
