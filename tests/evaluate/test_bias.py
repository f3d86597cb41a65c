"""A planted bias is found, and none where there is none."""

import numpy as np
import pytest
from stamped import colour_net, write_pictures

from embedcam.data import load
from embedcam.evaluate.bias import Pair, pairs, summarise
from embedcam.evaluate.objects import Objects, Region, Share, share_off
from embedcam.evaluate.search import search, side_of_index
from embedcam.gallery import Gallery, index

READING = {"batch_size": 4, "workers": 0}


def measure(root, **pictures):
    spec, net = write_pictures(root, **pictures), colour_net()
    samples = load(spec)
    index(net, samples, root / "gallery.h5", workers=0)
    found = search(net, samples, side_of_index(root / "gallery.h5", samples), **READING)
    with Gallery.open(root / "gallery.h5", net) as gallery:
        objects = Objects(samples)
        return list(pairs(found, gallery, objects, **READING)), objects


@pytest.mark.parametrize("masks", [True, False])
def test_a_stamp_in_the_border_is_found(tmp_path, masks):
    measured, objects = measure(tmp_path, stamped=True, masks=masks)
    summary = summarise([pair for pair, _ in measured], objects.kind)
    assert summary["object"] == ("mask" if masks else "border")
    assert summary["pairs"] == 2 * 18
    by_class = {row["labels"][0]: row for row in summary["rows"] if row["group"] == "class"}
    assert all(by_class[name]["biased"] for name in ("blue", "green", "red"))
    assert by_class["green"]["off"] > 0.6
    assert by_class["green"]["expected"] == pytest.approx(1 - 24**2 / 32**2)
    right = next(row for row in summary["rows"] if row["group"] == "all" and row["right"])
    assert right["biased"]
    assert right["interval"][0] <= right["off"] <= right["interval"][1]


@pytest.mark.parametrize("masks", [True, False])
def test_no_bias_is_found_where_the_object_is_seen(tmp_path, masks):
    measured, objects = measure(tmp_path, stamped=False, masks=masks)
    summary = summarise([pair for pair, _ in measured], objects.kind)
    assert not any(row["biased"] for row in summary["rows"])
    assert all(row["off"] < 0.3 for row in summary["rows"] if row["right"])


def test_pairs_are_the_nearest_right_and_wrong_image(tmp_path):
    measured, _ = measure(tmp_path, stamped=False)
    samples = load(f"folder:{tmp_path}@all")
    for pair, match in measured:
        assert match.query.id == samples.ids[pair.query]
        assert match.hit.id == samples.ids[pair.hit] != match.query.id
        assert pair.labels == (samples.names[samples.labels[pair.query]], match.hit.label)
    red = [(pair, match) for pair, match in measured if match.query.id == "blue/0.png"]
    assert [pair.right for pair, _ in red] == [True, False]
    assert red[1][1].hit.label == "red"
    assert red[1][1].similarity > red[0][1].similarity


def test_the_share_off_an_object_leaves_ignored_pixels_out():
    inside = np.array([[True, False], [False, False]])
    counted = np.array([[True, True], [False, True]])
    share = share_off(np.array([[3.0, 1.0], [50.0, 0.0]], np.float32), Region(inside, counted))
    assert share == Share(pytest.approx(1 / 4), pytest.approx(2 / 3))
    assert np.isnan(share_off(np.zeros((2, 2), np.float32), Region(inside, counted)).off)


def test_rows_have_both_directions_of_a_pair_and_few_pairs_are_not_called_biased():
    one = [Pair(0, 1, ("a", "b"), Share(0.9, 0.5), 0.4), Pair(1, 0, ("b", "a"), Share(0.7, 0.5), 0.2)]
    rows = [row for row in summarise(one, "mask")["rows"] if row["group"] == "pair of classes"]
    assert [(row["labels"], row["pairs"], row["biased"]) for row in rows] == [(["a", "b"], 2, False)]
    assert (rows[0]["off"], rows[0]["similarity"]) == (pytest.approx(0.8), pytest.approx(0.3))
    assert rows[0]["excess"] == pytest.approx(0.3)
    many = summarise(one * 3, "mask")["rows"]
    assert all(row["biased"] for row in many)
    assert summarise([], "mask")["rows"] == []
