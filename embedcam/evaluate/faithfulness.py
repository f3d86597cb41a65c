"""Faithfulness: how the embedding changes as the strongest pixels of a heat map are hidden, or only they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from torch import Tensor

from ..errors import DataError, NetworkError
from ..explain.explanation import Explanation
from ..nets import layers
from ..nets.network import Network
from .bootstrap import interval

Explain = Callable[[Tensor], Explanation]
RANDOM = "random order"
# Standard deviations as shares of the image's side. Blurred by 1/8, butterflies at 224 pixels are no more similar to
# themselves than to other images (mean cosine 0.00; 0.37 if blurred by 1/64). Noise of 1/16 has spots as wide as the
# cells of a 7 x 7 map: a baseline of single pixels would destroy every texture, and be worse for that reason alone.
_BLUR, _SPOT = 1 / 8, 1 / 16
# Rounding to these levels makes heat equal again that differs, not at random, only in the last digits.
_LEVELS = 2**16 - 1


def faithfulness(
    net: Network,
    methods: Mapping[str, Explain],
    batches: Iterable[tuple[NDArray[np.int64], Tensor]],
    *,
    gallery: NDArray[np.float32] | None = None,
    steps: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Hide the strongest pixels (deletion) or show only them (insertion), step by step, and embed the altered images.

    Hidden pixels are replaced by those of a strongly blurred version of the image, since a uniform fill would add edges
    that the network sees. Equally strong pixels, such as all of a flat map, are ordered by smooth seeded noise, and so
    are all pixels of the baseline, the row "random order".

    Each batch takes 2 forward passes and 2 (steps - 1) more per row. The embeddings of all altered images are kept to
    the end (8 (steps + 1) D bytes per image and row), since ranks need the embeddings of all images.

    Args:
        net: The network; run in evaluation mode, which is restored.
        methods: By name, functions from images (B, 3, H, W) to an explanation with heat maps (B, H, W). Others are
            compared with the first.
        batches: Indices (B,), which seed the noise, and normalised images (B, 3, H, W).
        gallery: (M, D) embeddings of other images among which an image is ranked; all explained images if None.
        steps: Number of equal steps in which all pixels are hidden or shown, at least 1.
        seed: Of the noise.

    Returns:
        A dictionary that JSON can hold: `share` (steps + 1) of the pixels hidden or shown, `images`, `candidates` (how
        many embeddings are ranked, including the image's own), `metric`, and `rows`, one per method, "random order"
        last. A row has the `method`, and for `deletion` (lower areas are better) and `insertion` (higher areas are):

        - `similarity` (steps + 1): to the whole image's embedding, averaged over images: the cosine; for Euclidean
          networks 1 - distance / mean distance between images. 1 is the image itself.
        - `rank` (steps + 1): rank of the whole image's embedding among the candidates, the nearest first, averaged.
          1 is best, also if candidates are equally near; here the lower area is better for insertion.
        - `similarity_area`, `rank_area`: under these curves, by the trapezoid rule over [0, 1]; `similarity_error` is
          the standard error over images of the former (None for one image).
        - `difference`: the mean over images of the row's similarity area less that of the first row, of the same image;
          `interval`, its 95 % interval. A method differs from the first where the interval does not contain 0.

    Raises:
        DataError: If there is no image, or no other to rank it among, or a heat map or the gallery does not fit.
        NetworkError: If an embedding is not finite.

    Source:
        Petsiuk et al. 2018, RISE (arXiv 1806.07421): deletion and insertion, there of class scores.
    """
    if steps < 1:
        raise DataError(f"steps must be at least 1, got {steps}; 5 are usual")
    own: list[NDArray[np.float32]] = []
    kept: dict[str, list[list[NDArray[np.float32]]]] = {name: [[], []] for name in (*methods, RANDOM)}
    for indices, batch in batches:
        if not len(indices):
            continue
        images = batch.to(net.device)
        size = (int(images.shape[2]), int(images.shape[3]))
        blurred = _blur(images)
        whole, hidden = _embed(net, images), _embed(net, blurred)
        own.append(whole)
        noise = np.stack([_noise(size, seed, index) for index in indices.tolist()])
        for name in kept:
            heatmaps = np.zeros_like(noise) if name == RANDOM else methods[name](images).heatmaps
            order = torch.from_numpy(_order(heatmaps, noise)).to(net.device)[:, None]
            for altered, start, end, first, last in (
                (kept[name][0], images, blurred, whole, hidden),
                (kept[name][1], blurred, images, hidden, whole),
            ):
                counts = [round(step * size[0] * size[1] / steps) for step in range(1, steps)]
                between = [_embed(net, torch.where(order < count, end, start)) for count in counts]
                altered.append(np.stack([first, *between, last], axis=1))
    if not own:
        raise DataError("no image was given to score faithfulness; give at least one batch")
    anchors = np.concatenate(own)
    candidates = anchors if gallery is None else _checked(gallery, anchors.shape[1])
    others = len(candidates) - (gallery is None)
    if others < 1:
        raise DataError("the rank of an image needs another image; give at least two, or a gallery")
    # The distance of an image to itself is 0 and adds nothing to the sum.
    scale = sum(float(cdist(anchor[None], candidates).sum()) for anchor in anchors) / (len(anchors) * others)
    rows: list[dict[str, Any]] = [{"method": name} for name in kept]
    for position, kind in enumerate(("deletion", "insertion")):
        to_first: NDArray[np.float64] | None = None
        for row, both in zip(rows, kept.values(), strict=True):
            row[kind], areas = _curves(anchors, np.concatenate(both[position]), candidates, net.metric, scale)
            to_first = areas if to_first is None else to_first
            row[kind] |= {"difference": float((areas - to_first).mean()), "interval": interval(areas - to_first)}
    return {
        "schema": 1,
        "share": [step / steps for step in range(steps + 1)],
        "images": len(anchors),
        "candidates": others + 1,
        "metric": net.metric,
        "seed": seed,
        "rows": rows,
    }


def _embed(net: Network, images: Tensor) -> NDArray[np.float32]:
    with layers.evaluating(net), torch.inference_mode():
        embeddings: NDArray[np.float32] = net(images.contiguous(memory_format=net.memory_format)).float().cpu().numpy()
    if not np.isfinite(embeddings).all():
        raise NetworkError(
            "the embedding of an image is not finite (NaN or infinity); check its pixels, or use float32"
        )
    return embeddings


def _checked(gallery: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    if gallery.ndim != 2 or gallery.shape[1] != dim or not np.isfinite(gallery).all():
        raise DataError(
            f"the gallery must be finite embeddings (M, {dim}), got {gallery.shape}; embed it with this net"
        )
    return gallery


def _blur(images: Tensor) -> Tensor:
    # A separable Gaussian, whose weights sum to 1 at the border too, as two matrix products.
    rows, columns = (_gaussian(int(side)).to(images) for side in images.shape[2:])
    return rows @ images @ columns.T


def _gaussian(side: int) -> Tensor:
    pixels = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((pixels[:, None] - pixels) / (_BLUR * side)) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def _noise(size: tuple[int, int], seed: int, index: int) -> NDArray[np.float64]:
    # It wraps around, so that it is equally smooth everywhere.
    white = np.random.default_rng((seed, index)).standard_normal(size)
    smooth: NDArray[np.float64] = gaussian_filter(white, [_SPOT * side for side in size], mode="wrap")
    return smooth


def _order(heatmaps: NDArray[Any], noise: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the pixels of each map from 0, the strongest first; of equals, the one with more noise."""
    if heatmaps.shape != noise.shape:
        raise DataError(f"heat maps must have the images' shape {noise.shape}, got {heatmaps.shape}")
    order = np.empty(noise.shape, dtype=np.int64)
    # Levels differ by 1, and the noise of a level by less.
    span = np.ptp(noise, axis=(1, 2), keepdims=True)
    below = (noise - noise.min(axis=(1, 2), keepdims=True)) / (2 * span + (span == 0))
    for numbers, strength in zip(order, np.rint(heatmaps * _LEVELS) + below, strict=True):
        numbers.flat[np.argsort(-strength, axis=None)] = np.arange(numbers.size)
    return order


def _curves(
    anchors: NDArray[np.float32],
    altered: NDArray[np.float32],
    candidates: NDArray[np.float32],
    metric: str,
    scale: float,
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Compute the curves, and each image's area, from embeddings (N, D) and of altered images (N, steps + 1, D)."""
    similarity, rank = np.empty(altered.shape[:2]), np.empty(altered.shape[:2])
    for i, (anchor, steps) in enumerate(zip(anchors.astype(np.float64), altered.astype(np.float64), strict=True)):
        distance = cdist(steps, anchor[None])[:, 0]
        # For a cosine network too: on the unit sphere both distances give the same order.
        rank[i] = 1 + np.count_nonzero(cdist(steps, candidates) < distance[:, None], axis=1)
        if metric == "cosine":
            lengths = np.linalg.norm(steps, axis=1) * np.linalg.norm(anchor)
            similarity[i] = steps @ anchor / np.maximum(lengths, np.finfo(float).tiny)
        else:
            similarity[i] = 1 - distance / (scale or 1.0)
    areas = (similarity[:, 1:] + similarity[:, :-1]).mean(axis=1) / 2
    mean_rank = rank.mean(axis=0)
    curves = {
        "similarity": similarity.mean(axis=0).tolist(),
        "rank": mean_rank.tolist(),
        "similarity_area": float(areas.mean()),
        "similarity_error": float(areas.std(ddof=1) / np.sqrt(len(areas))) if len(areas) > 1 else None,
        "rank_area": float((mean_rank[1:] + mean_rank[:-1]).mean() / 2),
    }
    return curves, areas
