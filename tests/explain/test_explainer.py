"""The online half against the same arithmetic written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import embedcam
from embedcam.database import WeightDatabase
from embedcam.errors import DatabaseError, DataError
from embedcam.explain.explanation import FLAT, NOT_FINITE
from embedcam.explain.maps import place
from embedcam.nets import EmbeddingNet
from embedcam.nets.dense import DenseNet

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pair(trained):
    return EmbeddingNet.load(trained / "net.safetensors"), WeightDatabase.load(trained / "weights.h5")


@pytest.mark.parametrize("transfer", ["cluster", "nearest"])
def test_the_map_is_the_weighted_sum_of_the_transferred_channels(pair, transfer):
    net, db = pair
    found = embedcam.Explainer(net, db, transfer=transfer, placement="stretch")(IMAGES)

    with torch.no_grad():
        maps, z = net.backbone.features(IMAGES).numpy(), net(IMAGES).numpy()
    similarity = z @ db.centroids.T
    near = (z @ db.exemplars.embeddings.T).argmax(axis=1)
    cluster = similarity.argmax(axis=1)
    for i in range(3):
        source, row = (db, cluster[i]) if transfer == "cluster" else (db.exemplars, near[i])
        summed = sum(w * maps[i, c] for c, w in zip(source.top_channels[row], source.top_weights[row], strict=True))
        raw = torch.nn.functional.interpolate(
            torch.from_numpy(np.maximum(summed, 0))[None, None], (32, 32), mode="bilinear", align_corners=False
        )[0, 0].numpy()
        np.testing.assert_allclose(found.raw[i], raw, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(found.heatmaps[i], (raw - raw.min()) / (raw.max() - raw.min()), atol=1e-5)
    np.testing.assert_array_equal(found.clusters, cluster)
    np.testing.assert_array_equal(found.neighbors, near)
    np.testing.assert_allclose(found.distances, 1 - similarity.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.embeddings, z, atol=1e-6)


def test_cells_are_placed_where_the_network_looked(pair):
    net, db = pair
    assert db.geometry == embedcam.nets.receptive_field.geometry(net.backbone, "features", (32, 32))
    placed, stretched = (embedcam.Explainer(net, db, placement=p)(IMAGES) for p in ("receptive-field", "stretch"))
    assert not np.allclose(placed.heatmaps, stretched.heatmaps)


def test_one_image_at_a_time_gives_what_the_batch_gives(spread):
    explainer = embedcam.Explainer(*spread)
    batch = explainer(IMAGES)
    for i in range(3):
        np.testing.assert_allclose(explainer(IMAGES[i : i + 1]).heatmaps[0], batch.heatmaps[i], atol=1e-5)


def test_no_gradient_is_made_and_the_mode_is_put_back(pair):
    net, db = pair
    explainer = embedcam.Explainer(net, db)
    net.train()
    net.backbone.features[1].eval()
    before = [module.training for module in net.modules()]
    explainer(IMAGES)
    assert [module.training for module in net.modules()] == before
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.feature_layer._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gives_nearly_the_same_maps(pair, dtype):
    exact, rough = (embedcam.Explainer(*pair, transfer="cluster", autocast=cast)(IMAGES) for cast in (None, dtype))
    assert rough.heatmaps.dtype == np.float32
    assert np.corrcoef(exact.heatmaps.ravel(), rough.heatmaps.ravel())[0, 1] > 0.98


def test_an_empty_batch_gives_an_empty_explanation(pair):
    assert embedcam.Explainer(*pair)(IMAGES[:0]).heatmaps.shape == (0, 32, 32)


def test_images_that_are_not_finite_get_a_zero_map_and_a_note(pair):
    images = IMAGES.clone()
    images[1, 0, 5, 5] = float("nan")
    found = embedcam.Explainer(*pair)(images)

    assert not found.heatmaps[1].any()
    assert found.notes[1] == [NOT_FINITE]
    assert found.heatmaps[[0, 2]].any(axis=(1, 2)).all()


def test_a_map_without_positive_weights_is_flat_and_noted(pair):
    net, db = pair
    negative = -np.abs(db.top_weights)
    db = replace(db, top_weights=np.sort(negative, axis=1)[:, ::-1].copy(), exemplars=None)
    found = embedcam.Explainer(net, db, transfer="cluster")(IMAGES)
    assert not found.heatmaps.any()
    assert all(FLAT in notes for notes in found.notes)


def test_an_image_unlike_the_training_images_is_noted(pair):
    net, db = pair
    near = replace(db, distance_quantiles=np.zeros_like(db.distance_quantiles))
    found = embedcam.Explainer(net, near)(IMAGES)
    assert all(note.startswith("unlike the training images") for (note,) in found.notes)
    np.testing.assert_array_equal(found.typicality, 0)


def test_a_database_of_another_network_is_refused(pair):
    _, db = pair
    torch.manual_seed(5)
    other = EmbeddingNet("tiny", 8, image_size=32)
    with pytest.raises(DatabaseError, match="made for another network: sha256"):
        embedcam.Explainer(other, db)
    with pytest.raises(DatabaseError, match=r"dim 8 recorded, 9 in the network"):
        embedcam.Explainer(EmbeddingNet("tiny", 9, image_size=32), db)
    with pytest.raises(DatabaseError, match="input_size"):
        embedcam.Explainer(EmbeddingNet("tiny", 8, image_size=48), db)
    with pytest.raises(DatabaseError, match="made for another network: .*no layer 'features'"):
        embedcam.Explainer(EmbeddingNet("resnet18", 8, image_size=32), db)


def test_the_layer_of_the_database_is_used_and_the_network_left_at_its_own(pair, folder):
    net, _ = pair
    net.layer = "features.11"
    db = embedcam.build_database(net, f"folder:{folder}", clusters=2, top_k=4, pairs=2)
    net.layer = "features"
    found = embedcam.Explainer(net, db)(IMAGES)

    assert found.heatmaps.shape == (3, 32, 32)
    assert net.layer == "features"


def test_options_that_cannot_be_used_are_named(pair):
    net, db = pair
    with pytest.raises(DatabaseError, match="holds no exemplars"):
        embedcam.Explainer(net, replace(db, exemplars=None), transfer="nearest")
    with pytest.raises(DatabaseError, match="unknown transfer 'best'"):
        embedcam.Explainer(net, db, transfer="best")
    with pytest.raises(DatabaseError, match="unknown placement 'middle'"):
        embedcam.Explainer(net, db, placement="middle")
    with pytest.raises(DatabaseError, match="unknown preset 'best'; use one of default, fast, fine, paper"):
        embedcam.Explainer(net, db, preset="best")
    with pytest.raises(DatabaseError, match="has no finer layer to fuse"):
        embedcam.Explainer(net, db, fused=True)


def test_a_path_is_as_good_as_a_database(trained):
    explainer = embedcam.Explainer(EmbeddingNet.load(trained / "net.safetensors"), trained / "weights.h5")
    assert explainer(IMAGES).heatmaps.shape == (3, 32, 32)


def test_soft_contrast_of_two_layers_by_hand(fused):
    net, db = fused
    images = torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    found = embedcam.Explainer(net, db, transfer="soft-contrast", fused=True)(images)

    kept = {}
    handles = [
        net.get_submodule(f"backbone.{name}").register_forward_hook(
            lambda _, __, out, name=name: kept.update({name: out.numpy().copy()})
        )
        for name in ("layer3", "layer4")
    ]
    with torch.no_grad():
        z = net(images).numpy()
    for handle in handles:
        handle.remove()
    distance = 1 - z @ db.centroids.T
    scale = db.distance_scale((96, 96))
    spread = np.median(np.repeat(db.distance_quantiles[:, 0], db.counts))
    for i in range(3):
        share = np.exp(-distance[i] / scale / spread)
        share /= share.sum()
        maps = []
        for layer, mean in (("layer4", db.weights_mean), ("layer3", db.fusion.weights_mean)):
            weights = share @ mean - mean.mean(axis=0)
            strongest = np.argsort(-weights)[:12]
            maps.append(np.maximum(np.tensordot(weights[strongest], kept[layer][i, strongest], 1), 0))
        coarse, fine = maps
        # Cell i of layer3 (6 x 6, every 16 pixels from 0.5 on) lies at cell i / 2 of layer4 (3 x 3, every 32).
        at = np.minimum(np.arange(6) / 2, 2)
        lower = np.minimum(at.astype(int), 1)
        mix = np.zeros((6, 3))
        mix[np.arange(6), lower], mix[np.arange(6), lower + 1] = 1 - (at - lower), at - lower
        product = fine * (mix @ coarse @ mix.T)
        product = np.minimum(product, np.sort(product.ravel())[-1])  # 1.5 % of 36 cells, rounded up
        pixel = np.clip((np.arange(96) + 0.5 - 0.5) / 16, 0, 5)
        near = np.minimum(pixel.astype(int), 4)
        out = np.zeros((96, 6))
        out[np.arange(96), near], out[np.arange(96), near + 1] = 1 - (pixel - near), pixel - near
        expected = out @ product @ out.T
        np.testing.assert_allclose(found.raw[i], expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_naming_a_transfer_gives_one_layer_unless_two_are_asked_for(fused):
    net, db = fused
    assert db.fusion.layer == "layer3"
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    maps = {
        name: embedcam.Explainer(DenseNet(net) if name == "both" else net, db, **options)(images).raw
        for name, options in {
            "default": {},
            "named": {"transfer": "cells"},
            "both": {"transfer": "cells", "fused": True},  # with denser cells, since there are only 4 x 4
            "paper": {"preset": "paper"},
            "cluster": {"transfer": "cluster", "placement": "stretch"},
        }.items()
    }
    np.testing.assert_array_equal(maps["default"], maps["both"])
    np.testing.assert_array_equal(maps["paper"], maps["cluster"])
    assert not np.allclose(maps["default"], maps["named"])


def test_images_are_prepared_for_the_size_that_explains_best(fused):
    net, db = fused
    assert net.preprocess.input_size == (64, 64)
    assert embedcam.Explainer(net, db).preprocess.input_size == db.refinement.input_size == (128, 128)
    assert embedcam.Explainer(net, db, preset="paper").preprocess.input_size == (64, 64)
    assert embedcam.Explainer(net, db, explain_size=96).preprocess.input_size == (96, 96)


def test_typicality_allows_for_the_size_that_was_looked_at(fused):
    net, db = fused
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    found = embedcam.Explainer(net, db)(images)
    allowed = found.distances / db.refinement.distance_scale
    np.testing.assert_allclose(found.typicality, db.typicality(found.clusters, allowed), atol=1e-4)
    np.testing.assert_allclose(found.anomaly, db.anomaly(allowed), rtol=1e-4)


def test_a_finer_layer_of_another_width_is_refused(fused):
    net, db = fused
    narrow = replace(db.fusion, weights_mean=db.fusion.weights_mean[:, :100].copy())
    with pytest.raises(DatabaseError, match="layer 'layer3' has 256 channels, the weight database 100"):
        embedcam.Explainer(net, replace(db, refinement=replace(db.refinement, fusion=narrow)))(
            torch.zeros(1, 3, 64, 64)
        )


def test_pictures_tensors_and_arrays_are_taken(pair):
    explainer = embedcam.Explainer(*pair)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)
    prepared = np.stack([explainer.preprocess(Image.fromarray(each)) for each in pixels])
    expected = explainer(prepared)
    for images in (pixels, list(pixels), [Image.fromarray(each) for each in pixels], torch.from_numpy(prepared)):
        np.testing.assert_array_equal(explainer(images).heatmaps, expected.heatmaps)
    np.testing.assert_array_equal(explainer(Image.fromarray(pixels[0]).convert("RGBA")).heatmaps[0].shape, (32, 32))
    with pytest.raises(DataError, match="expected images"):
        explainer(np.zeros((2, 3, 32, 32), np.int64))


def test_a_copy_on_another_device_has_a_network_of_its_own(pair):
    explainer = embedcam.Explainer(*pair)
    moved = explainer.to("cpu")
    assert moved.net is not explainer.net
    assert moved.database is explainer.database
    np.testing.assert_array_equal(moved(IMAGES).heatmaps, explainer(IMAGES).heatmaps)


def test_the_weights_of_channels_make_the_map(pair):
    explainer = embedcam.Explainer(*pair, transfer="soft")
    maps, weights = explainer.channel_weights(IMAGES)
    combined = (weights[:, :, None, None] * maps).sum(dim=1).clamp(min=0)
    placed = place(combined, explainer.database.geometry, (32, 32))
    np.testing.assert_allclose(explainer(IMAGES).raw, placed.numpy(), rtol=1e-4, atol=1e-9)


def test_embeddings_too_long_to_be_searched_are_left_out_of_the_search_for_exemplars(pair):
    explainer = embedcam.Explainer(*pair)
    long = np.array([[1e30] * 8, [0.1] * 8], np.float32)  # faiss gives -1 where squared distances overflow
    nearest = explainer._search(long, 1)
    assert (nearest >= 0).all()


def test_the_preset_fast_has_the_size_of_the_training_and_fine_averages_with_the_mirrored_image(fused):
    net, db = fused
    images = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    default, fast, fine = (embedcam.Explainer(net, db, preset=preset) for preset in ("default", "fast", "fine"))
    assert fast.preprocess.input_size == net.preprocess.input_size != default.preprocess.input_size
    assert fine.preprocess == default.preprocess
    expected = (default(images).raw + default(images.flip(3)).raw[:, :, ::-1]) / 2
    found = fine(images)
    np.testing.assert_allclose(found.raw, expected, atol=1e-6)
    np.testing.assert_array_equal(found.embeddings, default(images).embeddings)
    with torch.inference_mode():
        np.testing.assert_allclose(fine.module.fixed(None).eval()(images).raw, expected, atol=1e-5)
