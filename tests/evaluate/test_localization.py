import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score

from embedcam.errors import DataError
from embedcam.evaluate.localization import Localization
from embedcam.evaluate.scores import THRESHOLDS, MeanRatio
from embedcam.show.boxes import find_boxes, iou, mask_box

SQUARE = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)


def scores(heatmap, mask=SQUARE, ignore=None):
    localization = Localization()
    localization.add(*(None if a is None else np.asarray(a)[None] for a in (heatmap, mask, ignore)))
    return localization.result()


def records(localization):
    """What the scores keep of each image."""
    scores = localization.scores
    return {
        "mean_ratio": scores["mean_ratio"].records,
        "pointing": scores["pointing"].records,
        "iou": scores["iou"].records["iou"],
        "box_50": scores["iou"].records["box_50"],
    }


def random_batch(seed=0, images=12, size=16):
    """Smooth maps of 41 exact levels (ties everywhere), blobs as masks, a fifth of the pixels ignored."""
    rng = np.random.default_rng(seed)
    heatmaps = ndimage.gaussian_filter(rng.random((images, size, size)), (0, 2, 2))
    heatmaps -= heatmaps.min(axis=(1, 2), keepdims=True)
    heatmaps = np.round(40 * heatmaps / heatmaps.max(axis=(1, 2), keepdims=True)) / 40
    masks = ndimage.gaussian_filter(rng.random((images, size, size)), (0, 2, 2)) > 0.5
    ignore = rng.random((images, size, size)) < 0.2
    return heatmaps.astype(np.float32), masks, ignore


def brute_force(heatmap, mask, ignore):
    """Every per-image score by loops over the pixels that count."""
    pixels = [(y, x) for y in range(heatmap.shape[0]) for x in range(heatmap.shape[1]) if not ignore[y, x]]
    inside = sum(float(heatmap[p]) for p in pixels if mask[p])
    highest = max(heatmap[p] for p in pixels)
    tied = [p for p in pixels if heatmap[p] == highest]
    ious, box_ious = [], []
    cold, object_only = np.where(ignore, 0, heatmap), mask & ~ignore
    for step in range(1, 20):
        hot = {p for p in pixels if heatmap[p] >= np.float32(step / 20)}
        object_pixels = {p for p in pixels if mask[p]}
        ious.append(len(hot & object_pixels) / len(hot | object_pixels))
        boxes = find_boxes(cold, step / 20)
        box_ious.append(iou(boxes[0], mask_box(object_only)) if boxes else 0.0)
    return {
        "mean_ratio": inside / sum(float(heatmap[p]) for p in pixels),
        "pointing": sum(bool(mask[p]) for p in tied) / len(tied),
        "iou": ious,
        "box_50": [value >= 0.5 for value in box_ious],
    }


def test_hand_worked_map():
    heatmap = np.array([[1.0, 0.5, 0.5, 0], [0.25, 0.25, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.5]], dtype=np.float32)
    result = scores(heatmap)
    assert result["images"] == 1
    assert result["mean_ratio"] == pytest.approx(2 / 3)
    assert result["iou_50"] == pytest.approx(2 / 6)  # hot: 4 pixels, 2 of them on the object of 4
    assert result["best_iou"] == pytest.approx(4 / 6)  # at 0.25 and below: 6 pixels, all 4 of the object
    assert result["best_threshold"] == 0.05
    assert result["pointing"] == 1
    # Levels 1, 0.5, 0.25, 0 with 1, 3, 2, 10 pixels, of which 1, 1, 2, 0 are on the object.
    assert result["pixel_ap"] == pytest.approx((1 / 1 + 1 * 2 / 4 + 2 * 4 / 6) / 4)
    # Largest component: the top 3 x 2 pixels, against the 2 x 2 object.
    assert result["box_50"] == 1


def test_perfect_map_scores_one():
    result = scores(SQUARE.astype(np.float32))
    assert {name: value for name, value in result.items() if name not in ("best_threshold", "images")} == {
        "mean_ratio": 1, "iou_50": 1, "best_iou": 1, "pointing": 1, "pixel_ap": 1, "box_50": 1,
    }  # fmt: skip


def test_zero_map_scores_zero_but_keeps_its_pixels_in_the_average_precision():
    result = scores(np.zeros((4, 4), np.float32))
    assert [result[name] for name in ("mean_ratio", "iou_50", "best_iou", "pointing", "box_50")] == [0] * 5
    assert result["pixel_ap"] == pytest.approx(4 / 16)  # no better than chance: the object's share


@pytest.mark.parametrize("step", range(1, 20))
def test_heat_that_equals_a_threshold_is_hot(step):
    heatmap = SQUARE * np.float32(step / 20)
    localization = Localization()
    localization.add(heatmap[None], SQUARE[None])
    assert records(localization)["iou"][0].tolist() == [1.0] * step + [0.0] * (19 - step)


def test_thresholds_are_the_floats_that_a_reader_writes():
    written = "0.05 0.1 0.15 0.2 0.25 0.3 0.35 0.4 0.45 0.5 0.55 0.6 0.65 0.7 0.75 0.8 0.85 0.9 0.95"
    assert " ".join(str(threshold) for threshold in THRESHOLDS) == written


def test_tied_strongest_pixels_count_by_their_share_on_the_object():
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[0] = 1  # a flat top edge: 2 of its 4 pixels are on the object
    assert scores(heatmap)["pointing"] == 0.5
    assert scores(heatmap[::-1, ::-1], SQUARE[::-1, ::-1])["pointing"] == 0.5


def test_best_threshold_is_one_for_the_whole_set():
    localization = Localization()
    # One map is right up to 0.3, the other only above 0.6: one of each favours the low thresholds, where the
    # second still has 4 of 16 pixels right; two of the second favour the high ones.
    spread = np.full((4, 4), 0.6, np.float32)
    spread[SQUARE] = 1
    localization.add(np.stack([SQUARE * np.float32(0.3), spread]), np.stack([SQUARE, SQUARE]))
    result = localization.result()
    assert result["best_iou"] == pytest.approx((1 + 1 / 4) / 2)
    assert result["best_threshold"] == 0.05
    localization.add(spread[None], SQUARE[None])
    result = localization.result()
    assert result["best_iou"] == pytest.approx((0 + 1 + 1) / 3)
    assert result["best_threshold"] == 0.65
    assert result["box_50"] == pytest.approx(2 / 3)  # at 0.65 too, where the first map has no box


def test_largest_box_is_of_the_component_of_most_pixels_joined_at_corners():
    # A diagonal of 4 pixels is one component with a 4 x 4 box; a bar of 3 pixels is smaller.
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[range(4), range(4)] = 1
    heatmap[6, 0:3] = 1
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = True
    assert scores(heatmap, mask)["box_50"] == 1
    bar = np.zeros((8, 8), bool)
    bar[6, 0:3] = True
    assert scores(heatmap, bar)["box_50"] == 0


def test_box_iou_of_exactly_one_half_counts():
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[0, :2] = 1
    assert scores(heatmap)["box_50"] == 1  # 2 of 4 pixels
    heatmap[0, 1] = 0
    assert scores(heatmap)["box_50"] == 0  # 1 of 4


def test_box_of_the_mask_surrounds_all_its_parts():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[3, 3] = True
    localization = Localization()
    localization.add(np.ones((1, 4, 4), np.float32), mask[None])
    assert records(localization)["box_50"].all()


def test_ignored_pixels_change_no_score():
    heatmaps, masks, ignore = random_batch()
    plain, disturbed = Localization(), Localization()
    plain.add(heatmaps, masks, ignore)
    rng = np.random.default_rng(1)
    noise = rng.random(heatmaps.shape, dtype=np.float32)
    disturbed.add(np.where(ignore, noise, heatmaps), np.where(ignore, noise > 0.5, masks), ignore)
    assert plain.result() == disturbed.result()


def test_ignored_pixels_leave_the_average_precision():
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[3] = 1
    ignore = np.zeros((4, 4), bool)
    ignore[3] = True
    assert scores(heatmap, ignore=ignore)["pixel_ap"] == pytest.approx(4 / 12)


@pytest.mark.parametrize("seed", range(3))
def test_per_image_scores_equal_brute_force(seed):
    heatmaps, masks, ignore = random_batch(seed)
    localization = Localization()
    localization.add(heatmaps, masks, ignore)
    per_image = records(localization)
    for index, image in enumerate(zip(heatmaps, masks, ignore, strict=True)):
        for name, expected in brute_force(*image).items():
            np.testing.assert_allclose(per_image[name][index], expected, rtol=1e-12, err_msg=f"{name} {index}")


def test_result_summarises_the_per_image_scores():
    localization = Localization()
    localization.add(*random_batch())
    per_image, result = records(localization), localization.result()
    best = max(range(19), key=lambda t: per_image["iou"][:, t].mean())
    assert result["mean_ratio"] == pytest.approx(per_image["mean_ratio"].mean())
    assert result["pointing"] == pytest.approx(per_image["pointing"].mean())
    assert result["iou_50"] == pytest.approx(per_image["iou"][:, 9].mean())
    assert result["best_threshold"] == (best + 1) / 20
    assert result["best_iou"] == pytest.approx(per_image["iou"][:, best].mean())
    assert result["box_50"] == pytest.approx(per_image["box_50"][:, best].mean())


@pytest.mark.parametrize("levels", [3, 65535])
def test_pixel_ap_equals_scikit_learn_on_the_quantised_heat(levels):
    rng = np.random.default_rng(0)
    _, masks, ignore = random_batch()
    heatmaps = np.clip(rng.random(masks.shape) * 0.7 + 0.3 * masks, 0, 1)
    heatmaps = (np.rint(heatmaps * levels) / levels).astype(np.float32)
    localization = Localization()
    localization.add(heatmaps, masks, ignore)
    quantised = np.rint(heatmaps * 65535)
    expected = average_precision_score(masks[~ignore], quantised[~ignore])
    assert localization.result()["pixel_ap"] == pytest.approx(expected, abs=1e-9)


def test_batches_and_image_sizes_do_not_matter():
    heatmaps, masks, ignore = random_batch()
    whole, parts = Localization(), Localization()
    whole.add(heatmaps, masks, ignore)
    whole.add(np.ones((1, 3, 5), np.float32), np.ones((1, 3, 5), bool))
    for rows in (slice(0, 0), slice(0, 1), slice(1, 7), slice(7, None)):
        parts.add(heatmaps[rows], masks[rows], ignore[rows])
    parts.add(np.ones((1, 3, 5), np.float32), np.ones((1, 3, 5), bool), np.zeros((1, 3, 5), bool))
    assert whole.result() == parts.result()


def test_the_input_is_not_changed():
    heatmaps, masks, ignore = random_batch()
    copies = heatmaps.copy(), masks.copy(), ignore.copy()
    Localization().add(heatmaps, masks, ignore)
    for array, copy in zip((heatmaps, masks, ignore), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_shapes_that_differ_are_refused():
    with pytest.raises(DataError, match=r"\(1, 4, 4\).*\(1, 5, 5\).*must share one shape"):
        Localization().add(np.zeros((1, 4, 4), np.float32), np.ones((1, 5, 5), bool))
    with pytest.raises(DataError, match="must share one shape"):
        Localization().add(np.zeros((1, 4, 4), np.float32), np.ones((1, 4, 4), bool), np.zeros((4, 4), bool))
    with pytest.raises(DataError, match="must share one shape"):
        Localization().add(np.zeros((4, 4), np.float32), SQUARE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01, 1.01])
def test_heat_outside_the_range_is_refused_and_named(bad):
    localization = Localization()
    localization.add(np.ones((2, 4, 4), np.float32), np.ones((2, 4, 4), bool))
    heatmaps = np.ones((3, 4, 4), np.float32)
    heatmaps[1, 2, 3] = bad
    with pytest.raises(DataError, match=r"heat map 3 must lie in \[0, 1\]"):
        localization.add(heatmaps, np.ones((3, 4, 4), bool))
    assert localization.result()["images"] == 2  # nothing of the refused batch was kept


def test_empty_mask_is_refused_and_named():
    masks = np.stack([SQUARE, np.zeros_like(SQUARE)])
    with pytest.raises(DataError, match="mask 1 shows no object: it is all zero"):
        Localization().add(np.ones((2, 4, 4), np.float32), masks)
    with pytest.raises(DataError, match="mask 0 shows no object: all its pixels are ignored"):
        scores(np.ones((4, 4), np.float32), ignore=SQUARE)


def test_result_without_images_is_refused():
    with pytest.raises(DataError, match="no image was scored"):
        Localization().result()
    assert records(Localization())["iou"].shape == (0, 19)


def test_merged_states_give_the_scores_of_all_images():
    heatmaps, masks, ignore = random_batch()
    whole, parts = Localization(), Localization()
    whole.add(heatmaps, masks, ignore)
    for rows in (slice(0, 5), slice(5, None)):
        part = Localization()
        part.add(heatmaps[rows], masks[rows], ignore[rows])
        parts.merge(part.state())
    assert parts.result() == whole.result() and parts.intervals() == whole.intervals()


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    mask = np.zeros((80, 1, 2), bool)
    mask[..., 0] = True
    for seed in range(60):
        values = rng.random(80)
        score = MeanRatio()
        score.add(np.stack([values, 1 - values], axis=1)[:, None], mask, np.zeros_like(mask))
        localization = Localization()
        localization.scores, localization.images = {"mean_ratio": score}, 80
        low, high = localization.intervals(seed)["mean_ratio"]
        covered += low <= 0.5 <= high
        # The normal approximation of the same interval.
        assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(80), rel=0.15)
    assert 52 <= covered <= 60


def test_each_bootstrap_sample_chooses_its_own_threshold():
    """The interval of the best IoU is that of a loop over samples that computes every image's IoU anew."""
    heatmaps, masks, ignore = random_batch(images=6)
    localization = Localization()
    localization.add(heatmaps, masks, ignore)
    images = [brute_force(*image) for image in zip(heatmaps, masks, ignore, strict=True)]
    generator, drawn = np.random.default_rng(5), {"best_iou": [], "box_50": [], "pointing": []}
    for _ in range(1000):
        sample = [images[i] for i in generator.integers(6, size=6)]
        means = np.mean([image["iou"] for image in sample], axis=0).round(12)
        best = int(means.argmax())
        drawn["best_iou"].append(means[best])
        drawn["box_50"].append(np.mean([image["box_50"][best] for image in sample]))
        drawn["pointing"].append(np.mean([image["pointing"] for image in sample]))
    intervals = localization.intervals(5)
    assert "pixel_ap" not in intervals
    for key, values in drawn.items():
        assert intervals[key] == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=1e-9)
