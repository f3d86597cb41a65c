"""The page in a real browser, as a visitor with mouse, keyboard, camera, phone or dark screen has it."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount

from embedcam.app import create_app
from embedcam.explain.comparison import Against
from embedcam.show.overlay import colorize


@pytest.fixture(scope="module")
def address(explainer, folder, running):
    with running(create_app(explainer, data=f"folder:{folder}")) as address:
        yield address


@pytest.fixture
def page(opened):
    return ready(opened())


@pytest.fixture(scope="module")
def image():
    """Smooth: what a browser draws larger and is shrunk again here stays the same."""
    down, across = np.mgrid[:40, :80]
    return Image.fromarray(np.stack([3 * across, 6 * down, 255 - 3 * across], axis=-1).astype(np.uint8))


@pytest.fixture
def upload(image, encoded):
    return {"name": "a.png", "mimeType": "image/png", "buffer": encoded(image)}


TEXT = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello, I am text"}


def ready(page):
    page.wait_for_selector("body[data-ready=true]")
    return page


def explain(page, upload):
    page.set_input_files("#file", upload)
    page.wait_for_selector("#explanation:not([hidden])")


def slide(page, selector, value):
    page.locator(selector).fill(str(value))


def test_a_picture_is_explained_and_the_sliders_work_without_the_server(page, upload, image, explainer, pixels):
    explain(page, upload)
    direct = explainer(explainer.preprocess(image)[None])
    assert page.inner_text("#words h2").lower() == direct.typicality_in_words(0)
    sent = []
    page.on("request", lambda request: sent.append(request.url))

    slide(page, "#alpha", 0)
    assert np.abs(pixels(page) - np.asarray(image)).mean() < 2
    slide(page, "#alpha", 1)
    page.select_option("#colormap", "gray")
    heat = Image.fromarray(direct.heatmaps[0]).resize((80, 40), Image.Resampling.BILINEAR)
    assert np.abs(pixels(page) - colorize(np.asarray(heat).clip(0, 1), "gray")).mean() < 3
    shown = pixels(page)
    page.check("#boxes")
    boxed = pixels(page)
    slide(page, "#threshold", 0.95)
    fewer = pixels(page)
    assert (boxed != shown).any()
    assert (fewer != boxed).any()
    assert page.inner_text("#threshold-value") == "0.95"
    assert [url for url in sent if not url.startswith("blob:")] == []


def test_labels_are_text_and_training_images_are_shown(page, upload, evil):
    explain(page, upload)
    assert evil in page.inner_text("#words")
    page.evaluate("Promise.all([...document.querySelectorAll('#looks-like img')].map(image => image.decode()))")
    assert 1 <= page.locator("#looks-like img").count() <= 8
    assert evil in page.inner_text("#looks-like figcaption >> nth=0")
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("document.body.dataset.broken") is None


def test_labels_that_are_numbers_come_with_the_commonest_first(page):
    ordered = page.evaluate("async () => (await import('/static/dom.js')).sortedLabels({3: 5, 9: 79, 12: 7})")
    assert ordered == [["9", 79], ["12", 7], ["3", 5]]


def test_the_strongest_channels_are_shown_when_they_are_wanted(page, upload):
    explain(page, upload)
    assert page.locator("#channels figure").count() == 0
    page.click("#channels summary")
    page.wait_for_selector("#channels figure")
    assert page.locator("#channels figure").count() == 10
    assert "% of the map" in page.inner_text("#channels figcaption >> nth=0")


def test_two_pictures_are_compared(page, upload, image, picture, encoded, explainer, pixels):
    import torch

    other = picture(40, 40, seed=3)
    page.click("#tab-compare")
    page.set_input_files("#image", upload)
    page.set_input_files("#other", {**upload, "name": "b.png", "buffer": encoded(other)})
    page.wait_for_selector("#compared:not([hidden])")
    inputs = [torch.from_numpy(explainer.preprocess(p)[None]) for p in (image, other)]
    assert page.inner_text("#similarity h2") == f"Similarity {float(Against(explainer)(*inputs).similarity[0]):.3f}"
    captions = page.locator("#maps figcaption").all_inner_texts()
    assert [text.split(",")[0] for text in captions] == ["a.png", "shared", "differs", "b.png", "shared", "differs"]
    assert np.abs(pixels(page, "#maps canvas") - np.asarray(image)).mean() < 2


def test_a_text_file_gives_one_clear_line(page, upload):
    explain(page, upload)
    page.set_input_files("#file", TEXT)
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("[role=alert]").startswith("notes.txt is not an image in a supported format; replace it")
    assert page.is_hidden("#explained")  # or the error would seem to be of the picture before
    explain(page, upload)
    assert page.is_hidden("#error")


def test_everything_can_be_downloaded(page, upload, image, explainer):
    explain(page, upload)
    direct, got = explainer(explainer.preprocess(image)[None]), {}
    for button in page.locator("#downloads button").all():
        with page.expect_download() as download:
            button.click()
        got[download.value.suggested_filename] = download.value.path().read_bytes()
    assert sorted(got) == ["a-heatmap.png", "a-maps.npz", "a-overlay.png", "a.json"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(got["a-overlay.png"]))), direct.overlay([image])[0])
    levels = np.asarray(Image.open(io.BytesIO(got["a-heatmap.png"])))
    np.testing.assert_array_equal(levels, np.rint(direct.heatmaps[0] * 65535))
    with np.load(io.BytesIO(got["a-maps.npz"])) as maps:
        np.testing.assert_array_equal(maps["raw"], direct.raw[0])
    found = json.loads(got["a.json"])
    assert found["cluster"] == direct.clusters[0]
    assert "levels" not in found


def test_many_pictures_become_one_zip_file(page, upload, picture, encoded):
    page.click("#tab-batch")
    others = [
        {**upload, "name": name, "buffer": encoded(picture(seed=seed))}
        for seed, name in enumerate(["a.png", "ä.png", "a.png"])
    ]
    page.set_input_files("#files", [*others[:2], TEXT, others[2]])
    page.wait_for_selector("#zip:not([hidden])")
    assert page.inner_text("#count") == "4 of 4"
    assert page.evaluate("document.getElementById('done').position") == 1
    assert "notes.txt is not an image" in page.inner_text("#failures")
    assert page.locator("#results figure").count() == 3
    with page.expect_download() as download:
        page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        names = ["a.png", "ä.png", "a-2.png"]
        assert set(archive.namelist()) == {
            "explanations.jsonl",
            *(f"overlays/{name}.png" for name in names),
            *(f"maps/{name}.png" for name in names),
        }
        lines = [json.loads(line) for line in archive.read("explanations.jsonl").splitlines()]
        assert [line["overlay"] for line in lines] == [f"overlays/{name}.png" for name in names]
        for line in lines:
            assert Image.open(io.BytesIO(archive.read(line["overlay"]))).size == (48, 36)
            assert Image.open(io.BytesIO(archive.read(line["heatmap"]))).mode in (
                "I;16",
                "I",
            )  # the second in older Pillow


def test_files_dropped_while_others_are_explained_replace_them(page, upload):
    held = []
    page.route("**/explain*", lambda route: held.append(route), times=1)
    page.click("#tab-batch")
    with page.expect_request("**/explain*"):
        page.set_input_files("#files", upload)
    page.set_input_files("#files", {**upload, "name": "b.png"})
    page.wait_for_selector("#zip:not([hidden])")
    with page.expect_response("**/explain*"):
        held[0].continue_()
    assert page.inner_text("#count") == "1 of 1"
    with page.expect_download() as download:
        page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == ["overlays/b.png.png", "maps/b.png.png", "explanations.jsonl"]


def test_more_files_than_a_zip_archive_can_hold_are_an_error(page):
    count = "zip(Array.from({length: 65536}, () => ['a', new Blob()]))"
    error = page.evaluate(f"async () => (await import('/static/zip.js')).{count}.catch((error) => error.message)")
    assert "exceed the limits of a zip archive" in error


def test_the_camera_is_explained_until_it_is_stopped(page, pixels):
    page.click("#camera")
    page.wait_for_selector("#explanation:not([hidden])")
    assert page.inner_text("#camera") == "Stop and keep this picture"
    first = pixels(page)
    with page.expect_response("**/explain*"), page.expect_response("**/explain*"):
        pass
    page.click("#camera")
    page.wait_for_selector("#busy:not(.on)", state="attached")
    kept = pixels(page)
    assert (kept != first).any()  # it shows a clock
    assert page.inner_text("#camera") == "Use the camera"
    assert page.is_visible("#downloads")


def test_the_keyboard_reaches_everything(page, upload):
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order == ["A", "tab-explain", "alpha", "colormap", "boxes", "threshold", "file", "camera", "BODY"]
    page.focus("#tab-explain")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#compare")
    assert page.is_hidden("#explain")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#batch")
    page.keyboard.press("ArrowRight")
    explain(page, upload)
    page.focus("#alpha")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#alpha-value") == "55 %"


def test_it_fits_a_phone_and_is_dark_where_that_is_wanted(opened, upload, tmp_path):
    brightness = {}
    for scheme in ("light", "dark"):
        page = ready(opened(viewport={"width": 360, "height": 740}, color_scheme=scheme))
        explain(page, upload)
        for tab in ("explain", "compare", "batch"):
            page.click(f"#tab-{tab}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            page.screenshot(path=tmp_path / f"{scheme}-{tab}.png", full_page=True)
        brightness[scheme] = np.asarray(Image.open(tmp_path / f"{scheme}-batch.png").convert("L")).mean()
    assert brightness["light"] > 200
    assert brightness["dark"] < 60


def test_what_the_browser_cannot_show_the_server_does(page, image, encoded, pixels):
    explain(page, {"name": "a.tif", "mimeType": "image/tiff", "buffer": encoded(image, "TIFF")})
    slide(page, "#alpha", 0)
    assert np.abs(pixels(page) - np.asarray(image)).mean() < 4  # as a JPEG


def test_a_visitor_types_the_token_in(explainer, running, opened, upload):
    with running(create_app(explainer, token="geheim")) as address:
        page = opened(address)
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=alert]:visible")
        page.fill("#token", "geheim")
        page.keyboard.press("Enter")
        explain(ready(page), upload)
        assert page.locator("#looks-like li").count() >= 1  # names, as the data set is not known


@pytest.mark.parametrize("mounted", [True, False])
def test_under_a_prefix_nothing_leaves_it(explainer, folder, running, opened, upload, mounted):
    app = create_app(explainer, token="geheim", data=f"folder:{folder}", root_path="" if mounted else "/cam")
    outer = Starlette(routes=[Mount("/cam", app)], lifespan=lambda _: app.router.lifespan_context(app))
    with running(outer if mounted else app) as address:
        page = opened(f"{address}/cam/")
        page.fill("#token", "geheim")
        page.keyboard.press("Enter")
        explain(ready(page), upload)
        page.evaluate("Promise.all([...document.querySelectorAll('#looks-like img')].map(image => image.decode()))")
        page.click("text=HTTP API")
        page.wait_for_selector("text=/explain")
        assert page.locator(".opblock").count() == 5


def test_an_onnx_file_hides_what_it_cannot_do(onnx_explainer, running, opened, upload):
    with running(create_app(onnx_explainer)) as address:
        page = ready(opened(address))
        explain(page, upload)
        assert page.is_hidden("#channels")
        page.click("#tab-compare")
        assert "start the server with --net and --db" in page.inner_text("#compare")
        assert page.is_hidden("#image")


def test_the_documentation_opens_with_nothing_from_elsewhere(page, address):
    page.goto(f"{address}/docs")
    page.wait_for_selector("text=/explain")
    assert page.locator(".opblock").count() == 5
