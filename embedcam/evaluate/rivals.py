"""Rivals and controls: maps of methods that know nothing of why the network embeds an image where it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..database.record import top_channels
from ..database.weight_database import WeightDatabase
from ..explain import Explainer
from ..explain.explanation import Explanation
from ..explain.maps import fuse, place
from ..nets import layers
from ..nets.network import Network
from .asking import of_contributions, of_similarity, unasked
from .asking import of_explainer as ask_explainer
from .compare import Gallery, of_explainer
from .faithfulness import Explain
from .grid import Ask
from .method import Method
from .randomisation import rebuilt, untrained

_ITERATIONS = 30  # of the power method
# Standard deviation of the Gaussian, as a share of the image's side.
_SIGMA = 1 / 5


def first_component(maps: Tensor) -> Tensor:
    """Project the cells on the first principal component of their features.

    Args:
        maps: (B, K, h, w).

    Returns:
        (B, h, w), not negative; the sign is that of the mean over channels, from which the power iteration starts.

    Source:
        Muhammad and Yeasin 2020, Eigen-CAM (arXiv 2008.00299).
    """
    features = maps.flatten(start_dim=2)
    features = features - features.mean(dim=2, keepdim=True)
    component = features.mean(dim=1, keepdim=True)
    for _ in range(_ITERATIONS):  # keeps the sign: the matrix is positive semidefinite
        component = component @ features.transpose(1, 2) @ features
        component = component / component.norm(dim=2, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return component.reshape(len(maps), *maps.shape[2:]).clamp(min=0)


def channel_sum(maps: Tensor) -> Tensor:
    """Sum the channels.

    Args:
        maps: (B, K, h, w).

    Returns:
        (B, h, w), not negative.
    """
    return maps.sum(dim=1).clamp(min=0)


def strong_cells(maps: Tensor) -> Tensor:
    """Count in how many channels a cell is above the mean by two standard deviations, weighted by the channels' means.

    Args:
        maps: (B, K, h, w).

    Returns:
        (B, h, w), not negative.

    Source:
        Fuad et al. 2020, Features Understanding in 3D CNNs (FEM).
    """
    mean, deviation = maps.mean(dim=(2, 3), keepdim=True), maps.std(dim=(2, 3), keepdim=True, correction=0)
    return ((maps > mean + 2 * deviation) * mean).sum(dim=1).clamp(min=0)


_OF_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "EigenCAM": first_component,
    "channel sum": channel_sum,
    "FEM": strong_cells,
}


def of_maps(net: Network, db: WeightDatabase, reduce: Callable[[Tensor], Tensor], *, fused: bool) -> Explain:
    """Explain images by the feature maps alone.

    Args:
        net: The network.
        db: Its database, for its layers and their geometry.
        reduce: From feature maps (B, K, h, w) to a map (B, h, w), not negative.
        fused: Multiply with the map of the finer layer.

    Returns:
        The method.
    """
    finer = db.fusion if fused else None

    @torch.inference_mode()
    def explain(images: Tensor) -> Explanation:
        with layers.evaluating(net):
            seen = net.activations(images, None if finer is None else finer.layer)
        maps, geometry = reduce(seen.maps), db.geometry
        if finer is not None:
            assert seen.fine is not None
            fine = reduce(seen.fine)
            size = (int(fine.shape[1]), int(fine.shape[2]))
            maps, geometry = fuse(place(maps, geometry, size, finer.geometry), fine), finer.geometry
        size = (int(images.shape[2]), int(images.shape[3]))
        return Explanation.of(place(maps, geometry, size).float().cpu().numpy())

    return explain


def gaussian(images: Tensor) -> Explanation:
    """Give a Gaussian in the centre, the same for every image.

    Args:
        images: (B, 3, H, W), of which only the shape counts.

    Returns:
        Maps (B, H, W).
    """
    rows, columns = (np.exp(-0.5 * (np.linspace(-0.5, 0.5, side) / _SIGMA) ** 2) for side in images.shape[2:])
    return Explanation.of(np.tile(np.outer(rows, columns).astype(np.float32), (len(images), 1, 1)))


def rivals(net: Network, db: WeightDatabase) -> list[Method]:
    """Make the rows of maps that know nothing of the embedding, and of maps of a wrong cluster.

    Args:
        net: The network, at the database's layer.
        db: Its database.

    Returns:
        One row each for EigenCAM, the channel sum and FEM, for the cluster farthest from the image's own, and for the
        mean weights of all clusters; and, if the database has a finer layer and its weights, one with two layers. Last,
        a Gaussian in the centre.
    """
    methods = []
    mean = _mean_of_clusters(db)
    for layers_used in ("", ", two layers") if db.fusion is not None else ("",):
        options: dict[str, Any] = {"transfer": "cluster", "fused": bool(layers_used)}
        for name, reduce in _OF_MAPS.items():
            methods.append(_control(f"{name}{layers_used}", of_maps(net, db, reduce, fused=bool(layers_used))))
        if layers_used and (db.fusion is None or db.fusion.weights_mean is None):
            continue
        methods.append(_farthest(f"cluster farthest away{layers_used}", Explainer(net, db, **options)))
        methods.append(of_explainer(f"mean of all clusters{layers_used}", Explainer(net, mean, **options)))
    methods.append(_farthest("embedcam, cluster farthest away", Explainer(net, db)))
    return [*methods, _control("Gaussian in the centre", gaussian)]


def untrained_head(net: Network, db: WeightDatabase, gallery: Gallery) -> Method:
    """Make the row of the default for a network whose last layer is random, with a database of its own.

    Args:
        net: The network.
        db: Its database.
        gallery: Training images.

    Returns:
        The row.
    """
    copied = untrained(net)
    return of_explainer("embedcam, untrained head", Explainer(copied, rebuilt(copied, db, gallery.samples)))


def with_partner(net: Network, db: WeightDatabase, gallery: Gallery, labels: NDArray[np.int64]) -> list[Method]:
    """Make the rows of methods that are given another image of the same class.

    Args:
        net: The network, at the database's layer.
        db: Its database, for its geometry.
        gallery: Training images of the same classes.
        labels: (N,) of the test images.

    Returns:
        Grad-CAM of the similarity to the partner, and, if the network is decomposable, the cells' contributions to it.
    """
    rng, embeddings = np.random.default_rng(db.seed), torch.from_numpy(gallery.embedded.embeddings)
    partners = embeddings[[rng.choice(np.flatnonzero(gallery.labels == label)) for label in labels.tolist()]]

    def row(name: str, ask: Ask, *, backprop: bool) -> Method:
        def explain(images: Tensor, indices: NDArray[np.int64]) -> Explanation:
            return Explanation.of(ask(images, partners[indices][:, None].to(images.device))[:, 0])

        return Method(name, explain, backprop=backprop, asks={"partner": ask})

    rows = [row("gradcam, similarity to a partner", of_similarity(net, db.network.layer), backprop=True)]
    if net.decomposable:
        ask = of_contributions(net, db)
        rows.append(row("contributions to the similarity to a partner", ask, backprop=False))
    return rows


def _control(name: str, explain: Explain) -> Method:
    return Method(name, lambda images, _: explain(images), asks={"cluster": unasked(explain)})


def _farthest(name: str, explainer: Explainer) -> Method:
    """Explain by the cluster that lies farthest from the image's own, or from the one that is asked for."""
    centroids, ask = explainer.module.centroids, ask_explainer(explainer)
    farthest = torch.cdist(centroids, centroids).argmax(dim=1)

    def asked(images: Tensor, clusters: Tensor) -> NDArray[np.float32]:
        return ask(images, farthest[clusters])

    def explain(images: Tensor, _: NDArray[np.int64]) -> Explanation:
        clusters = explainer(images).clusters
        assert clusters is not None
        return Explanation.of(asked(images, torch.from_numpy(clusters)[:, None].to(centroids.device))[:, 0])

    return Method(name, explain, asks={"cluster": asked})


def _mean_of_clusters(db: WeightDatabase) -> WeightDatabase:
    """Give every cluster the mean weights of all of them."""

    def mean(weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.broadcast_to(weights.mean(axis=0), weights.shape).copy()

    weights = mean(db.weights_mean)
    strongest, top_weights = top_channels(weights, db.top_k)
    changed = replace(db, weights_mean=weights, top_channels=strongest, top_weights=top_weights, exemplars=None)
    if db.refinement is None or db.fusion is None or db.fusion.weights_mean is None:
        return changed
    fusion = replace(db.fusion, weights_mean=mean(db.fusion.weights_mean))
    return replace(changed, refinement=replace(db.refinement, fusion=fusion))
