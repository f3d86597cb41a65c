"""What two images share, against the same sums written out cell by cell."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import embedcam
from embedcam.batch.comparison import explain_against
from embedcam.data.images import read_image
from embedcam.database import WeightDatabase
from embedcam.errors import DataError, NetworkError, OutputError
from embedcam.explain import Explainer
from embedcam.explain.comparison import Against
from embedcam.explain.contributions import common_embedding
from embedcam.explain.explanation import FLAT, NOT_FINITE
from embedcam.nets import EmbeddingNet, wrap

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
OTHERS = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(2))


def make(metric="cosine", hidden=None):
    torch.manual_seed(4)
    net = EmbeddingNet("tiny", 8, image_size=32, metric=metric, hidden=hidden).eval()
    last = net.head if hidden is None else net.head[-1]
    with torch.no_grad():  # an untrained network tells little apart: take off what all images have in common
        last.bias -= torch.cat([net.head(net.backbone(images)) for images in (IMAGES, OTHERS)]).mean(dim=0)
        last.weight *= 10
        last.bias *= 10
    return net


def both_sides(found):
    return found.contributions.images, found.contributions.other


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("hidden", [None, 16])
@pytest.mark.parametrize("others", [1, 3])
def test_the_contributions_of_either_image_sum_to_the_similarity(metric, hidden, others):
    net = make(metric, hidden)
    found = Against(net)(IMAGES, OTHERS[:others])

    with torch.no_grad():
        z, other = net(IMAGES).double(), net(OTHERS[:others]).double()
    np.testing.assert_allclose(found.similarity, (z * other).sum(dim=1), rtol=1e-5, atol=1e-6)
    assert [side.shape for side in both_sides(found)] == [(3, *net.map_size), (3, 12, 10)]
    assert all((side > 0).any() and (side < 0).any() for side in both_sides(found)), "the test is of both signs"
    for side, rest in zip(both_sides(found), (found.rest.images, found.rest.other), strict=True):
        np.testing.assert_allclose(side.sum(axis=(1, 2)) + rest, found.similarity, rtol=1e-4, atol=1e-5)
    if metric == "cosine":
        np.testing.assert_allclose(found.distances, 1 - found.similarity, atol=1e-6)
    else:
        np.testing.assert_allclose(found.distances, (z - other).norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_contribution_is_that_of_the_cells_own_embedding(metric):
    net = make(metric)
    found = Against(net)(IMAGES, OTHERS)

    with torch.no_grad():
        for i in range(3):
            for images, partners, side in zip((IMAGES, OTHERS), (OTHERS, IMAGES), both_sides(found), strict=True):
                maps, towards = net.backbone.features(images[i : i + 1])[0], net(partners[i : i + 1])[0]
                length = net.head(maps.mean(dim=(1, 2))).norm() if metric == "cosine" else 1
                for y in range(maps.shape[1]):
                    for x in range(maps.shape[2]):
                        share = net.head(maps[:, y, x]) @ towards / length / maps[0].numel()
                        assert side[i, y, x] == pytest.approx(float(share), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("hidden", [None, 16])
def test_contributions_are_gradient_times_activation_and_an_even_share_of_the_biases(metric, hidden):
    net = make(metric, hidden)
    found = Against(net)(IMAGES, OTHERS)

    maps = net.backbone.features(IMAGES).detach().requires_grad_()
    output, towards = net.head(maps.mean(dim=(2, 3))), net(OTHERS).detach()
    length = output.detach().norm(dim=1) if metric == "cosine" else torch.ones(3)
    score = (output * towards).sum(dim=1) / length
    (gradient,) = torch.autograd.grad(score.sum(), maps)
    by_maps = (gradient * maps).sum(dim=1)
    rest = (score - by_maps.sum(dim=(1, 2))) / by_maps[0].numel()
    expected = by_maps + rest[:, None, None]
    np.testing.assert_allclose(found.contributions.images, expected.detach(), rtol=1e-4, atol=1e-6)


def test_the_euclidean_distance_is_what_the_similarity_leaves_of_both_lengths():
    net = make("euclidean")
    common = np.arange(8, dtype=np.float32) / 4
    found = Against(net, common=common)(IMAGES, OTHERS)

    with torch.no_grad():
        z, other = net(IMAGES).numpy() - common, net(OTHERS).numpy() - common
    np.testing.assert_allclose(found.contributions.images.sum(axis=(1, 2)), found.similarity, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.contributions.other.sum(axis=(1, 2)), found.similarity, rtol=1e-4, atol=1e-4)
    lengths = (z**2).sum(axis=1) + (other**2).sum(axis=1)
    np.testing.assert_allclose(-(found.distances**2), 2 * found.similarity - lengths, rtol=1e-3, atol=1e-4)


def test_moving_all_embeddings_of_a_euclidean_network_changes_nothing_if_what_is_common_moves_too():
    net = make("euclidean")
    before = Against(net, common=np.full(8, 0.5, dtype=np.float32))(IMAGES, OTHERS)
    with torch.no_grad():
        net.head.bias += 2
    after = Against(net, common=np.full(8, 2.5, dtype=np.float32))(IMAGES, OTHERS)
    np.testing.assert_allclose(after.contributions.images, before.contributions.images, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(after.contributions.other, before.contributions.other, rtol=1e-3, atol=1e-5)


def test_an_image_and_itself_have_similarity_1_and_the_same_maps():
    found = Against(make())(IMAGES, IMAGES)
    np.testing.assert_allclose(found.similarity, 1, atol=1e-6)
    np.testing.assert_allclose(found.distances, 0, atol=1e-6)
    np.testing.assert_allclose(found.contributions.images, found.contributions.other, atol=1e-7)
    strongest = found.shared.images.heatmaps.max(axis=(1, 2))
    assert (strongest > 0.8).all(), "next to one, which a cell between pixels may miss"


def test_swapping_the_images_swaps_the_sides():
    against = Against(make())
    there, back = against(IMAGES, OTHERS), against(OTHERS, IMAGES)
    np.testing.assert_allclose(there.similarity, back.similarity, atol=1e-6)
    for what in ("shared", "differs"):
        ours, theirs = getattr(there, what), getattr(back, what)
        np.testing.assert_allclose(ours.images.heatmaps, theirs.other.heatmaps, atol=1e-5)
        np.testing.assert_allclose(ours.other.heatmaps, theirs.images.heatmaps, atol=1e-5)


def test_maps_are_the_signed_contributions_placed_and_cut_in_two():
    found = Against(make(), placement="stretch")(IMAGES, OTHERS)
    sides = (
        (found.contributions.images, (32, 32), found.shared.images, found.differs.images),
        (found.contributions.other, (48, 40), found.shared.other, found.differs.other),
    )
    for cells, size, shared, differs in sides:
        density = torch.from_numpy(cells * cells[0].size)[:, None]
        placed = nn.functional.interpolate(density, size, mode="bilinear", align_corners=False)[:, 0].numpy()
        np.testing.assert_allclose(shared.raw, np.maximum(placed, 0), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(differs.raw, np.maximum(-placed, 0), rtol=1e-3, atol=1e-5)


def test_cells_are_placed_where_the_network_looked():
    net = make()
    placed, stretched = (Against(net, placement=p)(IMAGES, OTHERS) for p in ("receptive-field", "stretch"))
    geometry = embedcam.nets.receptive_field.geometry(net.backbone, "features", (32, 32))
    density = placed.contributions.images * placed.contributions.images[0].size
    expected = embedcam.explain.maps.place(density, geometry, (32, 32)).clip(min=0)
    np.testing.assert_allclose(placed.shared.images.raw, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(placed.shared.images.raw, stretched.shared.images.raw)


def test_the_four_maps_of_a_pair_have_one_scale_and_a_weak_match_is_drawn_faintly():
    net = make()
    against = Against(net)
    found = against(IMAGES, OTHERS)
    own = [against(images, images).contributions.images for images in (IMAGES, OTHERS)]
    for i in range(3):
        cells = [*both_sides(found), *own]
        scale = max(float(np.abs(side[i]).max()) * side[i].size for side in cells)
        for part in (found.shared, found.differs):
            for side in (part.images, part.other):
                np.testing.assert_allclose(side.heatmaps[i], side.raw[i] / scale, rtol=1e-4, atol=1e-6)
                assert 0 <= side.heatmaps[i].min() <= side.heatmaps[i].max() <= 1
                assert side.notes[i] == []
    # Whatever matches with nothing is drawn as nothing, not blown up.
    seen = against.see(IMAGES[:1])
    nothing = against(seen, seen._replace(embeddings=torch.full((1, 8), 1e-6)))
    assert 0 < max(part.images.heatmaps.max() for part in (nothing.shared, nothing.differs)) < 1e-4


def test_what_a_pass_has_seen_can_be_compared_again():
    against = Against(make())
    once, again = against(IMAGES, OTHERS[:1]), against(IMAGES, against.see(OTHERS[:1]))
    np.testing.assert_array_equal(once.contributions.images, again.contributions.images)
    np.testing.assert_array_equal(once.shared.other.heatmaps, again.shared.other.heatmaps)
    one_by_one = against(IMAGES[2:], OTHERS[:1])
    np.testing.assert_allclose(one_by_one.shared.other.heatmaps[0], once.shared.other.heatmaps[2], atol=1e-5)


def test_each_image_runs_through_the_network_once_without_a_gradient_and_the_mode_is_put_back():
    net = make()
    against = Against(net, placement="stretch")
    net.train()
    net.backbone.features[1].eval()
    before = [module.training for module in net.modules()]
    passes = []
    handle = net.backbone.register_forward_hook(lambda _, inputs, output: passes.append((len(output), output.grad_fn)))
    found = against(IMAGES, OTHERS[:1])
    handle.remove()
    assert passes == [(3, None), (1, None)]
    assert [module.training for module in net.modules()] == before
    assert all(parameter.grad is None for parameter in net.parameters())
    assert found.shared.images.overlay(IMAGES)[0].shape == (32, 32, 3)


def test_an_image_that_is_not_finite_spoils_its_own_pair_only():
    against = Against(make())
    images = IMAGES.clone()
    images[1, 0, 5, 5] = float("nan")
    found = against(images, OTHERS)
    fine = against(IMAGES, OTHERS)

    for part, expected in ((found.shared, fine.shared), (found.differs, fine.differs)):
        for side, right in ((part.images, expected.images), (part.other, expected.other)):
            assert [bool(notes) for notes in side.notes] == [False, True, False]
            assert side.notes[1] == [NOT_FINITE]
            assert not side.heatmaps[1].any()
            np.testing.assert_allclose(side.heatmaps[[0, 2]], right.heatmaps[[0, 2]], atol=1e-5)
    assert np.isnan(found.similarity[1])
    everything = against(IMAGES, images[1:2])
    assert everything.shared.images.notes == [[NOT_FINITE]] * 3


def test_a_network_that_says_nothing_gives_flat_maps_and_a_note():
    net = make()
    against = Against(net)
    for parameter in net.head.parameters():
        parameter.data.zero_()
    found = against(IMAGES, OTHERS)
    assert not found.shared.other.heatmaps.any()
    assert found.differs.images.notes == [[FLAT]] * 3


def test_an_empty_batch_gives_empty_maps():
    found = Against(make())(IMAGES[:0], OTHERS[:1])
    assert found.shared.images.heatmaps.shape == (0, 32, 32)
    assert found.differs.other.heatmaps.shape == (0, 48, 40)


@pytest.mark.parametrize("spoil", ["wrapped", "pooling", "head"])
def test_any_decomposable_network_compares(spoil):
    net = make()
    if spoil == "wrapped":
        net = wrap(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    elif spoil == "pooling":
        net.backbone.pool = nn.AdaptiveMaxPool2d(1)
    else:
        net.head = nn.Sequential(nn.Linear(net.channels, 4), nn.Tanh(), nn.Linear(4, 8))
    found = Against(net)(IMAGES, OTHERS)
    for side, rest in zip(both_sides(found), (found.rest.images, found.rest.other), strict=True):
        np.testing.assert_allclose(side.sum(axis=(1, 2)) + rest, found.similarity, atol=1e-5)


def test_networks_whose_similarity_cannot_be_decomposed_are_refused_with_another_way():
    net = make()
    net.layer = "features.8"
    with pytest.raises(NetworkError, match=r"cannot be decomposed over the cells of .*Similarity\(reference\)"):
        Against(net)


def test_options_that_cannot_be_used_are_named():
    net = make()
    with pytest.raises(DataError, match="got 2 others for 3 images; give one, or one per image"):
        Against(net)(IMAGES, OTHERS[:2])
    with pytest.raises(DataError, match="unknown placement 'middle'"):
        Against(net, placement="middle")
    with pytest.raises(DataError, match=r"common must be one embedding \(8,\), got \(3, 8\)"):
        Against(net, common=np.zeros((3, 8), dtype=np.float32))


def test_an_explainer_gives_network_geometry_and_preprocessing(trained):
    explainer = Explainer(EmbeddingNet.load(trained / "net.safetensors"), trained / "weights.h5")
    of_explainer, of_network = Against(explainer), Against(explainer.net)
    assert of_explainer.preprocess == explainer.preprocess
    np.testing.assert_allclose(
        of_explainer(IMAGES, OTHERS).shared.images.heatmaps,
        of_network(IMAGES, OTHERS).shared.images.heatmaps,
        atol=1e-5,
    )


def test_what_training_images_have_in_common_is_their_mean_and_euclidean_explainers_take_it_off(trained):
    db = WeightDatabase.load(trained / "weights.h5")
    by_hand = sum(n * c for n, c in zip(db.counts, db.centroids, strict=True)) / db.counts.sum()
    np.testing.assert_allclose(common_embedding(db), by_hand, atol=1e-6)

    explainer = Explainer(EmbeddingNet.load(trained / "net.safetensors"), db)
    explainer.module.net = copy.copy(explainer.net)
    explainer.net.metric = "euclidean"
    explainer.net.layer = explainer.net.layer  # what follows it is measured again
    found, expected = Against(explainer)(IMAGES, OTHERS), Against(explainer.net, common=by_hand.astype(np.float32))
    np.testing.assert_allclose(found.similarity, expected(IMAGES, OTHERS).similarity, atol=1e-6)
    plain = Against(explainer.net)(IMAGES, OTHERS)
    assert not np.allclose(found.similarity, plain.similarity, atol=1e-3)


def write_picture(path, size=(40, 40), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_files_say_what_comparing_says(tmp_path):
    net = make()
    inputs = [write_picture(tmp_path / "in" / f"{n}.png", seed=n) for n in range(3)]
    other = write_picture(tmp_path / "other.png", size=(60, 30), seed=9)
    against = Against(net, preprocess=replace(net.preprocess, input_size=(48, 48)))
    lines = explain_against(against, [tmp_path / "in"], other, tmp_path / "out", batch_size=2)

    assert lines == [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    batch = torch.from_numpy(np.stack([against.preprocess(read_image(file)) for file in inputs]))
    found = against(batch, torch.from_numpy(against.preprocess(read_image(other))[None]))
    for i, line in enumerate(lines):
        assert (line["image"], line["other"]) == (str(inputs[i]), str(other))
        assert line["similarity"] == pytest.approx(found.similarity[i], abs=1e-5)
        assert line["distance"] == pytest.approx(found.distances[i], abs=1e-5)
        for side, cells in (("image", found.contributions.images[i]), ("other", found.contributions.other[i])):
            assert line["for"][side] == pytest.approx(cells[cells > 0].sum(), abs=1e-5)
            assert line["against"][side] == pytest.approx(cells[cells < 0].sum(), abs=1e-5)
            assert line["for"][side] + line["against"][side] == pytest.approx(line["similarity"], abs=1e-5)
        assert line["notes"] == []
        width, height = Image.open(tmp_path / "out" / line["pair"]).size
        assert line["pair"] == f"pairs/{i}.png.png"
        assert width > 3 * 240
        assert height > 240 + 120
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["pairs", "pairs.jsonl"]


def test_an_unreadable_image_is_left_out_or_an_error_and_an_unreadable_other_always_one(tmp_path, caplog):
    net = make()
    good, bad = write_picture(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:100])
    (line,) = explain_against(net, [good, bad], good, tmp_path / "out")
    assert line["image"] == str(good)
    assert line["similarity"] == pytest.approx(1, abs=1e-5)
    assert "1 of 2 images could not be read and were left out" in caplog.text
    with pytest.raises(DataError, match=r"cannot read .*bad.png"):
        explain_against(net, [good, bad], good, tmp_path / "strict", strict=True)
    for other in (bad, tmp_path / "nowhere.png"):
        with pytest.raises(DataError, match=other.name):
            explain_against(net, [good], other, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(OutputError, match="cannot write"):
        explain_against(net, [good], good, good)
