"""Every engine, with collections made here, finds what an exact search of the index finds."""

import json

import faiss
import numpy as np
import pytest

from embedcam.errors import DataError, MissingDependencyError
from embedcam.gallery import FaissSearcher, LanceSearcher, QdrantSearcher, open_searcher
from embedcam.gallery.searching import find

TOP = 5


def stored(gallery):
    """The embeddings (N, D) and ids of an index."""
    items = gallery.items(range(len(gallery)))
    return np.stack([item.embedding for item in items]), [item.id for item in items]


def pictures(samples):
    return [samples.image(number) for number in (0, 7, 11)]


def assert_same_matches(gallery, samples, searcher):
    """The hits and their explanations are those of an exact search of the index."""
    expected = gallery.search(pictures(samples), TOP)
    found = gallery.search(pictures(samples), TOP, searcher=searcher)
    assert found.missing == [{}] * 3
    for ours, theirs in zip(found, expected, strict=True):
        assert [match.hit.id for match in ours] == [match.hit.id for match in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.contributions("hit"), other.contributions("hit"))
            cosine = gallery.record.network.metric == "cosine"
            assert one.score == pytest.approx(1 - one.distance if cosine else -one.distance, abs=1e-3)
            assert other.score is None


# --- FAISS -----------------------------------------------------------------------------------------------------------


def write_faiss(path, embeddings, measure, factory="Flat", numbers=None):
    made = faiss.index_factory(embeddings.shape[1], factory, measure)
    made.train(embeddings)
    if numbers is None:
        made.add(embeddings)
    else:
        made.add_with_ids(embeddings, numbers)
    faiss.write_index(made, str(path))
    return path


@pytest.fixture
def measures(indexed):
    """Those by which FAISS orders as the network does."""
    cosine = indexed[0].record.network.metric == "cosine"
    return [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT] if cosine else [faiss.METRIC_L2]


@pytest.mark.parametrize("factory", ["Flat", "IVF1,Flat", "HNSW16,Flat"])
def test_an_index_of_faiss_finds_rows_of_the_gallery(indexed, measures, tmp_path, factory):
    gallery, samples, net = indexed
    for measure in measures:
        path = write_faiss(tmp_path / "own.index", stored(gallery)[0], measure, factory)
        assert_same_matches(gallery, samples, open_searcher(f"faiss:{path}", net.metric))


@pytest.mark.parametrize("suffix", ["txt", "csv", "npy"])
def test_ids_of_an_index_of_faiss_are_read_from_a_file(indexed, tmp_path, suffix):
    gallery, samples, net = indexed
    embeddings, ids = stored(gallery)
    order = np.random.default_rng(0).permutation(len(ids))
    path = write_faiss(tmp_path / "a,b.index", embeddings[order], faiss.METRIC_L2)
    names, file = [ids[row] for row in order], tmp_path / f"ids.{suffix}"
    if suffix == "npy":
        np.save(file, names)
    else:
        lines = ["label,path", *(f"x,{name}" for name in names)] if suffix == "csv" else names
        file.write_text("\n".join(lines) + "\n")
    assert_same_matches(gallery, samples, open_searcher(f"faiss:{path},ids={file}", net.metric))
    numbers = order.astype(np.int64)
    write_faiss(path, embeddings[order], faiss.METRIC_L2, "IDMap,Flat", numbers)
    assert_same_matches(gallery, samples, FaissSearcher(path, metric=net.metric))


def test_fewer_hits_are_found_than_asked_for(indexed, tmp_path):
    gallery, _, net = indexed
    embeddings, _ = stored(gallery)
    path = write_faiss(tmp_path / "own.index", embeddings[:3], faiss.METRIC_L2)
    hits = find(FaissSearcher(path, metric=net.metric), embeddings[:2], TOP)
    assert [len(own) for own in hits] == [3, 3]
    assert hits[1][0].id == 1


def test_a_search_that_finds_nothing_is_a_warning(indexed, tmp_path, caplog):
    gallery, samples, net = indexed
    path = write_faiss(tmp_path / "own.index", stored(gallery)[0][:0], faiss.METRIC_L2)
    assert gallery.search([samples.image(0)], searcher=FaissSearcher(path, metric=net.metric), ids=["q.png"])[0] == []
    assert caplog.messages == ["the search engine found nothing for q.png; check that it has images"]


def test_damaged_indexes_of_faiss_are_one_clear_error_or_harmless(tmp_path):
    """Truncate an index, and flip bits of its header: FAISS has no checksums, so some are not noticed."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((50, 8), dtype=np.float32)
    noticed = 0
    for factory in ("Flat", "IVF2,Flat", "HNSW4,Flat"):
        good = write_faiss(tmp_path / "good.index", embeddings, faiss.METRIC_L2, factory).read_bytes()
        path = tmp_path / "bad.index"
        for end in rng.integers(len(good), size=10).tolist():
            path.write_bytes(good[:end])
            with pytest.raises(DataError, match=r"FAISS index .*bad\.index cannot be searched"):
                FaissSearcher(path)
        for place in rng.integers(60, size=20).tolist():
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            try:
                FaissSearcher(path).search(embeddings[:1], 3)
            except DataError as error:
                noticed += 1
                assert "\n" not in str(error)
    assert noticed > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: folder / "none.index", "no FAISS index .*none.index"),
        (lambda folder: f"{folder / 'own.index'},ids={folder / 'two.txt'}", r"number \d+, .*two.txt has 2 ids"),
        (lambda folder: f"{folder / 'own.index'},ids={folder / 'no.csv'}", "no column 'id' or 'path'"),
        (lambda folder: f"{folder / 'own.index'},ids={folder / 'objects.npy'}", "cannot read ids from .*objects.npy"),
        (lambda folder: f"{folder / 'own.index'},ids={folder / 'empty.npy'}", "cannot read ids from .*empty.npy"),
        (lambda folder: f"{folder / 'own.index'},ids={folder / 'zip.npy'}", "cannot read ids from .*zip.npy"),
        (
            lambda folder: f"{folder / 'own.index'},ids={folder / 'floats.npy'}",
            "of float64, expected texts or integers",
        ),
        (lambda folder: f"{folder / 'own.index'},names=x", "unknown option 'names=x' of faiss; write 'faiss:FILE"),
        (lambda folder: folder / "narrow.index", "embeddings have 8 dimensions, FAISS index .* unnamed of 7"),
        (lambda folder: folder / "l1.index", "compares by FAISS's metric 2, the network by cosine"),
    ],
)
def test_what_faiss_cannot_search_is_named(tmp_path, change, message):
    embeddings = np.random.default_rng(0).standard_normal((9, 8), dtype=np.float32)
    write_faiss(tmp_path / "own.index", embeddings, faiss.METRIC_INNER_PRODUCT)
    write_faiss(tmp_path / "narrow.index", embeddings[:, :7].copy(), faiss.METRIC_INNER_PRODUCT)
    write_faiss(tmp_path / "l1.index", embeddings, faiss.METRIC_L1)
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "no.csv").write_text("name\nb\n")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "floats.npy", np.zeros(9))
    (tmp_path / "empty.npy").touch()
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=message):
        find(open_searcher(f"faiss:{change(tmp_path)}", "cosine"), embeddings, TOP)


def test_inner_products_do_not_order_by_euclidean_distance(tmp_path):
    embeddings = np.ones((9, 8), np.float32)
    path = write_faiss(tmp_path / "own.index", embeddings, faiss.METRIC_INNER_PRODUCT)
    with pytest.raises(DataError, match="compares by inner product, the network by euclidean"):
        FaissSearcher(path, metric="euclidean")


# --- Qdrant ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def qdrant():
    return pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")


def fill_qdrant(qdrant, client, embeddings, distance, payloads=None, collection="birds", vector=""):
    models = qdrant.models
    params = models.VectorParams(size=embeddings.shape[1], distance=distance)
    client.create_collection(collection, {vector: params} if vector else params)
    points = [
        models.PointStruct(
            id=row,
            vector={vector: embedding.tolist()} if vector else embedding.tolist(),
            payload=None if payloads is None else payloads[row],
        )
        for row, embedding in enumerate(embeddings)
    ]
    client.upsert(collection, points)
    return client


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
def test_a_collection_of_qdrant_finds_rows_of_the_gallery(indexed, qdrant, distance):
    gallery, samples, net = indexed
    client = fill_qdrant(qdrant, qdrant.QdrantClient(":memory:"), stored(gallery)[0], distance)
    searcher = QdrantSearcher(client, "birds", metric=net.metric)
    if net.metric == "cosine" or distance == "Euclid":
        assert_same_matches(gallery, samples, searcher)
    else:
        with pytest.raises(DataError, match="compares by inner product, the network by euclidean"):
            gallery.search(pictures(samples), TOP, searcher=searcher)


def test_ids_are_read_from_the_payload_of_a_local_folder(indexed, qdrant, tmp_path):
    gallery, samples, net = indexed
    embeddings, ids = stored(gallery)
    client = qdrant.QdrantClient(path=str(tmp_path / "engine"))
    payloads = [{"file": name, "n": 1} for name in ids]
    fill_qdrant(qdrant, client, embeddings, "Euclid", payloads, vector="image")
    client.create_collection("empty", qdrant.models.VectorParams(size=3, distance="Dot"))
    client.close()
    place = f"qdrant:{tmp_path}/engine"
    with pytest.raises(DataError, match="no collection 'bird'; it has birds, empty"):
        open_searcher(f"{place}/bird", net.metric)
    assert_same_matches(gallery, samples, searcher := open_searcher(f"{place}/birds,id=file,vector=image", net.metric))
    with pytest.raises(DataError, match=r"Qdrant at .* cannot be searched: .*already accessed"):
        open_searcher(f"{place}/birds", net.metric)
    del searcher
    searcher = open_searcher(f"{place}/birds,id=name", net.metric)
    with pytest.raises(DataError, match="'birds' has no field 'name'; it has file, n: name one of them with id="):
        gallery.search(pictures(samples), TOP, searcher=searcher)


def test_vectors_of_a_collection_are_chosen_by_dimensions_and_name(indexed, qdrant):
    gallery, samples, net = indexed
    embeddings, _ = stored(gallery)
    models, client = qdrant.models, qdrant.QdrantClient(":memory:")
    sizes = {"image": 8, "text": 8, "small": 3}
    params = {name: models.VectorParams(size=size, distance="Euclid") for name, size in sizes.items()}
    client.create_collection("birds", params)
    points = [
        models.PointStruct(id=row, vector={"image": one.tolist(), "text": one[::-1].tolist(), "small": [1, 2, 3]})
        for row, one in enumerate(embeddings)
    ]
    client.upsert("birds", points)
    for wanted, message in (
        (None, "more than one vector of 8 dimensions; name one of image, text"),
        ("small", "embeddings have 8 dimensions, .* image of 8 dimensions, text of 8 dimensions, small of 3"),
        ("other", "no vector 'other'; it has image of 8"),
    ):
        with pytest.raises(DataError, match=message):
            find(QdrantSearcher(client, "birds", vector=wanted, metric=net.metric), embeddings, TOP)
    assert_same_matches(gallery, samples, QdrantSearcher(client, "birds", vector="image", metric=net.metric))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("qdrant:birds", "'qdrant:birds' is incomplete; write 'qdrant:URL/COLLECTION"),
        ("qdrant:nowhere/birds", "nowhere is no folder of Qdrant"),
        ("qdrant:http://127.0.0.1:1/birds", r"Qdrant cannot be searched: .*refused; check the address"),
        ("qdrantt:x/birds", "unknown search engine 'qdrantt'; did you mean 'qdrant'"),
        ("qdrant", "'qdrant' is incomplete"),
    ],
)
@pytest.mark.usefixtures("qdrant")
def test_what_qdrant_cannot_search_is_named(spec, message):
    with pytest.raises(DataError, match=message):
        open_searcher(spec, "cosine")


def test_the_engine_of_qdrant_in_the_process_is_a_searcher_in_a_few_lines(indexed, tmp_path):
    edge = pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")
    gallery, samples, net = indexed
    distance = edge.Distance.Cosine if net.metric == "cosine" else edge.Distance.Euclid
    shard = edge.EdgeShard.create(str(tmp_path / "edge"), edge.EdgeConfig(edge.EdgeVectorParams(8, distance)))
    points = [edge.Point(row, one.tolist()) for row, one in enumerate(stored(gallery)[0])]
    shard.update(edge.UpdateOperation.upsert_points(points))

    class Edge:
        def search(self, embeddings, top):
            requests = [edge.QueryRequest(top, query=edge.Query.Nearest(each.tolist())) for each in embeddings]
            found = [shard.query(request) for request in requests]
            sign = 1 if net.metric == "cosine" else -1
            return [[p.id for p in own] for own in found], [[sign * p.score for p in own] for own in found]

    assert_same_matches(gallery, samples, Edge())


# --- LanceDB ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def lancedb():
    return pytest.importorskip("lancedb", reason="lancedb is not installed")


def test_a_table_of_lancedb_finds_images_by_their_ids(indexed, lancedb, tmp_path):
    gallery, samples, net = indexed
    embeddings, ids = stored(gallery)
    rows = [{"file": name, "vector": one} for name, one in zip(ids, embeddings, strict=True)]
    table = lancedb.connect(tmp_path).create_table("birds", rows)
    assert_same_matches(gallery, samples, LanceSearcher(table, "file", metric=net.metric))
    assert_same_matches(gallery, samples, open_searcher(f"lancedb:{tmp_path}/birds,id=file", net.metric))


def test_integers_of_a_table_of_lancedb_are_rows_of_the_gallery(indexed, lancedb, tmp_path):
    gallery, samples, net = indexed
    rows = [{"id": row, "vector": one} for row, one in enumerate(stored(gallery)[0])]
    table = lancedb.connect(tmp_path).create_table("birds", rows)
    assert_same_matches(gallery, samples, LanceSearcher(table, metric=net.metric))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lancedb:birds", "'lancedb:birds' is incomplete; write 'lancedb:URI/TABLE"),
        ("lancedb:HERE/none/birds", "none is no folder of LanceDB"),
        ("lancedb:HERE/bird", "no table 'bird'; it has birds"),
        ("lancedb:HERE/birds", "LanceDB's table 'birds' has no column 'id'; it has file, vector"),
        ("lancedb:HERE/birds,id=file,vector=file", "no column of vectors 'file'; it has vector of 7 dimensions"),
        ("lancedb:HERE/birds,id=file", "embeddings have 8 dimensions, LanceDB's table 'birds' has vector of 7"),
        ("lancedb:nothing://bucket/birds", "LanceDB at nothing://bucket cannot be searched: .*; check the address"),
    ],
)
def test_what_lancedb_cannot_search_is_named(lancedb, tmp_path, spec, message):
    rows = [{"file": "a", "vector": np.ones(7, np.float32)}]
    lancedb.connect(tmp_path).create_table("birds", rows)
    with pytest.raises(DataError, match=message) as caught:
        find(open_searcher(spec.replace("HERE", str(tmp_path)), "cosine"), np.ones((1, 8), np.float32), TOP)
    assert "\n" not in str(caught.value)


# --- others ----------------------------------------------------------------------------------------------------------


class Answers:
    """A searcher of one's own that answers always the same."""

    def __init__(self, ids, scores):
        self.answer = ids, scores

    def search(self, embeddings, top):
        return self.answer


def test_arrays_of_a_searcher_of_ones_own_are_taken(indexed):
    gallery, samples, _ = indexed
    searcher = Answers(np.array([[2, 4]]), np.array([[0.5, 0.25]], np.float32))
    (hits,) = gallery.search(pictures(samples)[:1], searcher=searcher).hits
    assert [(match.hit.id, match.score) for match in hits] == [(samples.ids[2], 0.5), (samples.ids[4], 0.25)]
    searcher = Answers(np.array([samples.ids[3:5]]), [[0.5, 0.25]])
    (hits,) = gallery.search(pictures(samples)[:1], searcher=searcher).hits
    assert json.dumps(hits[0].to_dict())


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        ([[1, 2]], [[1.0]], "1 rows of ids and 1 of scores for 1 queries"),
        ([[1], [1]], [[1.0], [1.0]], "2 rows of ids and 2 of scores for 1 queries"),
        ([[1.5]], [[1.0]], "returned the id 1.5; ids are texts, or integers"),
        ([[None]], [[1.0]], "returned the id None"),
    ],
)
def test_answers_that_break_the_protocol_are_named(indexed, ids, scores, message):
    gallery, samples, _ = indexed
    with pytest.raises(DataError, match=message):
        gallery.search(pictures(samples)[:1], searcher=Answers(ids, scores))


def test_an_engine_with_other_embeddings_is_named(indexed, caplog, tmp_path):
    gallery, samples, net = indexed
    embeddings, _ = stored(gallery)
    path = write_faiss(tmp_path / "own.index", -embeddings, faiss.METRIC_L2)
    gallery.search(pictures(samples), TOP, searcher=FaissSearcher(path, metric=net.metric))
    assert "scores differ from the similarities" in caplog.text


@pytest.mark.parametrize(("spec", "extra"), [("qdrant:http://x/y", "qdrant"), ("lancedb:s3://x/y", "lancedb")])
def test_a_library_that_is_not_installed_names_its_extra(monkeypatch, spec, extra):
    monkeypatch.setitem(__import__("sys").modules, {"qdrant": "qdrant_client"}.get(extra, extra), None)
    with pytest.raises(MissingDependencyError, match=rf'pip install "embedcam\[{extra}\]"'):
        open_searcher(spec, "cosine")
