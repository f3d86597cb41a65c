import base64
import io
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import embedcam
from embedcam.errors import DataError, MissingDependencyError
from embedcam.explain.explanation import FLAT, Explanation
from embedcam.show.notebook import _facts_of
from embedcam.show.overlay import colorize


def explained(count, side=20, **known):
    raw = np.random.default_rng(0).random((count, side, side), dtype=np.float32)
    return Explanation.of(raw, **known)


@pytest.fixture
def explanation():
    return explained(
        2,
        clusters=np.array([3, 0]),
        distances=np.array([0.25, 0.5], np.float32),
        typicality=np.array([0.75, 0.0], np.float32),
        anomaly=np.array([0.5, 2.0], np.float32),
    )


@pytest.fixture(scope="module")
def database(trained):
    return embedcam.WeightDatabase.load(trained / "weights.h5")


def pictures_in(html):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_facts_are_what_is_known(explanation):
    assert _facts_of(explanation, 0) == ["cluster 3", "distance 0.250", "anomaly 0.50", "typical of its cluster"]
    assert _facts_of(explanation, 1)[-1] == "unlike the training images"
    flat = Explanation.of(np.zeros((1, 4, 4), np.float32))
    assert _facts_of(flat, 0) == [FLAT]


def test_a_notebook_shows_each_heat_map_beside_its_facts(explanation):
    html = explanation._repr_html_()
    for shown, heatmap in zip(pictures_in(html), explanation.heatmaps, strict=True):
        np.testing.assert_array_equal(shown, colorize(heatmap))
    assert "Explanation of 2 images" in html
    assert html.index("cluster 3") < html.index("cluster 0")


def test_a_large_batch_is_cut_off_in_a_notebook():
    html = explained(20)._repr_html_()
    assert len(pictures_in(html)) == 16
    assert "and 4 more" in html


def test_large_heat_maps_are_shown_small():
    (shown,) = pictures_in(explained(1, side=640)._repr_html_())
    assert max(shown.shape) == 160


def test_notes_are_escaped():
    html = replace(explained(1), notes=[["<script>alert(1)</script>"]])._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_the_picture_of_an_explanation_is_a_sheet_of_its_heat_maps(explanation):
    sheet = Image.open(io.BytesIO(explanation._repr_png_()))
    assert sheet.format == "PNG"
    assert sheet.width > 2 * 160


def test_an_empty_explanation_has_no_picture():
    empty = explained(0)
    assert empty._repr_png_() is None
    assert "Explanation of 0 images" in empty._repr_html_()
    assert len(empty.plot()) == 0


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_plot_gives_an_axes_an_image_with_its_heat_map(explanation, pyplot):
    axes = explanation.plot(colormap="gray")
    assert len(axes) == 2
    for axis, heatmap in zip(axes, explanation.heatmaps, strict=True):
        np.testing.assert_array_equal(axis.get_images()[0].get_array(), colorize(heatmap, "gray"))
    assert axes[0].get_title() == "cluster 3\ndistance 0.250\nanomaly 0.50"


def test_plot_lays_heat_maps_over_images(explanation, pyplot):
    images = [np.full((30, 40, 3), level, np.uint8) for level in (50, 200)]
    axes = explanation.plot(images, alpha=0.25)
    for axis, expected in zip(axes, explanation.overlay(images, alpha=0.25), strict=True):
        np.testing.assert_array_equal(axis.get_images()[0].get_array(), expected)
    with pytest.raises(DataError, match="of 2 images, got 1"):
        explanation.plot(images[:1])


def test_plot_of_many_images_has_an_axes_for_each_and_leaves_none_empty(pyplot):
    axes = explained(6).plot()
    assert len(axes) == 6
    assert len(axes[0].figure.axes) == 8
    assert not any(axis.axison for axis in axes[0].figure.axes)


def test_plot_without_matplotlib_says_what_to_install(explanation, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        explanation.plot()


def test_a_notebook_shows_what_a_database_is_and_its_clusters(database):
    html = database._repr_html_()
    assert all(value.replace("'", "&#x27;") in html for _, value in database.facts())
    rows = html.split("<tr>")
    assert len([row for row in rows if row.startswith("<td") and row.count("<td") == 4]) == database.clusters
    largest = int(np.argmax(database.counts))
    first = next(row for row in rows if row.count("<td") == 4)
    assert f">{largest}<" in first
    assert f">{database.counts[largest]}<" in first


def test_labels_of_strangers_are_escaped(database):
    names = ("<img src=x onerror=alert(1)>", *database.label_names[1:])
    html = replace(database, label_names=names)._repr_html_()
    assert "<img" not in html
    assert "&lt;img src=x" in html
