"""What the API answers, against the same worked out directly."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from embedcam.app import create_app
from embedcam.explain import Explainer
from embedcam.explain import maps as heatmap
from embedcam.explain.comparison import Against
from embedcam.show import draw_boxes, find_boxes
from embedcam.show.overlay import overlay


@pytest.fixture
def post(file):
    def send(client, path="explain", content=file, name="a.png", **query):
        answer = client.post(path, files={"image": (name, content)}, params=query)
        assert answer.status_code == 200, answer.text
        return answer

    return send


@pytest.fixture(scope="module")
def image(picture):
    return picture()


def unpacked(levels):
    values = np.frombuffer(base64.b64decode(levels["values"]), np.uint8)
    return values.reshape(levels["height"], levels["width"])


def png(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture(scope="module")
def direct(explainer, image):
    return explainer(explainer.preprocess(image)[None])


def test_an_upload_is_explained_as_the_explainer_does(client, direct, explainer, post, image):
    found = post(client).json()
    assert found["image"] == "a.png"
    assert (found["width"], found["height"]) == image.size == (48, 36)
    cluster = int(direct.clusters[0])
    assert found["cluster"] == cluster
    assert found["cluster_labels"] == dict(explainer.labels_of(cluster)) != {}
    for name in ("distance", "typicality", "anomaly"):
        value = float(getattr(direct, {"distance": "distances"}.get(name, name))[0])
        assert found[name] == pytest.approx(value, rel=1e-6)
    assert found["typicality_in_words"] == direct.typicality_in_words(0)
    assert found["notes"] == direct.notes[0]
    assert found["raw_range"] == pytest.approx([direct.raw[0].min(), direct.raw[0].max()])
    assert [found[name] for name in ("overlay", "heatmap", "picture", "levels", "boxes_at")] == [None] * 5


def test_raw_bytes_and_a_form_are_explained_alike(client, post, file):
    by_form = post(client, name="picture").json()
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        assert client.post("explain", content=file, headers={"Content-Type": kind}).json() == by_form


def test_boxes_are_in_pixels_of_the_picture(client, direct, post):
    small = find_boxes(direct.heatmaps[0], 0.4)
    assert len(small) > 0
    wanted = [
        {
            "left": int(np.floor(box.left * 48 / 32)),
            "top": int(np.floor(box.top * 36 / 32)),
            "right": int(np.ceil(box.right * 48 / 32)),
            "bottom": int(np.ceil(box.bottom * 36 / 32)),
            "score": pytest.approx(box.score),
        }
        for box in small
    ]
    assert post(client, threshold=0.4).json()["boxes"] == wanted
    at = post(client, include="levels").json()["boxes_at"]
    assert at["0.4"] == wanted
    assert list(at) == [f"{step / 20:g}" for step in range(1, 20)]
    assert at["0.95"] != at["0.05"]


def test_maps_and_overlay_come_in_the_json_or_as_files(client, direct, post, image, encoded):
    heat, look = direct.heatmaps[0], {"alpha": 0.3, "colormap": "viridis"}
    found = post(client, include=["overlay", "heatmap", "levels", "picture"], **look).json()
    np.testing.assert_array_equal(unpacked(found["levels"]), np.rint(heat * 255))
    np.testing.assert_array_equal(png(found["heatmap"]), np.rint(heat * 65535))
    drawn = overlay(np.asarray(image), heat, alpha=0.3, colormap="viridis")
    np.testing.assert_array_equal(png(found["overlay"]), drawn)
    assert base64.b64decode(found["picture"]) == encoded(image, "JPEG")

    for kind in ("overlay", "heatmap"):
        answer = post(client, format=kind, **look)
        assert answer.headers["content-type"] == "image/png"
        assert answer.content == base64.b64decode(found[kind])
    with np.load(io.BytesIO(post(client, format="npz").content)) as maps:
        np.testing.assert_array_equal(maps["heatmap"], heat)
        np.testing.assert_array_equal(maps["raw"], direct.raw[0])


def test_boxes_are_drawn_where_they_are_wanted(client, post):
    plain = overlay_of(post(client, format="overlay", threshold=0.4))
    boxed = overlay_of(post(client, format="overlay", threshold=0.4, boxes=True))
    found = [dict(box, area=1) for box in post(client, threshold=0.4).json()["boxes"]]
    from embedcam.show import Box

    np.testing.assert_array_equal(boxed, draw_boxes(plain, [Box(**box) for box in found]))
    assert (boxed != plain).any()


def overlay_of(answer):
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_a_large_picture_is_drawn_smaller_but_measured_in_its_own_pixels(client, post, encoded, picture):
    content = encoded(picture(2400, 1200), "JPEG")
    found = post(client, content=content, include="overlay").json()
    assert (found["width"], found["height"]) == (2400, 1200)
    assert png(found["overlay"]).shape == (800, 1600, 3)
    assert max(box["right"] for box in found["boxes"]) > 600


def test_a_turned_picture_is_explained_upright(client, post, encoded, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
    upright = post(client, include="levels").json()
    assert post(client, content=turned, include="levels").json() == upright


def test_it_looks_like_the_nearest_training_images_of_its_cluster(client, direct, explainer, folder, post, encoded):
    found = post(client).json()
    exemplars, cluster = explainer.database.exemplars, int(direct.clusters[0])
    ranked = sorted(
        (1 - float(exemplars.embeddings[i] @ direct.embeddings[0]), i)
        for i in range(len(exemplars))
        if exemplars.cluster[i] == cluster
    )[:8]
    assert [image["image"] for image in found["looks_like"]] == [exemplars.path[i] for _, i in ranked]
    assert [image["distance"] for image in found["looks_like"]] == pytest.approx([d for d, _ in ranked], abs=1e-6)
    for image, (_, i) in zip(found["looks_like"], ranked, strict=True):
        assert image["label"] == explainer.database.label_names[exemplars.label[i]]
        shown = client.get(image["thumbnail"])
        assert shown.headers["content-type"] == "image/jpeg"
        assert shown.content == encoded(Image.open(folder / "images" / image["image"]), "JPEG")


def test_without_the_data_set_training_images_are_named_alone(explainer, post):
    with TestClient(create_app(explainer)) as client:
        looks_like = post(client).json()["looks_like"]
        assert looks_like != []
        assert {image["thumbnail"] for image in looks_like} == {None}
        assert client.get("exemplars/0").status_code == 404
        assert client.get("info").json()["thumbnails"] is False


def test_no_name_becomes_a_path(explainer, folder, post):
    """Neither one of a weight database of a stranger, nor one of an upload, nor an address."""
    secret = folder / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    exemplars = explainer.database.exemplars
    paths = ("../secret.png", str(secret), *exemplars.path[2:])
    database = replace(explainer.database, exemplars=replace(exemplars, path=paths))
    with TestClient(create_app(Explainer(explainer.net, database), data=f"folder:{folder}")) as client:
        for number in (0, 1, -1, 10**6, 10**30):
            assert client.get(f"exemplars/{number}").status_code == 404
        for path in ("exemplars/..%2fsecret.png", "static/../server.py", "static/..%2fserver.py", "static//etc/passwd"):
            assert client.get(path).status_code in (404, 422)
        assert client.get("exemplars/2").status_code == 200
        for name in ("../../a.png", "/etc/a.png", "C:\\pictures\\a.png", "a\u202e.png"):
            assert post(client, name=name).json()["image"] == "a.png"
        answer = post(client, name="x/ä; q.png", format="overlay")
        assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''%C3%A4%3B%20q-overlay.png"


def test_labels_stay_text(client, post, encoded, picture, evil):
    """The page sets them as text; here they must not be sent as anything that a browser would take for a page."""
    answer = client.get("info")
    assert answer.headers["x-content-type-options"] == "nosniff"
    labels = {
        image["label"]
        for n in range(3)
        for image in post(client, content=encoded(picture(seed=n))).json()["looks_like"]
    }
    assert all(evil in label for label in labels)
    assert labels
    for path in ("", "docs", "info"):
        assert evil not in client.get(path).text


def test_two_pictures_are_compared_as_against_does(client, explainer, file, encoded, picture, image):
    other = picture(40, 40, seed=5)
    answer = client.post("compare", files={"image": ("a.png", file), "other": ("b.png", encoded(other))})
    found = answer.json()
    inputs = [torch.from_numpy(explainer.preprocess(p)[None]) for p in (image, other)]
    direct = Against(explainer)(*inputs)
    assert (found["image"], found["other"]) == ("a.png", "b.png")
    assert found["similarity"] == pytest.approx(float(direct.similarity[0]), abs=1e-6)
    for side in ("image", "other"):
        assert found["for"][side] + found["against"][side] == pytest.approx(found["similarity"], abs=1e-5)
    for name in ("shared", "differs"):
        maps = getattr(direct, name)
        np.testing.assert_array_equal(unpacked(found[name]["image"]), np.rint(maps.images.heatmaps[0] * 255))
        np.testing.assert_array_equal(unpacked(found[name]["other"]), np.rint(maps.other.heatmaps[0] * 255))


def test_channels_are_those_of_largest_weight_with_their_own_maps(client, explainer, direct, post, image):
    found = post(client, "channels").json()
    images = torch.from_numpy(explainer.preprocess(image)[None])
    maps, weights = (values[0].numpy() for values in explainer.channel_weights(images))
    strongest = np.argsort(-weights, kind="stable")[:10]
    assert [channel["channel"] for channel in found] == strongest.tolist()
    assert [channel["weight"] for channel in found] == pytest.approx(weights[strongest].tolist(), rel=1e-5)
    added = weights * maps.sum(axis=(1, 2))
    for channel in found:
        number = channel["channel"]
        assert channel["share"] == pytest.approx(added[number] / np.abs(added).sum(), rel=1e-4, abs=1e-6)
        placed = heatmap.place(maps[number][None], explainer.database.geometry, (32, 32))[0]
        wanted = np.rint(255 * placed / placed.max()) if placed.max() > 0 else np.zeros_like(placed)
        np.testing.assert_allclose(unpacked(channel["levels"]), wanted, atol=1)


def test_an_onnx_file_explains_but_cannot_be_taken_apart(onnx_explainer, post, file, image):
    with TestClient(create_app(onnx_explainer)) as client:
        found = post(client, include="levels").json()
        direct = onnx_explainer(onnx_explainer.preprocess(image)[None])
        np.testing.assert_array_equal(unpacked(found["levels"]), np.rint(direct.heatmaps[0] * 255))
        assert found["looks_like"] == []
        info = client.get("info").json()
        assert (info["compare"], info["channels"]) == (False, False)
        for path, files in (("channels", ("image",)), ("compare", ("image", "other"))):
            answer = client.post(path, files=dict.fromkeys(files, ("a.png", file)))
            assert answer.status_code == 422
            assert "start the server with --net and --db" in answer.json()["error"]


def test_questions_are_answered_and_name_no_file(explainer, client, file, image):
    label = explainer.database.label_names[1]
    asking = explainer.asking(towards=label, versus=0)
    expected = asking(asking.preprocess(image)[None])
    query = {"towards": label, "versus": "cluster:0"}
    found = client.post("explain", files={"image": ("a.png", file)}, params=query).json()
    assert (found["towards"], found["versus"]) == (expected.towards[0], expected.versus[0])
    assert found["similarity"] == pytest.approx(float(expected.similarity[0]), abs=1e-5)
    assert found["for"] + found["against"] + found["rest"] == pytest.approx(found["similarity"], abs=1e-5)
    evidence = client.post("explain", files={"image": ("a.png", file)}, params=query | {"format": "evidence"})
    drawn = np.asarray(Image.open(io.BytesIO(evidence.content)))
    np.testing.assert_array_equal(drawn, expected.signed_overlay([np.asarray(image)])[0])
    unasked = client.post("explain", files={"image": ("a.png", file)}, params={"format": "evidence"})
    assert (unasked.status_code, "ask towards or versus" in unasked.json()["error"]) == (422, True)
    for towards in (__file__, f"image:{__file__}", "class9"):
        refused = client.post("explain", files={"image": ("a.png", file)}, params={"towards": towards})
        assert refused.status_code == 422
        assert "is no label and no cluster" in refused.json()["error"]


def test_a_network_that_cannot_compare_says_why(explainer, monkeypatch, file):
    monkeypatch.setattr("embedcam.nets.network.Network._measured_head", lambda _: "it is a test")
    with TestClient(create_app(explainer)) as client:
        info = client.get("info").json()
        assert info["compare"] is False
        assert "cannot be decomposed over the cells" in info["compare_hint"]
        answer = client.post("compare", files={"image": ("a.png", file), "other": ("b.png", file)})
        assert (answer.status_code, answer.json()["error"]) == (422, info["compare_hint"])


def test_the_documentation_names_every_way_in_and_comes_from_here_alone(client):
    document = client.get("openapi.json").json()
    assert sorted(document["paths"]) == ["/channels", "/compare", "/exemplars/{number}", "/explain", "/info"]
    explain = document["paths"]["/explain"]["post"]
    assert list(explain["requestBody"]["content"]) == ["multipart/form-data", "image/*"]
    assert {"413", "415", "422", "429", "503"} <= explain["responses"].keys()
    page = client.get("docs").text
    assert "SwaggerUIBundle" in page
    assert "://" not in page.replace(str(client.base_url), "")
    for path in ("static/docs/swagger-ui-bundle.js", "static/docs/swagger-ui.css", "static/page.js", ""):
        assert client.get(path).status_code == 200


def test_infos_colours_are_those_that_overlays_are_drawn_in(client):
    colors = {name: base64.b64decode(text) for name, text in client.get("info").json()["colormaps"].items()}
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    for name, rgb in colors.items():
        black = np.zeros((1, 256, 3), np.uint8)
        np.testing.assert_array_equal(np.frombuffer(rgb, np.uint8).reshape(1, 256, 3), overlay(black, ramp, 1.0, name))


def test_answers_are_strict_json(client, post):
    json.loads(post(client, include="levels").text, parse_constant=pytest.fail)
