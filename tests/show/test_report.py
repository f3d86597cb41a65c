import base64
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from embedcam.errors import DataError, MissingDependencyError
from embedcam.show.report import ClusterCard, Column, ExampleCard, Report, Thumbnail, write_report

VOID = {"meta", "link", "img", "br"}
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
FLAT = np.full((40, 60, 3), (10, 200, 30), np.uint8)
MASK = np.zeros((40, 60), bool)
MASK[10:20, 20:30] = True
COLUMNS = [
    Column("mean_ratio", "Mean ratio", "share of the heat"),
    Column("pixel_ap", "Pixel AP", "average precision"),
    Column("pointing", "Pointing", "share of images"),
    Column("ms_per_image", "ms / image", "time", higher_is_better=False, decimals=1),
    Column("threshold", "Threshold", "the best one", higher_is_better=None, decimals=2),
]
HOSTILE = '<script>alert("x")</script>\'" onload=alert(1) &amp; </style>'


class Page(HTMLParser):
    """Checks that every element is closed in order; collects elements and texts."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]


def row(method, default=False, **scores):
    return {"method": method, "default": default, "backprop": not default, **scores}


def full_report():
    return Report(
        title="embedcam on digits",
        facts=[("Network", "tiny"), ("Seed", 0)],
        clusters=[
            ClusterCard(3, 5, [("seven", 1), ("one", 4)], [Thumbnail(PHOTO, "one/3")], [(17, 0.02), (4, 0.04)]),
            ClusterCard(8, 21, [(f"label {n}", n) for n in range(7)], [Thumbnail(FLAT)], [(1, -0.5)]),
        ],
        examples=[
            ExampleCard(
                "one/1",
                PHOTO,
                FLAT,
                3,
                0.25,
                0.9,
                MASK,
                label="one",
                cluster_label="one",
                evidence=FLAT,
                versus="cluster 8",
            ),
            ExampleCard("two/1", PHOTO, FLAT, 3, 0.5, label="two", cluster_label="one", notes=["the map is flat"]),
            ExampleCard("unknown", PHOTO, FLAT, 77, 0.5),
        ],
        scores=[
            row("cluster transfer", True, mean_ratio=0.61, pointing=0.85, ms_per_image=13.42, threshold=0.25),
            row("Grad-CAM", mean_ratio=0.5, pointing=float("nan"), ms_per_image=54.9, threshold=0.5),
        ],
        columns=COLUMNS,
        retrieval={"recall_at_1": 0.9876, "map_at_r": None},
    )


@pytest.fixture
def html(tmp_path):
    write_report(full_report(), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_is_well_formed_and_its_links_lead_somewhere(html):
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in page.all("a")]
    assert {"#scores", "#examples", "#clusters", "#cluster-3"} <= set(links)
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert [tag for tag, _ in page.elements if re.fullmatch("h[1-3]", tag)][:3] == ["h1", "h2", "h2"]


def test_page_fetches_nothing_and_runs_nothing(html):
    assert "://" not in html and "@import" not in html and "url(" not in html
    page = Page(html)
    assert not page.all("script")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))


def test_every_picture_has_a_text_and_opens(html):
    images = Page(html).all("img")
    assert len(images) == 2 + 4 + 2 + 2
    for image in images:
        assert image["alt"]
        kind, data = re.fullmatch("data:image/(png|jpeg);base64,(.*)", image["src"]).groups()
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            opened.load()
            assert opened.format == kind.upper()
            assert opened.size == (60, 40)


def test_drawings_are_png_and_photographs_jpeg(html):
    page = Page(html)
    (photo,) = page.all("img", alt="Test image one/1")
    (flat,) = page.all("img", alt="Heat map over one/1")
    (mask,) = page.all("img", alt="Mask of one/1: white on the object")
    assert photo["src"].startswith("data:image/jpeg")
    assert flat["src"].startswith("data:image/png")
    with Image.open(io.BytesIO(base64.b64decode(mask["src"].split(",")[1]))) as opened:
        np.testing.assert_array_equal(np.asarray(opened).astype(bool), MASK)


def test_large_pictures_are_made_smaller(tmp_path):
    large = np.zeros((2000, 1000, 3), np.uint8)
    write_report(Report("t", examples=[ExampleCard("a", large, large, 0, 0.0)]), tmp_path / "r.html")
    for image in Page((tmp_path / "r.html").read_text()).all("img"):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as opened:
            assert opened.size == (224, 448)


def test_evidence_names_what_it_is_against(html):
    page = Page(html)
    assert [image["alt"] for image in page.all("img") if image["alt"].startswith("Evidence")] == [
        "Evidence over one/1: orange for its cluster, blue for cluster 8"
    ]
    assert "for, rather than cluster 8" in page.texts


def test_clusters_come_largest_first_with_their_labels_by_count(html):
    page = Page(html)
    assert [card["id"] for card in page.all("article", class_="card") if "id" in card] == [
        "cluster-8",
        "cluster-3",
    ]
    texts = page.texts
    assert texts.index("label 6") < texts.index("label 3") < texts.index("one/3")
    # Of the 21 images, the four listed labels have 6 + 5 + 4 + 3.
    assert "label 2" not in texts
    assert "and 3 other images" in texts
    assert texts.index("4", texts.index("Cluster 3")) < texts.index("17")  # the stronger channel first
    assert "-0.500" in texts


def test_only_an_image_of_another_label_than_its_cluster_is_marked(html):
    page = Page(html)
    assert len(page.all("article", class_="card differs")) == 1
    assert len(page.all("span", class_="badge warn")) == 1
    assert any("1 of 3 fell into a cluster whose main label is not their own" in text for text in page.texts)
    assert "the map is flat" in page.texts


def test_score_table_marks_the_default_and_the_best_and_dashes_what_is_missing(html):
    page = Page(html)
    assert len(page.all("tr", class_="default")) == 1
    texts = page.texts
    start = texts.index("cluster transfer")
    first, second = texts[start : start + 7], texts[start + 7 : start + 13]
    assert first == ["cluster transfer", "default", "no", "0.610", "0.850", "13.4", "0.25"]
    assert second == ["Grad-CAM", "yes", "0.500", "–", "54.9", "0.50"]
    # Mean ratio and time have two values to compare, pointing only one; of a threshold none is the best.
    assert len(page.all("td", class_="best")) == 2
    assert "0.988" in texts and "MAP@R" not in texts and "Pixel AP" not in texts
    assert "time; lower is better" in texts


def test_hostile_texts_are_shown_and_not_run(tmp_path):
    report = Report(
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        clusters=[ClusterCard(0, 1, [(HOSTILE, 1)], [Thumbnail(PHOTO, HOSTILE)])],
        examples=[ExampleCard(HOSTILE, PHOTO, FLAT, 0, 0.1, None, MASK, HOSTILE, HOSTILE + "2", [HOSTILE])],
        scores=[row(HOSTILE, True, hostile=0.5)],
        columns=[Column("hostile", HOSTILE, HOSTILE)],
    )
    write_report(report, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert not page.all("script")
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert page.texts.count(" ".join(HOSTILE.split())) >= 12


def test_file_name_that_is_not_utf_8_does_not_stop_the_report(tmp_path):
    write_report(Report("caf\udce9", facts=[("蝶", "é")]), tmp_path / "report.html")
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts[0] == "caf?"


def test_empty_parts_are_left_out(tmp_path):
    write_report(Report("nothing yet"), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert [link["href"] for link in page.all("a")] == ["#top"]
    assert not page.all("section")


def test_broken_picture_leaves_no_file(tmp_path):
    with pytest.raises(DataError):
        write_report(Report("t", examples=[ExampleCard("a", PHOTO[0], FLAT, 0, 0.0)]), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_missing_jinja2_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "embedcam\[train\]"'):
        write_report(Report("t"), tmp_path / "report.html")
