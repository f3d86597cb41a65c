"""The methods that `evaluate` compares: transfers, which need no backward pass, and per-image Grad-CAM, which does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..builder.build import build_database
from ..builder.triplets import Partners
from ..data.samples import Samples
from ..database.record import top_channels
from ..database.weight_database import WeightDatabase
from ..explain import Explainer
from ..explain.explanation import Explanation
from ..explain.grad_weights import direction, weigh
from ..explain.maps import combine, fuse, place
from ..gradient import GradCAM, TripletMargin
from ..nets import layers
from ..nets.embedding import EmbeddingNet
from ..nets.geometry import PIXELS
from ..nets.inference import Embedded
from ..nets.network import Network
from .method import Explain, Method

# Sweeps around the published 50 clusters and 50 channels.
_CLUSTERS, _CHANNELS = (10, 25, 100, 200), (10, 25, 100, 200)


@dataclass(frozen=True)
class Gallery:
    """Training images: whose embeddings are searched, and from whom triplets take their partners.

    Attributes:
        samples: The images, with labels.
        seen: Embeddings of those that could be read, and pooled vectors if the head sees nothing else.
    """

    samples: Samples
    seen: Embedded

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) of the embedded images."""
        labels = self.samples.labels
        assert labels is not None
        return labels[self.seen.kept]

    @property
    def names(self) -> Sequence[str]:
        """Of the labels."""
        return self.samples.names


def of_explainer(explainer: Explainer) -> Method:
    """Give what an explainer does when nothing is said.

    Args:
        explainer: With no options.

    Returns:
        The default row.
    """
    return Method("embedcam", _explain(explainer), default=True)


def published(net: Network, db: WeightDatabase) -> Method:
    """Give the published method: cluster transfer, one layer, plain resize.

    Args:
        net: The network.
        db: Its database.

    Returns:
        The row.
    """
    return Method("cluster transfer (paper)", _explain(Explainer(net, db, preset="paper")))


def transfers(net: Network, db: WeightDatabase) -> list[Method]:
    """Give every way of choosing stored weights, each with one layer and, where they can be, with two fused.

    Args:
        net: The network.
        db: Its database.

    Returns:
        The rows.
    """
    options: dict[str, dict[str, Any]] = {
        "cluster": {"transfer": "cluster"},
        "cluster, plain resize": {"transfer": "cluster", "placement": "stretch"},
        "cluster minus mean": {"transfer": "contrast"},
        "soft mix of clusters": {"transfer": "soft"},
        "soft mix minus mean": {"transfer": "soft-contrast"},
    }
    if db.exemplars is not None:
        options["nearest exemplar"] = {"transfer": "nearest"}
        options["mean of 10 exemplars"] = {"transfer": "neighbors"}
    if db.fusion is not None:
        fused = {f"{name}, two layers": {**chosen, "fused": True} for name, chosen in list(options.items())[:4]}
        options |= fused
    found = [Method(name, _explain(Explainer(net, db, **chosen))) for name, chosen in options.items()]
    known = min(db.network.channels, db.weights_mean.shape[1])
    for count in (*(c for c in _CHANNELS if c < known and c != db.top_k), known):
        channels, weights = top_channels(db.weights_mean, count)
        changed = replace(db, top_channels=channels, top_weights=weights, exemplars=None, refinement=None)
        name = f"cluster, {'all' if count == known else 'top'} {count} channels"
        found.append(Method(name, _explain(Explainer(net, changed, transfer="cluster"))))
    return found


def with_backprop(net: Network, db: WeightDatabase, gallery: Gallery, labels: NDArray[np.int64]) -> list[Method]:
    """Give per-image methods, which know the image's label or go backwards through the head.

    Args:
        net: The network.
        db: Its database, for its layer, its geometry and its seed.
        gallery: Training images of the same classes.
        labels: (N,) of the test images.

    Returns:
        The rows; the first, Grad-CAM from as many triplets as the database was made with, is what transfers imitate.
    """
    known = torch.from_numpy(gallery.seen.embeddings).to(net.device)

    def pairs(count: int) -> Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]:
        partners = Partners(gallery.labels, gallery.names, count, db.seed)
        # Drawn beforehand: the time of the row is that of the explanation.
        drawn = [partners.draw_outside(label, index) for index, label in enumerate(labels.tolist())]
        positives, negatives = (np.stack(side) for side in zip(*drawn, strict=True))
        return lambda indices: (known[positives[indices]], known[negatives[indices]])

    many, one = pairs(db.pairs), pairs(1)
    several = f"{db.pairs} triplets"
    found = [
        Method(f"Grad-CAM, {several}", _per_image(net, db, many), backprop=True),
        Method(f"Grad-CAM, {several}, top {db.top_k}", _per_image(net, db, many, top_k=db.top_k), backprop=True),
        Method("Grad-CAM, 1 triplet", _per_image(net, db, one), backprop=True),
        Method(f"Grad-CAM++, {several}", _per_image(net, db, many, "gradcam++"), backprop=True),
        Method(
            f"Grad-CAM++, {several}, top {db.top_k}", _per_image(net, db, many, "gradcam++", db.top_k), backprop=True
        ),
        Method("Grad-CAM++, 1 triplet", _per_image(net, db, one, "gradcam++"), backprop=True),
        Method("EmbeddingCAM (nearest class's proxy)", _proxy(net, db, gallery), backprop=True),
    ]
    if db.fusion is not None:
        found.insert(1, Method(f"Grad-CAM, {several}, two layers", _two_layers(net, db, many), backprop=True))
    return found


def of_gallery(net: Network, db: WeightDatabase, gallery: Gallery) -> list[Method]:
    """Give methods without backward pass that need the training images themselves, not a database.

    Args:
        net: The network.
        db: Its database, for its layer and geometry.
        gallery: Training images.

    Returns:
        The rows: cluster transfer from databases of fewer and of more clusters, and, for heads that see only the mean
        of each channel, the nearest class's proxy and the channel-wise similarity with the nearest image.
    """
    found = []
    for count in (c for c in _CLUSTERS if c != db.clusters and 2 * c <= len(gallery.seen.kept)):
        other = build_database(
            net,
            gallery.samples,
            clusters=count,
            top_k=db.top_k,
            pairs=db.pairs,
            method=db.method,
            exemplars=False,
            refinement=False,
            embedded=gallery.seen,
            seed=db.seed,
        )
        found.append(Method(f"cluster, {count} clusters", _explain(Explainer(net, other, transfer="cluster"))))
    if gallery.seen.pooled is not None:
        if isinstance(net, EmbeddingNet):
            found.append(Method("nearest class's proxy, closed form", _closed_form(net, db, gallery)))
        found.append(Method("channel-wise similarity (after SFAM)", _channelwise(net, db, gallery)))
    return found


def _explain(explainer: Explainer) -> Explain:
    return lambda images, _: explainer(images)


def _per_image(
    net: Network,
    db: WeightDatabase,
    pairs: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]],
    method: str = "gradcam",
    top_k: int | None = None,
) -> Explain:
    def explain(images: Tensor, indices: NDArray[np.int64]) -> Explanation:
        directions = direction(*pairs(indices), net.metric)
        with layers.evaluating(net):
            found = weigh(net, db.network.layer, images, directions, method)
        weights, channels = found.weights, None
        if top_k is not None:
            weights, channels = weights.topk(top_k, dim=1)
        return _placed(combine(found.maps, weights, channels), db, images)

    return explain


def _two_layers(
    net: Network, db: WeightDatabase, pairs: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]
) -> Explain:
    assert db.fusion is not None
    coarse, fine = db.network.layer, db.fusion.layer
    cam = GradCAM(net, [coarse, fine])

    def explain(images: Tensor, indices: NDArray[np.int64]) -> Explanation:
        positives, negatives = (side.mean(dim=1) for side in pairs(indices))
        found = cam(images, TripletMargin(positives, negatives, metric=net.metric))
        return Explanation.of(fuse(found[coarse].raw, PIXELS, found[fine].raw, PIXELS))

    return explain


def _proxies(gallery: Gallery) -> Tensor:
    known, labels = gallery.seen.embeddings, gallery.labels
    return torch.from_numpy(np.stack([known[labels == label].mean(axis=0) for label in np.unique(labels)]))


def _proxy(net: Network, db: WeightDatabase, gallery: Gallery) -> Explain:
    proxies = _proxies(gallery).to(net.device)
    cam = GradCAM(net, db.network.layer)

    def explain(images: Tensor, _: NDArray[np.int64]) -> Explanation:
        # The class comes out of the forward pass that the explanation makes anyway, so a target does the choice.
        explanation: Explanation = cam(images, lambda z: (z * proxies[_nearest(z.detach(), proxies)]).sum(dim=1))
        return explanation

    return explain


def _closed_form(net: EmbeddingNet, db: WeightDatabase, gallery: Gallery) -> Explain:
    """Do what EmbeddingCAM does without its backward pass: the head is linear where it is read."""
    proxies = _proxies(gallery).to(net.device)

    @torch.inference_mode()
    def explain(images: Tensor, _: NDArray[np.int64]) -> Explanation:
        with layers.evaluating(net):
            seen = net.activations(images)
        assert seen.vector is not None
        nearest = proxies[_nearest(seen.embeddings, proxies)]
        if net.metric == "cosine":  # normalising lets through only what turns the embedding
            along = (seen.embeddings * nearest).sum(dim=1, keepdim=True)
            nearest = nearest - seen.embeddings * along
        weights, _constants = net.head_along(seen.vector, nearest)
        return _placed(combine(seen.maps, weights), db, images)

    return explain


def _nearest(embeddings: Tensor, points: Tensor) -> Tensor:
    return torch.cdist(embeddings, points.to(embeddings)).argmin(dim=1)


def _channelwise(net: Network, db: WeightDatabase, gallery: Gallery) -> Explain:
    """Weigh each channel by its part in the cosine similarity of the pooled maps with the nearest image's."""
    known = torch.from_numpy(gallery.seen.embeddings).to(net.device)
    pooled = functional.normalize(torch.from_numpy(gallery.seen.pooled).to(net.device))

    @torch.inference_mode()
    def explain(images: Tensor, _: NDArray[np.int64]) -> Explanation:
        with layers.evaluating(net):
            seen = net.activations(images)
        weights = pooled[_nearest(seen.embeddings, known)] * functional.normalize(seen.maps.mean(dim=(2, 3)))
        return _placed(combine(seen.maps, weights), db, images)

    return explain


def _placed(maps: Tensor, db: WeightDatabase, images: Tensor) -> Explanation:
    size = (int(images.shape[2]), int(images.shape[3]))
    return Explanation.of(place(maps, db.geometry, size).float().cpu().numpy())
