"""Every bad request is one line that says what is wrong."""

import asyncio
import base64

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from embedcam.app import create_app
from embedcam.app.limits import Limits, Refused
from embedcam.app.uploads import read_uploads
from embedcam.errors import DataError, EmbedcamError


@pytest.fixture
def small(explainer):
    with TestClient(create_app(explainer, limits=Limits(upload=20_000, pixels=5000, rate=30))) as client:
        yield client


def refused(answer, status, *words):
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert "\n" not in error
    for word in words:
        assert word in error
    return error


@pytest.mark.parametrize("raw", [False, True])
def test_what_is_no_picture_is_refused(client, raw, file):
    for content, word in (
        (b"hello, I am text\n", "is not an image in a supported format"),
        (b"", "is empty (0 bytes)"),
        (file[:-40], "cannot read"),
    ):
        asked = {"content": content} if raw else {"files": {"image": ("notes.txt", content)}}
        refused(client.post("explain", **asked), 415, "picture" if raw else "notes.txt", word)


def test_a_file_that_is_too_long_is_refused_before_it_is_read(small, file):
    large = bytes(100_000)
    message = "an image file may have at most 0.02 MB"
    refused(small.post("explain", content=large), 413, message)
    refused(small.post("explain", files={"image": ("a.png", large)}), 413, message)
    refused(small.post("explain", files={"image": ("a.png", bytes(30_000))}), 413, message)  # less than a form may have
    refused(small.post("compare", files={"image": ("a.png", file), "other": ("b.png", bytes(30_000))}), 413, message)
    refused(small.post("explain", content=(bytes(10_000) for _ in range(3))), 413, message)


def test_a_body_of_unknown_length_is_read_no_further_than_allowed():
    read = 0

    async def receive():
        nonlocal read
        read += 10_000
        return {"type": "http.request", "body": bytes(10_000), "more_body": True}

    for headers in ([], [(b"content-type", b"multipart/form-data; boundary=x")]):
        read = 0
        request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
        with pytest.raises((Refused, Exception)):
            asyncio.run(read_uploads(request, Limits(upload=50_000), ("image",)))
        assert read <= 50_000 + 65_536 + 10_000


def test_a_body_that_does_not_arrive_is_not_waited_for():
    async def receive():
        await asyncio.Event().wait()

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(Refused, match=r"did not arrive within 0.01 s") as error:
        asyncio.run(read_uploads(request, Limits(timeout=0.01), ("image",)))
    assert error.value.status == 408


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(small, monkeypatch, encoded, picture):
    monkeypatch.setattr("embedcam.app.uploads.read_image", lambda *_: pytest.fail("decoded"))
    flat = encoded(picture(1, 1).resize((100, 51)))
    refused(
        small.post("explain", files={"image": ("big.png", flat)}), 413, "big.png has 100 x 51 pixels, more than 5,000"
    )
    monkeypatch.undo()
    assert small.post("explain", files={"image": ("a.png", encoded(picture(100, 50)))}).status_code == 200


def test_a_missing_picture_is_named(client, file):
    refused(client.post("explain", files={"photo": ("a.png", file)}), 422, 'the form has no file in the field "image"')
    refused(client.post("compare", files={"image": ("a.png", file)}), 422, 'the form has no file in the field "other"')
    refused(client.post("compare", content=file), 415, "multipart/form-data", "image and other")
    refused(client.post("explain", files=[("image", ("a.png", file))] * 2), 422, '2 files in the field "image"')


def test_requests_that_are_nearly_right_say_what_is_wrong(client, file):
    text = {"image": (None, "photo.jpg")}  # curl --form image=photo.jpg
    refused(client.post("explain", files=text), 422, "the text 'photo.jpg' and no file", "--form image=@FILE")
    refused(client.post("explain", data={"image": "photo.jpg"}), 415, "URL-encoded", "--form image=@FILE")
    encoded = "data:image/png;base64," + base64.b64encode(file).decode()
    refused(client.post("explain", json={"image": encoded}), 415, "got application/json", 'field "image"')
    refused(client.post("compare", json={"image": encoded}), 415, "multipart/form-data")
    for kind, status in (("multipart/form-data", 400), ("multipart/mixed; boundary=x", 415), ("a/problem+json", 415)):
        refused(client.post("explain", content=file, headers={"Content-Type": kind}), status, "picture")
    refused(client.post("explain", files={"image": ("", b"")}), 422, 'field "image"')
    many = [(f"field{number}", (None, "x")) for number in range(200)]
    refused(client.post("explain", files=many), 400, "cannot read the form")


def test_pictures_of_any_content_type_and_further_fields_are_accepted(client, file):
    for kind in ("application/x-www-form-urlencoded", "application/octet-stream", "text/plain", "nonsense"):
        assert client.post("explain", content=file, headers={"Content-Type": kind}).status_code == 200
    further = {"image": ("a.png", file), "comment": (None, "hello"), "thumbnail": ("b.png", file)}
    assert client.post("explain", files=further).status_code == 200


@pytest.mark.parametrize(
    "path", ["", "info", "docs", "openapi.json", "static/page.js", "exemplars/0", "explain", "none"]
)
def test_head_answers_as_get_without_a_body(client, path):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert (head.headers["content-length"], head.content) == (get.headers["content-length"], b"")


def test_forms_need_no_temporary_folder(client, picture, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    files = {name: ("a.png", encoded(picture(1000, 1000))) for name in ("image", "other")}
    assert len(files["image"][1]) > 1_048_576  # starlette's own limit
    assert client.post("compare", files=files).status_code == 200
    broken = {"Content-Type": "multipart/form-data"}
    refused(client.post("explain", content=b"x", headers=broken), 400, "boundary")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"threshold": 0}, ["threshold", "greater than or equal to 0.01", "got '0'"]),
        ({"alpha": 2}, ["alpha", "less than or equal to 1"]),
        ({"colormap": "pink"}, ["colormap", "'turbo'", "got 'pink'"]),
        ({"format": "gif"}, ["format", "'json', 'overlay'"]),
        ({"include": "all"}, ["include", "'overlay', 'heatmap'"]),
        ({"treshold": 0.5}, ["treshold", "not permitted"]),
    ],
)
def test_a_wrong_parameter_is_named(client, query, words, file):
    refused(client.post("explain", params=query, files={"image": ("a.png", file)}), 422, *words)


def test_there_is_no_other_way_in(client):
    refused(client.get("nowhere"), 404, "GET /nowhere: Not Found; see /docs")
    answer = client.get("explain")
    refused(answer, 405, "GET /explain: Method Not Allowed")
    assert answer.headers["allow"] == "POST"
    refused(client.get("exemplars/one"), 422, "number", "got 'one'")


def test_a_failure_of_the_server_is_one_line_too(explainer, monkeypatch, file):
    monkeypatch.setattr("embedcam.app.service.Service.respond", lambda *_: 1 / 0)
    with TestClient(create_app(explainer), raise_server_exceptions=False) as client:
        refused(client.post("explain", files={"image": ("a.png", file)}), 500, "see the server log")


def test_too_many_requests_in_a_minute_are_refused(small, file):
    answers = [small.post("explain", files={"image": ("a.png", file)}) for _ in range(31)]
    assert [answer.status_code for answer in answers[:30]] == [200] * 30
    refused(answers[30], 429, "more than 30 requests per minute")
    assert int(answers[30].headers["retry-after"]) >= 1
    assert small.get("info").status_code == 200  # what costs nothing is not counted


def test_a_data_set_without_the_training_images_is_an_error(explainer, onnx_explainer):
    with pytest.raises(DataError, match="digits has none of the 18 training images"):
        create_app(explainer, data="digits")
    with pytest.raises(DataError, match="digits has none of the 0 training images"):
        create_app(onnx_explainer, data="digits")


def test_an_empty_token_is_an_error(explainer):
    with pytest.raises(EmbedcamError, match="the token is empty"):
        create_app(explainer, token=" ")
