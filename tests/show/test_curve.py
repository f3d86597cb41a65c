import sys

import numpy as np
import pytest
from PIL import Image

from embedcam.errors import EmbedcamError, MissingDependencyError
from embedcam.show.curve import draw_faithfulness, draw_randomisation, training_curve

HISTORY = [
    {"epoch": 0, "recall_at_1": 0.4, "map_at_r": 0.2, "nmi": 0.3},
    {"epoch": 1, "loss": 0.2, "recall_at_1": 0.8, "map_at_r": 0.5, "nmi": None},
    {"epoch": 2, "loss": 0.1, "recall_at_1": 0.9, "map_at_r": 0.7, "nmi": 0.8},
]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def shows(picture, color):
    return bool((picture == color).all(axis=2).any())


def test_curve_shows_loss_and_scores(tmp_path):
    training_curve(HISTORY, tmp_path / "curve.png")
    picture = pixels(tmp_path / "curve.png")
    assert picture.shape == (675, 1200, 3)
    for color in ((0x5B, 0x62, 0x6B), (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert shows(picture, color)


@pytest.mark.parametrize(
    "history",
    [
        HISTORY[:1],
        [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}],
        [{"epoch": 1}],
        [{"epoch": 1, "loss": float("nan"), "recall_at_1": float("nan")}],
    ],
)
def test_missing_values_leave_no_point(tmp_path, history):
    training_curve(history, tmp_path / "curve.png")
    assert pixels(tmp_path / "curve.png").std() > 0


def test_same_history_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        training_curve(HISTORY, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_epoch_at_all_is_refused(tmp_path):
    with pytest.raises(EmbedcamError, match="at least one epoch"):
        training_curve([], tmp_path / "curve.png")


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "embedcam\[train\]"'):
        training_curve(HISTORY, tmp_path / "curve.png")


def faithfulness_result(methods=2):
    names = [f"method {number}" for number in range(methods)] + ["random order"]
    curve = {"similarity": [1.0, 0.4, 0.1], "rank": [1.0, 2.0, 3.0], "similarity_area": 0.475, "rank_area": 2.0}
    rows = [{"method": name, "deletion": curve, "insertion": curve} for name in names]
    return {"share": [0.0, 0.5, 1.0], "candidates": 5, "metric": "cosine", "rows": rows}


def randomisation_result(between):
    stages = [{"layer": None, "spearman": 1.0}, {"layer": "head", "spearman": -0.6}]
    other = [{"layer": None, "spearman": 1.0}, {"layer": "head", "spearman": 0.9}]
    rows = [
        {"method": name, "stages": each, "between_images": {"spearman": between}}
        for name, each in (("first", stages), ("second", other))
    ]
    return {"rows": rows}


def test_faithfulness_shows_every_method_and_the_baseline(tmp_path):
    result = faithfulness_result()
    # One below the other, else the baseline, drawn last, hides the rest.
    for number, row in enumerate(result["rows"]):
        row["deletion"] = {**row["deletion"], "similarity": [1.0, 0.3 * number, 0.0]}
    draw_faithfulness(result, tmp_path / "curve.png")
    picture = pixels(tmp_path / "curve.png")
    assert (picture[0, 0] == 255).all()
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x5B, 0x62, 0x6B)):
        assert shows(picture, color)


def test_any_number_of_methods_is_drawn(tmp_path):
    draw_faithfulness(faithfulness_result(9) | {"metric": "euclidean"}, tmp_path / "curve.png")
    assert pixels(tmp_path / "curve.png").std() > 0


def test_randomisation_shows_the_correlation_also_below_zero_and_without_a_scale(tmp_path):
    for between in (0.4, None):
        draw_randomisation(randomisation_result(between), tmp_path / "curve.png")
        picture = pixels(tmp_path / "curve.png")
        assert (picture[0, 0] == 255).all()
        assert shows(picture, (0x00, 0x72, 0xB2))
        assert shows(picture, (0xD5, 0x5E, 0x00))


def test_missing_matplotlib_names_the_extra_for_all_curves(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw, result in ((draw_faithfulness, faithfulness_result()), (draw_randomisation, randomisation_result(0.4))):
        with pytest.raises(MissingDependencyError, match=r'pip install "embedcam\[train\]"'):
            draw(result, tmp_path / "curve.png")
