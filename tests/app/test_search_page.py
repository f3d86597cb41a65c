"""The search tab in a real browser, against what numpy makes of the gallery."""

import shutil

import numpy as np
import pytest
from PIL import Image

from embedcam.app import create_app
from embedcam.explain.maps import place
from embedcam.gallery import Gallery
from embedcam.gallery.matches import versus
from embedcam.nets.geometry import Geometry

SIDE = 112  # of the maps that the page makes
TEXT = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello, I am text"}


@pytest.fixture(scope="module")
def address(gallery, running):
    with running(create_app(gallery=gallery)) as address:
        yield address


@pytest.fixture
def page(opened):
    page = opened()
    page.wait_for_selector("body[data-ready=true]")
    return page


@pytest.fixture
def upload(file):
    return {"name": "a.png", "mimeType": "image/png", "buffer": file}


@pytest.fixture(scope="module")
def matches(gallery, picture):
    return gallery.search([picture()])[0]


def search(page, upload):
    page.wait_for_selector("body[data-ready=true]")
    page.set_input_files("#query", upload)
    page.wait_for_selector("#hits[aria-busy=false] figure")


def point(page, canvas, cell, cells):
    """Move the mouse over the middle of a cell."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    (row, column), (height, width) = cell, cells
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / width, box["y"] + (row + 0.5) * box["height"] / height)


def heat_alone(page):
    page.locator("#alpha").fill("1")
    page.select_option("#colormap", "gray")


def cosines(cell, cells):
    return cells @ cell / np.linalg.norm(cells, axis=-1) / np.linalg.norm(cell)


def placed(values, gallery):
    """Values of cells as the page places them, by the share of the picture."""
    geometry = gallery.record.geometry
    scale = SIDE / 32
    onto = Geometry(
        *(tuple(scale * each for each in pair) for pair in (geometry.cell_stride, geometry.first_cell_center))
    )
    return place(np.asarray(values)[None], onto, (SIDE, SIDE))[0]


def shows(canvas_pixels, values, gallery):
    """Whether a canvas shows values of cells in grey."""
    expected = Image.fromarray(255 * placed(values, gallery).clip(0, 1)).resize((80, 40), Image.Resampling.BILINEAR)
    return np.abs(canvas_pixels[..., 0] - np.asarray(expected)).mean() < 4


def test_hits_come_with_what_they_share_with_the_query(page, upload, matches, gallery, pixels):
    search(page, upload)
    captions = page.locator("#hits figcaption").all_inner_texts()
    assert len(captions) == 10
    for rank, (caption, match) in enumerate(zip(captions, matches, strict=True), 1):
        assert caption.startswith(f"{rank}. {match.hit.label}")
        assert f"similarity {match.similarity:.3f}" in caption
    heat_alone(page)
    first = matches[0]
    scale = max(first.evidence(side).max() for side in ("query", "hit"))
    assert shows(pixels(page, "#query-view"), first.evidence("query") / scale, gallery)
    assert shows(pixels(page, "#hits canvas"), first.evidence("hit") / scale, gallery)


def test_pointing_lights_up_the_like_places_of_all_pictures_without_a_request(page, upload, matches, gallery, pixels):
    search(page, upload)
    heat_alone(page)
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    cells = gallery.record.cells
    items = [matches[0].query, *(match.hit for match in matches)]
    for side, cell in ((0, (1, 2)), (3, (2, 0))):
        canvases = [page.locator("#query-view"), *page.locator("#hits canvas").all()]
        point(page, canvases[side], cell, cells)
        for other in {0, 1, 4, 9} - {side}:
            expected = cosines(items[side].cells[cell], items[other].cells).clip(0)
            selector = "#query-view" if other == 0 else f"#hits figure:nth-child({other}) canvas"
            assert shows(pixels(page, selector), expected, gallery)
            if other:
                assert (
                    f"most alike {max(expected.max(), 0):.2f}"
                    in page.locator("#hits figcaption").nth(other - 1).inner_text()
                )
    page.mouse.move(1, 1)
    assert "similarity" in page.inner_text("#hits figcaption >> nth=0")
    assert sent == []


def test_arrow_keys_move_over_the_cells_and_say_what_is_alike(page, upload, matches, gallery, pixels):
    search(page, upload)
    heat_alone(page)
    height, width = gallery.record.cells
    page.focus("#query-view")
    page.keyboard.press("ArrowRight")  # the first press shows the cursor
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    row, column = height // 2 - 1, min(width // 2 + 1, width - 1)
    alike = [cosines(matches[0].query.cells[row, column], match.hit.cells) for match in matches]
    assert shows(pixels(page, "#hits canvas"), alike[0].clip(0), gallery)
    said = page.text_content("#status")
    assert said.startswith(f"Row {row + 1} of {height}, column {column + 1} of {width}. Most alike: hit ")
    best = int(np.argmax([each.max() for each in alike]))
    assert f"Most alike: hit {best + 1}, {alike[best].max():.2f}" in said
    for _ in range(2 * width):
        page.keyboard.press("ArrowLeft")
    assert f"column 1 of {width}" in page.text_content("#status")
    page.keyboard.press("Escape")
    assert "similarity" in page.inner_text("#hits figcaption >> nth=0")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_two_selected_hits_show_why_the_first_is_above(page, upload, matches, gallery, pixels):
    search(page, upload)
    page.click("#hits canvas >> nth=4")
    assert page.is_hidden("#difference")
    page.focus("#hits canvas >> nth=1")
    page.keyboard.press("Enter")
    assert page.inner_text("#difference-title") == "Why hit 2 is above hit 5"
    signed, _ = versus(matches[1], matches[4])
    text = page.inner_text("#difference-text")
    assert f"hit 2 ({signed.clip(0).sum():.3f})" in text
    assert f"hit 5 ({-signed.clip(max=0).sum():.3f})" in text
    assert f"differ by {matches[1].similarity - matches[4].similarity:.3f}" in text
    shown = pixels(page, "#difference-view")
    strongest = np.asarray(
        Image.fromarray(placed(signed / np.abs(signed).max(), gallery)).resize((80, 40), Image.Resampling.BOX)
    )
    red_less_blue = shown[..., 0] - shown[..., 2]
    assert (red_less_blue[strongest > 0.5] > 30).all()
    assert (red_less_blue[strongest < -0.5] < -30).all()
    assert [box.is_checked() for box in page.locator("#hits input").all()] == [n in (1, 4) for n in range(10)]
    page.check("#hits input >> nth=7")  # replaces the one that was selected first
    assert page.inner_text("#difference-title") == "Why hit 2 is above hit 8"
    page.keyboard.press("Space")
    assert page.is_hidden("#difference")


def test_one_selected_hit_shows_the_places_that_correspond(page, upload, matches, pixels):
    search(page, upload)
    before = pixels(page, "#query-view"), pixels(page, "#hits figure:nth-child(3) canvas")
    page.check("#hits input >> nth=2")
    after = pixels(page, "#query-view"), pixels(page, "#hits figure:nth-child(3) canvas")
    assert "shares with hit 3" in page.inner_text("#query-caption")
    assert len(matches[2].correspondences()) > 0
    assert (after[1] != before[1]).any()
    assert (after[0] != before[0]).any()


def test_a_finger_points_and_leaves_the_light_on(opened, upload, matches, gallery, pixels):
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    search(page, upload)
    heat_alone(page)
    height, width = gallery.record.cells
    box = page.locator("#query-view").bounding_box()
    page.touchscreen.tap(box["x"] + 1.5 * box["width"] / width, box["y"] + 0.5 * box["height"] / height)
    assert shows(
        pixels(page, "#hits canvas"), cosines(matches[0].query.cells[0, 1], matches[0].hit.cells).clip(0), gallery
    )
    page.touchscreen.tap(5, box["y"] - 5)
    assert "similarity" in page.inner_text("#hits figcaption >> nth=0")


def test_it_fits_a_phone_and_the_query_stays_in_view(opened, upload, tmp_path):
    brightness = {}
    for scheme in ("light", "dark"):
        page = opened(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        search(page, upload)
        for select in (0, 1):
            page.check(f"#hits input >> nth={select}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("#hits figure").last.scroll_into_view_if_needed()
        box = page.locator("#query-view").bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] < 370
        page.screenshot(path=tmp_path / f"{scheme}.png")
        brightness[scheme] = np.asarray(Image.open(tmp_path / f"{scheme}.png").convert("L"))[-60:].mean()
        targets = page.evaluate(
            "[...document.querySelectorAll('#search label')].map((each) => each.getBoundingClientRect().height)"
        )
        assert min(targets) >= 44
    assert brightness["light"] > brightness["dark"] + 60


def test_wrong_files_give_one_clear_line_and_no_old_hits(page, upload):
    search(page, upload)
    page.set_input_files("#query", TEXT)
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("[role=alert]").startswith("notes.txt is not an image in a supported format; replace it")
    assert page.is_hidden("#query-view")
    assert page.locator("#hits figure").count() == 0
    page.set_input_files("#query", {**upload, "name": "big.png", "buffer": bytes(20_000_001)})
    page.wait_for_selector("text=big.png is larger than 20 MB")
    search(page, upload)
    assert page.is_hidden("#error")


def test_missing_pictures_are_named_and_their_matches_explained(
    opened, explainer, gallery, folder, tmp_path, running, upload, matches, pixels
):
    from embedcam.data import load
    from embedcam.gallery import index

    copy = shutil.copytree(folder, tmp_path / "copy")
    index(explainer.net, load(f"folder:{copy}"), tmp_path / "gallery.h5")
    (copy / "images" / matches[0].hit.id).unlink()
    (copy / "images" / matches[1].hit.id).write_bytes(b"hello, I am text")
    with (
        Gallery.open(tmp_path / "gallery.h5", explainer.net) as damaged,
        running(create_app(gallery=damaged)) as address,
    ):
        page = opened(address)
        search(page, upload)
        heat_alone(page)
        captions = page.locator("#hits figcaption").all_inner_texts()
        assert ["The picture is missing." in caption for caption in captions] == [True, True] + [False] * 8
        scale = max(matches[0].evidence(side).max() for side in ("query", "hit"))
        assert shows(pixels(page, "#hits canvas"), matches[0].evidence("hit") / scale, gallery)


def test_what_the_browser_cannot_show_the_server_does(page, picture, encoded, pixels):
    search(page, {"name": "a.tif", "mimeType": "image/tiff", "buffer": encoded(picture(), "TIFF")})
    page.locator("#alpha").fill("0")
    expected = np.asarray(picture().resize((80, 40), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(pixels(page, "#query-view") - expected).mean() < 16  # as a JPEG


def test_the_number_of_hits_is_chosen(page, upload):
    search(page, upload)
    with page.expect_response("**/match*"):
        page.select_option("#top", "5")
    page.wait_for_selector("#hits figure:nth-of-type(6)", state="detached")
    assert page.locator("#hits figure").count() == 5


def test_with_an_explainer_all_tabs_are_there_and_training_images_show_what_is_shared(
    opened, explainer, gallery, running, upload, picture, pixels
):
    with running(create_app(explainer, gallery=gallery)) as address:
        page = opened(address)
        page.wait_for_selector("body[data-ready=true]")
        assert page.locator("[role=tab]").all_inner_texts() == ["Search", "Explain", "Compare", "Batch"]
        assert page.is_visible("#search")
        search(page, upload)
        page.focus("#tab-search")
        page.keyboard.press("ArrowRight")
        assert page.is_visible("#explain")
        page.set_input_files("#file", upload)
        page.wait_for_selector("#looks-like canvas")
        heat_alone(page)
        before = pixels(page)
        canvas = page.locator("#looks-like canvas").first
        canvas.focus()
        name = canvas.get_attribute("aria-label").removeprefix("What the picture shares with ")
        match = gallery.explain_match(gallery.see([picture()])[0], name)
        scale = max(match.evidence(side).max() for side in ("query", "hit"))
        assert shows(pixels(page), match.evidence("query") / scale, gallery)
        assert shows(pixels(page, "#looks-like canvas"), match.evidence("hit") / scale, gallery)
        page.focus("#alpha")
        np.testing.assert_array_equal(pixels(page), before)


def test_an_index_alone_has_the_search_tab_alone(page, upload):
    assert page.locator("[role=tab]").all_inner_texts() == ["Search"]
    assert page.locator("[role=tabpanel]").count() == 1
    assert "18 images to search" in page.inner_text("#about")
    search(page, upload)
