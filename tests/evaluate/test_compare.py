"""The methods that are compared, against the same maps put together otherwise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from embedcam.builder.build import build_database
from embedcam.builder.triplets import Partners
from embedcam.data import load
from embedcam.evaluate import compare
from embedcam.evaluate.compare import Gallery, of_gallery, transfers, with_backprop
from embedcam.evaluate.method import Method
from embedcam.explain import Explainer
from embedcam.explain.explanation import Explanation
from embedcam.explain.maps import fuse, place
from embedcam.explain.transfer import TRANSFERS
from embedcam.gradient import WEIGHTINGS, GradCAM, Proxy, TripletMargin, Weighting
from embedcam.nets.inference import embed

SIZE = 64
INDICES = np.array([1, 3])


@pytest.fixture(scope="module")
def setting(fused, folder):
    net, db = fused
    training, test = (load(f"folder:{folder}", split) for split in ("train", "test"))
    seen = embed(net, training)
    gallery = Gallery(training, seen)
    images = torch.from_numpy(np.stack([net.preprocess(test.image(i)) for i in INDICES.tolist()]))
    return net, db, gallery, test.labels, images


def partners_of(setting, count):
    _, db, gallery, labels, _ = setting
    partners = Partners(gallery.labels, gallery.names, count, db.seed)
    known = torch.from_numpy(gallery.embedded.embeddings)
    drawn = [partners.draw_outside(int(labels[i]), int(i)) for i in INDICES]
    return [torch.stack([known[side[k]] for side in drawn]) for k in (0, 1)]


@pytest.fixture(scope="module")
def methods(setting):
    net, db, gallery, labels, _ = setting
    return {method.name: method for method in with_backprop(net, db, gallery, labels)}


def test_per_image_gradcam_is_that_of_the_mean_partners(setting, methods):
    net, _, _, _, images = setting
    positives, negatives = (side.mean(dim=1) for side in partners_of(setting, 5))
    target = TripletMargin(positives, negatives)
    expected = GradCAM(net)(images, target)
    np.testing.assert_allclose(
        methods["gradcam, 5 triplets"].explain(images, INDICES).heatmaps, expected.heatmaps, atol=1e-4
    )
    both = GradCAM(net, ["layer4", "layer3"])(images, target)
    fused = fuse(*(torch.from_numpy(both[layer].raw) for layer in ("layer4", "layer3"))).numpy()
    found = methods["gradcam, 5 triplets, two layers"].explain(images, INDICES)
    np.testing.assert_allclose(found.heatmaps, Explanation.of(fused).heatmaps, atol=1e-4)


def test_per_image_gradcam_of_an_exact_database_is_that_of_the_mean_partners_of_all_triplets(setting):
    net, db, gallery, labels, images = setting
    found = {method.name: method for method in with_backprop(net, replace(db, pairs=0), gallery, labels)}
    known, of = gallery.embedded.embeddings, gallery.labels
    positives, negatives = (
        torch.from_numpy(np.stack([known[chosen].mean(axis=0) for chosen in side]))
        for side in ([of == label for label in labels[INDICES]], [of != label for label in labels[INDICES]])
    )
    expected = GradCAM(net)(images, TripletMargin(positives, negatives))
    heatmaps = found["gradcam, all triplets"].explain(images, INDICES).heatmaps
    np.testing.assert_allclose(heatmaps, expected.heatmaps, atol=1e-4)
    assert "gradcam++-exact, 50 triplets" in found


def test_per_image_gradcam_plus_plus_averages_the_weights_of_single_triplets(setting, methods):
    net, db, gallery, labels, images = setting
    positives, negatives = partners_of(setting, 5)
    kept = {}
    handle = net.backbone.layer4.register_forward_hook(lambda _, __, out: kept.update(maps=out))
    embeddings = net(images)
    handle.remove()
    maps, weights = kept["maps"], 0
    for pair in range(5):
        margin = (embeddings * (positives[:, pair] - negatives[:, pair])).sum()
        (g,) = torch.autograd.grad(margin, maps, retain_graph=True)
        alpha = 1 / (2 + g * maps.sum(dim=(2, 3), keepdim=True))
        weights = weights + (alpha * g.clamp(min=0)).sum(dim=(2, 3)).detach() / 5
    of_database = with_backprop(net, replace(db, method="gradcam++-exact"), gallery, labels)
    assert of_database[0].name == "gradcam++-exact, 5 triplets"
    found = [methods["gradcam++-exact, 5 triplets"], *of_database[:2]]
    for method, kept_channels in zip(found, (512, 512, 12), strict=True):
        strongest = torch.zeros_like(weights).scatter(1, weights.topk(kept_channels).indices, 1) * weights
        raw = (strongest[:, :, None, None] * maps.detach()).sum(dim=1).clamp(min=0)
        expected = Explanation.of(place(raw, db.geometry, (SIZE, SIZE)).numpy())
        np.testing.assert_allclose(method.explain(images, INDICES).heatmaps, expected.heatmaps, atol=1e-3)


def proxies_by_hand(gallery):
    """The normalised mean of normalised embeddings, embedding by embedding."""
    proxies = []
    for label in sorted(set(gallery.labels.tolist())):
        total = np.zeros(gallery.embedded.embeddings.shape[1])
        for embedding, own in zip(gallery.embedded.embeddings.astype(float), gallery.labels, strict=True):
            if own == label:
                total += embedding / np.linalg.norm(embedding)
        proxies.append(total / np.linalg.norm(total))
    return np.array(proxies)


def test_proxies_are_normalised_means_of_normalised_embeddings(setting):
    _, _, gallery, _, _ = setting
    long = np.random.default_rng(0).normal(size=gallery.embedded.embeddings.shape).astype(np.float32) * 5
    stretched = Gallery(gallery.samples, replace(gallery.embedded, embeddings=long))
    for each in (gallery, stretched):
        np.testing.assert_allclose(each.proxies(), proxies_by_hand(each), atol=1e-6)


def test_embeddingcam_explains_the_similarity_to_the_most_similar_proxy(setting, methods):
    net, db, gallery, _, images = setting
    proxies = proxies_by_hand(gallery)
    with torch.no_grad():
        nearest = (net(images).numpy() @ proxies.T).argmax(axis=1)
    expected = GradCAM(net)(images, Proxy(torch.from_numpy(proxies[nearest])))
    found = methods["EmbeddingCAM (nearest class's proxy)"].explain(images, INDICES)
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=1e-5)
    closed = {method.name: method for method in of_gallery(net, db, gallery)}
    found = closed["nearest class's proxy, closed form"].explain(images, INDICES)
    with torch.no_grad():  # along the gradient of the similarity, which is orthogonal to the embedding
        seen, proxy = net.activations(images), torch.from_numpy(proxies[nearest]).float()
        gradient = proxy - seen.embeddings * (seen.embeddings * proxy).sum(dim=1, keepdim=True)
        raw = torch.einsum("bd,bdhw->bhw", gradient, net.cells(seen).embeddings).clamp(min=0)
    expected = Explanation.of(place(raw, db.geometry, (SIZE, SIZE)).numpy())
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=1e-4)


def test_every_registered_transfer_and_weighting_has_a_row(setting, methods, monkeypatch):
    net, db, gallery, labels, _ = setting
    names = [method.name for method in transfers(net, db)]
    assert set(TRANSFERS) | {f"{name}, two layers" for name in TRANSFERS} <= set(names)
    assert {f"{name}, 5 triplets" for name in WEIGHTINGS} <= set(methods)
    without = [method.name for method in transfers(net, replace(db, exemplars=None, refinement=None))]
    assert [name for name in TRANSFERS if name in without] == ["soft-contrast", "soft", "contrast", "cluster"]
    monkeypatch.setitem(WEIGHTINGS._parts, "mine", Weighting(lambda _, gradients: gradients.amax(dim=(-2, -1))))
    assert "mine, 5 triplets" in [method.name for method in with_backprop(net, db, gallery, labels)]


def test_channelwise_similarity_sums_to_the_cosine_of_the_pooled_maps(setting):
    net, db, gallery, _, images = setting
    *_, method = of_gallery(net, db, gallery)
    with torch.no_grad():
        seen = net.activations(images)
    nearest = (seen.embeddings.numpy() @ gallery.embedded.embeddings.T).argmax(axis=1)
    other = torch.from_numpy(gallery.embedded.pooled[nearest])
    mine = seen.maps.mean(dim=(2, 3))
    weights = mine * other / (mine.norm(dim=1) * other.norm(dim=1))[:, None]
    np.testing.assert_allclose(weights.sum(dim=1), functional.cosine_similarity(mine, other), rtol=1e-5)
    raw = (weights[:, :, None, None] * seen.maps).sum(dim=1).clamp(min=0)
    expected = Explanation.of(place(raw, db.geometry, (SIZE, SIZE)).numpy())
    np.testing.assert_allclose(method.explain(images, INDICES).heatmaps, expected.heatmaps, atol=1e-4)


def test_fewer_and_more_channels_are_those_of_a_database_built_with_them(setting, folder):
    net, db, _, _, images = setting
    found = {method.name: method for method in transfers(net, db)}
    for count, name in ((25, "cluster, top 25 channels"), (512, "cluster, all 512 channels")):
        built = build_database(net, f"folder:{folder}", clusters=4, top_k=count, pairs=5, refinement=False)
        expected = Explainer(net, built, transfer="cluster")(images)
        np.testing.assert_allclose(found[name].explain(images, INDICES).heatmaps, expected.heatmaps, atol=1e-5)


def test_other_numbers_of_clusters_are_those_of_databases_built_with_them(setting, folder, monkeypatch):
    net, db, gallery, _, images = setting
    monkeypatch.setattr(compare, "_CLUSTERS", (2, 4, 6, 200))
    found = {method.name: method for method in of_gallery(net, db, gallery)}
    # 4 clusters are the database's own, 200 are more than half of the images.
    assert [name for name in found if name.startswith("cluster")] == ["cluster, 2 clusters", "cluster, 6 clusters"]
    built = build_database(net, f"folder:{folder}", clusters=6, top_k=12, pairs=5, refinement=False)
    expected = Explainer(net, built, transfer="cluster")(images)
    np.testing.assert_allclose(
        found["cluster, 6 clusters"].explain(images, INDICES).heatmaps, expected.heatmaps, atol=1e-5
    )


def test_correlation_by_hand():
    def explanation(*rows):
        maps = np.array(rows, dtype=np.float32)[:, None]
        return Explanation(maps, maps, [[] for _ in rows])

    method = Method("", lambda images, indices: explanation())
    method.correlate(explanation([0, 0.5, 1], [1, 0, 0], [0, 0, 0]), explanation([0, 1, 2], [0, 1, 1], [0, 1, 2]))
    assert method.correlations == pytest.approx([1, -1, 0])
