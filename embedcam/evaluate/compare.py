"""The methods that `evaluate` compares: transfers, without a backward pass, and per-image Grad-CAM, with one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..builder.triplets import DRAWS, ClassSums, Partners
from ..data.samples import Samples
from ..database.record import top_channels
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError, NetworkError
from ..explain import Explainer
from ..explain.explanation import Explanation
from ..explain.fitting import CELLS
from ..explain.grad_weights import direction, weigh
from ..explain.maps import combine, fuse, place
from ..explain.transfer import TRANSFERS
from ..gradient import WEIGHTINGS, GradCAM, TripletMargin
from ..nets import layers
from ..nets.inference import Embedded
from ..nets.network import Network
from .asking import of_explainer as ask_explainer
from .grid import BY
from .method import Explain, Method
from .randomisation import rebuilt

logger = logging.getLogger("embedcam")

# Sweeps around the published 50 clusters and 50 channels.
_CLUSTERS, _CHANNELS = (10, 25, 100, 200), (10, 25, 100, 200)

# From indices of test images to the embeddings of their positives and negatives, each (B, pairs, D); or to their means,
# each (B, 1, D).
_Pairs = Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gallery:
    """Training images: retrieval searches their embeddings, and triplets take their partners from them.

    Attributes:
        samples: The images, with labels.
        embedded: Embeddings of the images that could be read, and pooled vectors if the head sees nothing else.
    """

    samples: Samples
    embedded: Embedded

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) of the embedded images."""
        labels = self.samples.labels
        assert labels is not None
        return labels[self.embedded.kept]

    @property
    def names(self) -> Sequence[str]:
        """Of the labels."""
        return self.samples.names

    def proxies(self) -> Tensor:
        """Compute one proxy per class: the mean of its normalised embeddings, normalised.

        Returns:
            (classes, D), in ascending order of the labels.

        Source:
            EmbeddingCAM (arXiv 2402.00909).
        """
        unit, labels = functional.normalize(torch.from_numpy(self.embedded.embeddings)), torch.from_numpy(self.labels)
        return functional.normalize(torch.stack([unit[labels == label].mean(dim=0) for label in labels.unique()]))


def of_explainer(name: str, explainer: Explainer, *, default: bool = False) -> Method:
    """Make the row of an explainer.

    Args:
        name: As printed.
        explainer: The explainer.
        default: Whether it has default options.

    Returns:
        The row.
    """
    # Nothing stands for an embedding's nearest exemplars where it is asked for another one.
    asks = {} if explainer.module.exemplars else dict.fromkeys(BY, ask_explainer(explainer))
    return Method(name, lambda images, _: explainer(images), default=default, asks=asks)


def transfers(net: Network, db: WeightDatabase) -> list[Method]:
    """Make the rows of all transfers in the registry.

    Args:
        net: The network.
        db: Its database.

    Returns:
        The default with one layer, if it has two. One row per transfer, with one layer and, if the database has a finer
        one, with two fused; cluster transfer also with a plain resize, and with fewer and more channels. A transfer for
        which the database lacks something, such as exemplars, is left out.
    """
    options: dict[str, dict[str, Any]] = {name: {"transfer": name} for name in (CELLS, *TRANSFERS)}
    options["cluster, plain resize"] = {"transfer": "cluster", "placement": "stretch"}
    methods = []
    if db.fusion is not None:
        methods.append(of_explainer("embedcam, one layer", Explainer(net, db, fused=False)))
    for layers_used in ("", ", two layers") if db.fusion is not None else ("",):
        for name, chosen in options.items():
            try:
                explainer = Explainer(net, db, fused=bool(layers_used), **chosen)
            except (DatabaseError, NetworkError) as error:
                logger.info("transfer %r is left out of the comparison: %s", name, error)
            else:
                methods.append(of_explainer(f"{name}{layers_used}", explainer))
    channels = min(db.network.channels, db.weights_mean.shape[1])
    for count in (*(c for c in _CHANNELS if c < channels and c != db.top_k), channels):
        strongest, weights = top_channels(db.weights_mean, count)
        changed = replace(db, top_channels=strongest, top_weights=weights, exemplars=None, refinement=None)
        name = f"cluster, {'all' if count == channels else 'top'} {count} channels"
        methods.append(of_explainer(name, Explainer(net, changed, transfer="cluster")))
    return methods


def with_backprop(net: Network, db: WeightDatabase, gallery: Gallery, labels: NDArray[np.int64]) -> list[Method]:
    """Make the rows of per-image methods, which know the image's label or go backwards through the head.

    Args:
        net: The network.
        db: Its database, for its layer, its geometry, its channel weighting and its seed.
        gallery: Training images of the same classes.
        labels: (N,) of the test images.

    Returns:
        The rows. The first has the weighting and the triplets that the database was built with: its maps are what
        transfers approximate. Every other weighting of the registry follows.
    """
    embeddings = torch.from_numpy(gallery.embedded.embeddings).to(net.device)

    def pairs(count: int) -> _Pairs:
        partners = Partners(gallery.labels, gallery.names, count, db.seed)
        # Drawn beforehand, so that the row's time is that of the explanation.
        drawn = [partners.draw_outside(label, index) for index, label in enumerate(labels.tolist())]
        positives, negatives = (np.stack(side) for side in zip(*drawn, strict=True))
        return lambda indices: (embeddings[positives[indices]], embeddings[negatives[indices]])

    def means(indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        positives, negatives = (torch.from_numpy(side[:, None]) for side in classes.mean_partners(labels[indices]))
        return positives.to(embeddings), negatives.to(embeddings)

    def row(name: str, explain: Explain) -> Method:
        return Method(name, explain, backprop=True)

    classes = ClassSums.zeros(len(gallery.names), embeddings.shape[1])
    classes.add(gallery.labels, gallery.embedded.embeddings)
    many, triplets = (pairs(db.pairs), f"{db.pairs} triplets") if db.pairs else (means, "all triplets")
    method = db.method if db.method in WEIGHTINGS else "gradcam"
    rows = [
        row(f"{method}, {triplets}", _per_image(net, db, many, method)),
        row(f"{method}, {triplets}, top {db.top_k}", _per_image(net, db, many, method, db.top_k)),
        row(f"{method}, 1 triplet", _per_image(net, db, pairs(1), method)),
    ]
    if db.fusion is not None:
        rows.append(row(f"gradcam, {triplets}, two layers", _two_layers(net, db, many)))
    for other in WEIGHTINGS:
        if other != method:
            drawn = db.pairs or DRAWS  # most are not linear
            rows.append(row(f"{other}, {drawn} triplets", _per_image(net, db, pairs(drawn), other)))
    return [*rows, row("EmbeddingCAM (nearest class's proxy)", _proxy(net, db, gallery))]


def of_gallery(net: Network, db: WeightDatabase, gallery: Gallery) -> list[Method]:
    """Make the rows of methods without backward pass that need the training images, not only a database.

    Args:
        net: The network.
        db: Its database, for its layer and geometry.
        gallery: Training images.

    Returns:
        The rows: cluster transfer from databases of fewer and of more clusters; and, for heads that see only the mean
        of each channel, the nearest class's proxy and the channel-wise similarity with the nearest image.
    """
    methods = []
    for count in (c for c in _CLUSTERS if c != db.clusters and 3 * c <= len(gallery.embedded.kept)):
        other = rebuilt(net, db, gallery.samples, clusters=count, refinement=False, embedded=gallery.embedded)
        methods.append(of_explainer(f"cluster, {count} clusters", Explainer(net, other, transfer="cluster")))
    if net.decomposable:
        methods.append(Method("nearest class's proxy, closed form", _closed_form(net, db, gallery)))
    if gallery.embedded.pooled is not None:
        methods.append(Method("channel-wise similarity (after SFAM)", _channelwise(net, db, gallery)))
    return methods


def _per_image(
    net: Network,
    db: WeightDatabase,
    pairs: _Pairs,
    method: str,
    top_k: int | None = None,
) -> Explain:
    def explain(images: Tensor, indices: NDArray[np.int64]) -> Explanation:
        directions = direction(*pairs(indices), net.metric)
        with layers.evaluating(net):
            weights, maps, _ = weigh(net, db.network.layer, images, directions, method)
        if top_k is not None:
            strongest = weights.topk(top_k, dim=1)
            weights = torch.zeros_like(weights).scatter(1, strongest.indices, strongest.values)
        return _placed(combine(maps, weights), db, images)

    return explain


def _two_layers(net: Network, db: WeightDatabase, pairs: _Pairs) -> Explain:
    assert db.fusion is not None
    coarse, fine = db.network.layer, db.fusion.layer
    cam = GradCAM(net, [coarse, fine])

    def explain(images: Tensor, indices: NDArray[np.int64]) -> Explanation:
        positives, negatives = (side.mean(dim=1) for side in pairs(indices))
        by_layer = cam(images, TripletMargin(positives, negatives, metric=net.metric))
        coarse_map, fine_map = (torch.from_numpy(by_layer[layer].raw) for layer in (coarse, fine))
        return Explanation.of(fuse(coarse_map, fine_map).numpy())

    return explain


def _proxy(net: Network, db: WeightDatabase, gallery: Gallery) -> Explain:
    proxies = gallery.proxies().to(net.device)
    cam = GradCAM(net, db.network.layer)

    def explain(images: Tensor, _: NDArray[np.int64]) -> Explanation:
        # The most similar proxy's class is explained: the maximum has that proxy's gradient.
        explanation: Explanation = cam(images, lambda z: (z @ proxies.T.to(z)).amax(dim=1))
        return explanation

    return explain


def _closed_form(net: Network, db: WeightDatabase, gallery: Gallery) -> Explain:
    """Compute what EmbeddingCAM computes without its backward pass, from the cells' embeddings."""
    proxies = gallery.proxies().to(net.device)

    @torch.inference_mode()
    def explain(images: Tensor, _: NDArray[np.int64]) -> Explanation:
        with layers.evaluating(net):
            seen = net.activations(images)
            cells, embeddings = net.cells(seen), seen.embeddings
        gradient = proxies[(embeddings @ proxies.to(embeddings).T).argmax(dim=1)].to(embeddings)
        if net.metric == "cosine":  # the gradient through the normalisation is orthogonal to the embedding
            gradient = gradient - embeddings * (embeddings * gradient).sum(dim=1, keepdim=True)
        return _placed(combine(cells.embeddings, gradient), db, images)

    return explain


def _channelwise(net: Network, db: WeightDatabase, gallery: Gallery) -> Explain:
    """Weight each channel by its share of the cosine similarity of the pooled maps with the nearest image's."""
    embeddings = torch.from_numpy(gallery.embedded.embeddings).to(net.device)
    pooled = functional.normalize(torch.from_numpy(gallery.embedded.pooled).to(net.device))

    @torch.inference_mode()
    def explain(images: Tensor, _: NDArray[np.int64]) -> Explanation:
        with layers.evaluating(net):
            activations = net.activations(images)
        nearest = torch.cdist(activations.embeddings, embeddings.to(activations.embeddings)).argmin(dim=1)
        weights = pooled[nearest] * functional.normalize(activations.maps.mean(dim=(2, 3)))
        return _placed(combine(activations.maps, weights), db, images)

    return explain


def _placed(maps: Tensor, db: WeightDatabase, images: Tensor) -> Explanation:
    size = (int(images.shape[2]), int(images.shape[3]))
    return Explanation.of(place(maps, db.geometry, size).float().cpu().numpy())
