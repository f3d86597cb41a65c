"""Embeddings that exist already: every form is read, and every way in which they are wrong is named."""

import json
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch

import embedcam
from embedcam.builder.given import check_embeddings, load_embeddings
from embedcam.data import load
from embedcam.errors import DataError
from embedcam.nets.inference import Embedded, embed


@pytest.fixture
def samples(folder):
    return load(f"folder:{folder}", "all")


@pytest.fixture
def own(net, samples):
    return embed(net, samples, pooled=False).embeddings


def test_given_embeddings_build_the_same_database(net, samples, own):
    options = {"clusters": 3, "top_k": 5, "pairs": 3}
    given, computed = (embedcam.build_database(net, samples, embedded=e, **options) for e in (own, None))
    np.testing.assert_array_equal(given.exemplars.embeddings, computed.exemplars.embeddings)
    np.testing.assert_allclose(given.weights_mean, computed.weights_mean, atol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        lambda own: own,
        lambda own: own.astype(np.float64),
        lambda own: own.astype(np.float16),
        torch.from_numpy,
        lambda own: Embedded(np.arange(len(own)), own.astype(np.float64), None),
    ],
    ids=["float32", "float64", "float16", "tensor", "Embedded"],
)
def test_embeddings_of_every_number_type_are_taken(net, samples, own, form):
    checked = check_embeddings(net, samples, form(own))
    np.testing.assert_allclose(checked.embeddings, own, atol=1e-3)
    assert checked.embeddings.dtype == np.float32


def of_other_preprocessing(net, samples, own):
    return embed_with(net, samples, replace(net.preprocess, mean=(0.4, 0.4, 0.4), interpolation="nearest"))


def embed_with(net, samples, preprocess):
    images = np.stack([preprocess(samples.image(index)) for index in range(len(samples))])
    with torch.no_grad():
        return net(torch.from_numpy(images)).numpy()


def changed(net, samples, own):
    own = own.copy()
    own[3] = np.roll(own[3], 1)
    return own


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda net, samples, own: 7 * own, "their lengths are 7 to 7, those of the network 1 to 1; divide each by"),
        (lambda net, samples, own: own[::-1], "in another order, row 0 is given for class0/00.png, whose embedding is"),
        (lambda net, samples, own: 3 * np.roll(own, 1, 0), "in another order, row 0 is .* is in row 1; sort them"),
        (
            lambda net, samples, own: np.random.default_rng(0).normal(size=own.shape),
            "nothing in common, so they are of",
        ),
        (of_other_preprocessing, r"similar but not equal, as with another preprocessing .* \(32 x 32, bilinear\)"),
        (changed, "1 of 30 compared images have another one, such as class0/03.png"),
        (lambda net, samples, own: own[:, :4], "have 4 dimensions, those of the network 8"),
        (lambda net, samples, own: own[:-1], r"shape \(29, 8\) of float32, expected floats \(30, 8\)"),
        (lambda net, samples, own: own > 0, r"shape \(30, 8\) of bool, expected floats"),
        (lambda net, samples, own: np.where(own == own[4], np.nan, own), "embedding of class0/04.png is not finite"),
        (lambda net, samples, own: Embedded(np.arange(30)[::-1], own, None), "index of each row's image, rising"),
    ],
)
def test_every_way_in_which_embeddings_are_wrong_is_named(net, samples, own, wrong, message):
    with pytest.raises(DataError, match=message):
        embedcam.build_database(net, samples, clusters=3, top_k=5, embedded=wrong(net, samples, own))


def test_a_euclidean_network_refuses_normalised_embeddings(net, samples):
    net.metric = "euclidean"
    own = embed(net, samples, pooled=False).embeddings
    check_embeddings(net, samples, own)
    with pytest.raises(DataError, match="their lengths are 1 to 1, .* give them as the network returns them"):
        check_embeddings(net, samples, own / np.linalg.norm(own, axis=1, keepdims=True))


def as_text(paths, ids, folder):
    (folder / "paths.txt").write_text("\n".join(paths) + "\n")
    return folder / "paths.txt"


def as_csv(paths, ids, folder):
    lines = [f'{number},cat,"{path}"' for number, path in zip(ids, paths, strict=True)]
    (folder / "paths.csv").write_text("\n".join(["id,label,path", *lines]))
    return folder / "paths.csv"


def as_dictionary(paths, ids, folder):
    (folder / "paths.json").write_text(json.dumps(dict(zip(map(str, ids), paths, strict=True))))
    return folder / "paths.json"


def as_list(paths, ids, folder):
    (folder / "paths.json").write_text(json.dumps(paths))
    return folder / "paths.json"


@pytest.mark.parametrize("write", [as_text, as_csv, as_dictionary, as_list])
@pytest.mark.parametrize("prefix", ["", "/data/birds/images/", "images\\"])
def test_rows_find_their_images_by_path_in_any_order(samples, own, tmp_path, write, prefix):
    order = np.random.default_rng(0).permutation(len(own))
    np.save(tmp_path / "own.npy", own[order])
    paths = write([prefix + samples.ids[row] for row in order], range(len(own)), tmp_path)
    read = load_embeddings(tmp_path / "own.npy", paths, samples)
    np.testing.assert_array_equal(read.kept, np.arange(len(own)))
    np.testing.assert_array_equal(read.embeddings, own)


def flat(vectors):
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index, np.arange(len(vectors))


def with_ids(vectors):
    index, ids = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1])), np.arange(len(vectors)) * 7 + 100
    index.add_with_ids(vectors, ids)
    return index, ids


def inverted(vectors):
    index = faiss.index_factory(vectors.shape[1], "IVF3,Flat")
    index.train(vectors)
    ids = np.arange(len(vectors)) * 7 + 100
    index.add_with_ids(vectors, ids)
    return index, ids


def graph(vectors):
    index = faiss.index_factory(vectors.shape[1], "HNSW8,Flat")
    index.add(vectors)
    return index, np.arange(len(vectors))


@pytest.mark.parametrize("make", [flat, with_ids, inverted, graph])
def test_the_vectors_of_an_index_find_their_images_by_id(samples, own, tmp_path, make):
    index, ids = make(own)
    faiss.write_index(index, str(tmp_path / "own.faiss"))
    read = load_embeddings(tmp_path / "own.faiss", as_csv(samples.ids, ids, tmp_path), samples)
    np.testing.assert_array_equal(read.embeddings, own)


def test_images_without_an_embedding_are_left_out_with_a_warning_and_other_rows_are_ignored(
    net, folder, samples, own, tmp_path, caplog
):
    np.save(tmp_path / "own.npy", own)
    paths = as_text([*samples.ids[:25], *(f"other/{k}.png" for k in range(5))], None, tmp_path)
    read = load_embeddings(tmp_path / "own.npy", paths, samples)
    np.testing.assert_array_equal(read.kept, np.arange(25))
    assert "5 of 30 images have no embedding in" in caplog.text
    assert embedcam.build_database(net, samples, clusters=3, top_k=5, embedded=read).counts.sum() == 25


def test_files_that_do_not_fit_are_refused(samples, own, tmp_path):
    np.save(tmp_path / "own.npy", own)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    paths = as_text(samples.ids, None, tmp_path)
    for file, message in (("objects.npy", "Python objects"), ("text.npy", "give a .npy file or a FAISS index")):
        with pytest.raises(DataError, match=message):
            load_embeddings(tmp_path / file, paths, samples)
    with pytest.raises(DataError, match="cannot read .*missing.npy: No such file"):
        load_embeddings(tmp_path / "missing.npy", paths, samples)
    for names, message in (
        (samples.ids[1:], "has 29 paths, .* 30 embeddings"),
        ([samples.ids[0], "", *samples.ids[2:]], "has no path for 1"),
        ([samples.ids[0], samples.ids[0], *samples.ids[2:]], "two embeddings of class0/00.png, in rows 0 and 1"),
        ([f"x/{k}.gif" for k in range(30)], "such as 'x/0.gif', is that of an image, such as 'class0/00.png'"),
    ):
        with pytest.raises(DataError, match=message):
            load_embeddings(tmp_path / "own.npy", as_text(names, None, tmp_path), samples)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.json").write_text("{")
    for name, message in (("bad.csv", "has no column 'path'"), ("bad.json", "is no list of paths")):
        with pytest.raises(DataError, match=message):
            load_embeddings(tmp_path / "own.npy", tmp_path / name, samples)
