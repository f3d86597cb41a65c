"""What a search over HTTP answers, against the gallery itself."""

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from embedcam.app import create_app
from embedcam.app.limits import Limits
from embedcam.data import load
from embedcam.errors import EmbedcamError
from embedcam.gallery import Gallery, index
from embedcam.gallery.matches import versus


@pytest.fixture
def searching(gallery):
    with TestClient(create_app(gallery=gallery)) as client:
        yield client


@pytest.fixture
def match(file):
    def send(client, content=file, name="a.png", **query):
        answer = client.post("match", files={"image": (name, content)}, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return send


def jpeg(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_hits_are_those_of_the_gallery_and_explained_as_it_does(searching, match, gallery, picture):
    found = match(searching, top=5, versus=True)
    expected = gallery.search([picture()], top=5)[0]
    assert (found["image"], found["width"], found["height"], found["metric"]) == ("a.png", 48, 36, "cosine")
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3, 4, 5]
    for hit, direct in zip(found["hits"], expected, strict=True):
        fields = direct.to_dict()
        assert hit["hit"] == direct.hit.id
        assert hit["label"] == fields["label"]
        assert [hit["similarity"], hit["distance"]] == pytest.approx([fields["similarity"], fields["distance"]])
        assert len(hit["correspondences"]) == len(fields["correspondences"])
        for side in ("query", "hit"):
            np.testing.assert_allclose(hit["contributions"][side], fields["contributions"][side], atol=1e-6)
            added = np.sum(hit["contributions"][side]) + hit["rest"][side]
            assert added == pytest.approx(hit["similarity"], abs=1e-6)
        signed, rest = versus(expected[0], direct)
        np.testing.assert_allclose(hit["first_rather_than_this"]["contributions"], signed, atol=1e-7)
        assert hit["first_rather_than_this"]["rest"] == pytest.approx(rest, abs=1e-7)
        assert hit["cells"] is None


def test_no_path_of_the_server_is_told(searching, match, folder):
    assert str(folder) not in str(match(searching, include=["cells", "picture"]))


def test_bytes_of_cells_have_the_cosines_of_their_embeddings(searching, match, gallery, picture):
    found = match(searching, include="cells", top=3)
    expected = gallery.search([picture()], top=3)[0]
    for hit, direct in zip(found["hits"], expected, strict=True):
        sent = [decoded(side["cells"], gallery.record.network.dim) for side in (found, hit)]
        stored = [
            (item.cells - direct.common).reshape(len(cells), -1)
            for item, cells in zip((direct.query, direct.hit), sent, strict=True)
        ]
        np.testing.assert_allclose(cosines(*sent), cosines(*stored), atol=0.01)
        assert np.abs(np.concatenate(sent)).max(axis=1).tolist() == [127] * sum(map(len, sent))


def decoded(text, dim):
    return np.frombuffer(base64.b64decode(text), np.int8).reshape(-1, dim).astype(float)


def cosines(ours, theirs):
    ours, theirs = (cells / np.linalg.norm(cells, axis=1, keepdims=True) for cells in (ours, theirs))
    return ours @ theirs.T


def test_cells_lie_where_the_geometry_says(searching, match, gallery):
    found, geometry = match(searching), gallery.record.geometry
    height, width = gallery.record.cells
    centres = np.arange(height) * geometry.cell_stride[0] + geometry.first_cell_center[0]
    assert found["rows"] == pytest.approx((centres / 32).clip(0, 1))
    assert (len(found["rows"]), len(found["columns"])) == (height, width)


def test_images_of_the_index_can_be_asked_for_by_id(searching, match, gallery, picture):
    names = [gallery.items([row])[0].id for row in (7, 2)]
    found = match(searching, hit=names)
    (query,) = gallery.see([picture()])
    assert [hit["hit"] for hit in found["hits"]] == names
    assert [hit["similarity"] for hit in found["hits"]] == pytest.approx(
        [gallery.explain_match(query, name).similarity for name in names]
    )


def test_the_pictures_of_hits_are_served_by_number(searching, match, gallery, folder, encoded):
    hit = match(searching, top=1)["hits"][0]
    answer = searching.get(hit["picture"])
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content == encoded(Image.open(folder / "images" / hit["hit"]), "JPEG")
    for number in (-1, len(gallery), 10**30):
        refused = searching.get(f"gallery/{number}")
        assert (refused.status_code, "use those of the hits" in refused.json()["error"]) == (404, True)
    for path in ("gallery/..%2fsecret.png", "gallery/%2fetc%2fpasswd", "gallery/class0%2f00.png"):
        assert searching.get(path).status_code in (404, 422)


def test_a_missing_or_broken_picture_is_missing_and_the_match_explained(searching_copy, match):
    client, folder = searching_copy
    before = match(client, top=4)
    removed, broken = (folder / "images" / hit["hit"] for hit in before["hits"][:2])
    removed.unlink()
    broken.write_bytes(b"hello, I am text")
    after = match(client, top=4)
    assert [hit["picture"] is None for hit in after["hits"]] == [True, False, False, False]
    assert [hit["contributions"] for hit in after["hits"]] == [hit["contributions"] for hit in before["hits"]]
    for hit in before["hits"][:2]:
        answer = client.get(hit["picture"])
        assert answer.status_code == 404
        assert answer.json()["error"].startswith(f"no picture of {hit['hit']}: ")
        assert str(folder) not in answer.json()["error"]


@pytest.fixture
def searching_copy(explainer, folder, tmp_path):
    """A server whose pictures a test may damage."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    index(explainer.net, load(f"folder:{copy}"), tmp_path / "gallery.h5")
    with (
        Gallery.open(tmp_path / "gallery.h5", explainer.net) as gallery,
        TestClient(create_app(gallery=gallery)) as client,
    ):
        yield client, copy


def test_what_a_centre_crop_leaves_out_is_not_shown(cropping, match, encoded, picture):
    wide = picture(300, 100)
    found = match(cropping, content=encoded(wide), include="picture", top=1)
    left, top, right, bottom = found["seen"]
    assert (top, bottom) == (
        12,
        88,
    )  # 100 / 42 pixels of the picture for one of the resized picture, of which 32 are seen
    assert (right - left, left + right) == (bottom - top, 300)
    assert jpeg(base64.b64decode(found["picture"])).shape == (76, 76, 3)
    shown = jpeg(cropping.get(found["hits"][0]["picture"]).content)
    assert shown.shape == (30, 30, 3)  # of 40 x 40


@pytest.fixture
def cropping(folder, tmp_path):
    """A server of a network that sees the centre of a picture."""
    from dataclasses import replace

    import torch

    from embedcam.nets import EmbeddingNet

    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32).eval()
    net.preprocess = replace(net.preprocess, crop_pct=32 / 42)
    index(net, load(f"folder:{folder}"), tmp_path / "gallery.h5")
    with Gallery.open(tmp_path / "gallery.h5", net) as gallery, TestClient(create_app(gallery=gallery)) as client:
        yield client


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"top": 0}, ["top", "greater than or equal to 1", "got '0'"]),
        ({"top": 101}, ["top", "less than or equal to 100"]),
        ({"hit": "class0/none.png"}, ["has no image 'class0/none.png'"]),
        ({"include": "all"}, ["include", "'cells'"]),
        ({"topp": 5}, ["topp", "not permitted"]),
    ],
)
def test_a_wrong_parameter_is_named(searching, query, words, file):
    answer = searching.post("match", files={"image": ("a.png", file)}, params=query)
    assert answer.status_code == 422
    assert all(word in answer.json()["error"] for word in words), answer.json()


def test_what_is_no_picture_is_refused_as_elsewhere(gallery, file, encoded, picture):
    with TestClient(create_app(gallery=gallery, limits=Limits(upload=20_000, pixels=5000, rate=6))) as client:
        for content, status, words in (
            (b"hello, I am text", 415, "a.png is not an image in a supported format"),
            (file[:-40], 415, "cannot read"),
            (bytes(30_000), 413, "at most 0.02 MB"),
            (encoded(picture(1, 1).resize((100, 51))), 413, "more than 5,000"),
        ):
            answer = client.post("match", files={"image": ("a.png", content)})
            assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.json()
        assert client.post("match", files={"photo": ("a.png", file)}).status_code == 422
        assert client.post("match", content=file).json()["image"] == "picture"
        assert client.post("match", content=file).status_code == 429


def test_the_guard_protects_it(gallery, file):
    with TestClient(create_app(gallery=gallery, token="geheim")) as client:
        assert client.post("match", content=file).status_code == 401
        assert client.get("gallery/0").status_code == 401
        client.headers["Authorization"] = "Bearer geheim"
        assert client.post("match", content=file).status_code == 200
        assert client.get("gallery/0").status_code == 200


def test_a_server_has_the_routes_of_what_it_was_given(searching, explainer, gallery):
    assert routes(searching) == ["/gallery/{row}", "/info", "/match"]
    info = searching.get("info").json()
    assert (info["explain"], info["compare"], info["channels"], info["thumbnails"]) == (False,) * 4
    assert info["gallery"] == info["facts"] == dict(gallery.facts())
    assert info["about"] == f"tiny, {len(gallery)} images to search"
    with TestClient(create_app(explainer, gallery=gallery)) as client:
        assert len(routes(client)) == 7
        info = client.get("info").json()
        assert (info["explain"], info["gallery"], info["facts"]) == (
            True,
            dict(gallery.facts()),
            dict(explainer.database.facts()),
        )
    with pytest.raises(EmbedcamError, match="nothing to serve"):
        create_app()


def test_training_images_that_the_index_has_are_marked(explainer, gallery, file, tmp_path, folder):
    with TestClient(create_app(explainer, gallery=gallery)) as client:
        training = client.post("explain", content=file).json()["looks_like"]
        assert [image["indexed"] for image in training] == [True] * len(training) != []
        hits = client.post("match", content=file, params={"hit": [image["image"] for image in training]}).json()["hits"]
        assert [hit["distance"] for hit in hits] == pytest.approx([image["distance"] for image in training], abs=1e-4)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in copy.glob("images/*/*.png"):  # the same names, and other images
        Image.open(path).rotate(180).save(path)
    index(explainer.net, load(f"folder:{copy}"), tmp_path / "gallery.h5")
    with (
        Gallery.open(tmp_path / "gallery.h5", explainer.net) as other,
        TestClient(create_app(explainer, gallery=other)) as client,
    ):
        assert not any(image["indexed"] for image in client.post("explain", content=file).json()["looks_like"])


def routes(client):
    document = client.get("openapi.json").json()
    assert {"413", "415", "422", "429", "503"} <= document["paths"].get("/match", document["paths"]["/match"])["post"][
        "responses"
    ].keys()
    return sorted(document["paths"])
