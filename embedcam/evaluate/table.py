"""The table: methods as rows, scores as columns, on one data set with one network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.samples import Samples
from ..database.record import WeightDatabase
from ..database.triplets import Partners
from ..errors import DataError, EmbedcamError
from ..explain import Explainer
from ..explanation import Explanation
from ..gradient import GradCAM, TripletMargin
from ..nets.inference import embed, tensor_batches
from ..nets.network import Network
from ..retrieval import retrieval
from .localization import Localization

SCORES = ("mean_ratio", "iou_50", "best_iou", "pointing", "pixel_ap", "box_50")


@dataclass
class Method:
    """One row of the table.

    Attributes:
        name: As printed.
        explain: From images (B, 3, H, W) and their indices in the data set to an explanation.
        backprop: Whether it needs a backward pass.
        default: Whether it is what `Explainer` does when nothing is said.
    """

    name: str
    explain: Callable[[Tensor, NDArray[np.int64]], Explanation]
    backprop: bool = False
    default: bool = False
    scores: Localization = field(default_factory=Localization)
    seconds: float = 0.0
    images: int = 0

    def row(self) -> dict[str, Any]:
        """Return the row as the JSON has it; scores are null where no image had a mask."""
        known: dict[str, Any] = dict.fromkeys((*SCORES, "best_threshold"))
        if self.scores.per_image()["mean_ratio"].size:
            known |= {key: value for key, value in self.scores.result().items() if key in known}
        ms = 1000 * self.seconds / max(self.images, 1)
        return {
            "method": self.name,
            "default": self.default,
            "backprop": self.backprop,
            **known,
            "ms_per_image": ms,
        }


def evaluate(
    net: Network,
    database: WeightDatabase,
    test: Samples,
    gallery: Samples | None = None,
    *,
    compare: bool = False,
    batch_size: int = 16,
    strict: bool = False,
    workers: int = 2,
) -> dict[str, Any]:
    """Score heat maps against masks, and embeddings against labels.

    Args:
        net: The network.
        database: Made for it.
        test: The images to explain; those with masks are scored for localisation.
        gallery: Labelled images among which neighbours are looked for: the training images. None, or images of other
            classes: neighbours are looked for among the test images themselves.
        compare: Also score explanations that need labels and a backward pass.
        batch_size: Images a batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        {"schema": 1, "rows": [one a method], "recall_at_1": ..., "map_at_r": ..., "nmi": ..., "images": ...,
        "masks": ..., "skipped": ...}; scores that need labels are null without them.

    Raises:
        DataError: If an image or mask cannot be used.
        DatabaseError: If the database was made for another network.
    """
    methods = _methods(net, database)
    known_gallery = _embed_gallery(net, test, gallery, batch_size, strict, workers)
    if compare:
        methods += _with_backprop(net, database, test, known_gallery)
    embeddings: list[NDArray[np.float32]] = []
    kept: list[NDArray[np.int64]] = []
    masks = 0
    for indices, images in tensor_batches(net, test, batch_size, "explaining", strict=strict, workers=workers):
        scored, truth, ignore = _masks(net, test, indices)
        masks += len(scored)
        for method in methods:
            explanation = _timed(method, images, indices)
            if method.default and explanation.embeddings is not None:
                embeddings.append(explanation.embeddings)
            if len(scored):
                method.scores.add(explanation.heatmaps[scored], truth, ignore)
        kept.append(indices)
    rows = [method.row() for method in methods]
    read = np.concatenate(kept)
    return {
        "schema": 1,
        "rows": rows,
        **_retrieval(np.concatenate(embeddings), test.subset(read), known_gallery),
        "images": len(read),
        "masks": masks,
        "skipped": len(test) - len(read),
    }


def _methods(net: Network, database: WeightDatabase) -> list[Method]:
    def method(name: str, default: bool = False, **options: str) -> Method:
        explainer = Explainer(net, database, **options)  # type: ignore[arg-type]
        return Method(name, lambda images, _: explainer(images), default=default)

    found = [
        method("cluster transfer", default=True),
        method("cluster transfer, plain placing", placement="stretch"),
    ]
    if database.exemplars is not None:
        found.append(method("nearest exemplar", transfer="nearest"))
        found.append(method("nearest exemplar, plain placing", transfer="nearest", placement="stretch"))
    return found


@dataclass(frozen=True)
class _Gallery:
    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]


def _embed_gallery(
    net: Network, test: Samples, gallery: Samples | None, batch_size: int, strict: bool, workers: int
) -> _Gallery | None:
    if gallery is None or gallery.labels is None or test.labels is None:
        return None
    if not set(test.labels.tolist()) <= set(gallery.labels.tolist()):
        return None
    seen = embed(net, gallery, batch_size=batch_size, what="gallery", strict=strict, workers=workers)
    return _Gallery(seen.embeddings, gallery.labels[seen.kept], tuple(gallery.names))


def _with_backprop(net: Network, database: WeightDatabase, test: Samples, gallery: _Gallery | None) -> Iterator[Method]:
    """Per-image Grad-CAM from triplets whose partners are training images: the map that the transfer imitates."""
    if gallery is None or test.labels is None:
        raise DataError("--compare needs labels, and training images of the test images' classes; leave it out")
    known = torch.from_numpy(gallery.embeddings).to(net.device)
    for pairs in (1, database.pairs):
        partners = Partners(gallery.labels, gallery.names, pairs, database.seed)
        drawn = [partners.draw_outside(label, index) for index, label in enumerate(test.labels.tolist())]
        # Drawn beforehand: the time of the row is that of the explanation.
        positives, negatives = (torch.stack([known[p].mean(dim=0) for p in side]) for side in zip(*drawn, strict=True))
        for placement, said in (("receptive-field", ""), ("stretch", ", plain placing")):
            cam = GradCAM(net, database.network.layer, placement=placement)

            def explain(
                images: Tensor,
                indices: NDArray[np.int64],
                cam: GradCAM = cam,
                positives: Tensor = positives,
                negatives: Tensor = negatives,
            ) -> Explanation:
                target = TripletMargin(positives[indices], negatives[indices], metric=net.metric)
                explanation: Explanation = cam(images, target)
                return explanation

            yield Method(f"Grad-CAM, {pairs} triplet{'s' if pairs > 1 else ''}{said}", explain, backprop=True)


def _timed(method: Method, images: Tensor, indices: NDArray[np.int64]) -> Explanation:
    start = time.perf_counter()
    explanation = method.explain(images, indices)  # ends on the host, so nothing is left running on a GPU
    method.seconds += time.perf_counter() - start
    method.images += len(images)
    return explanation


def _masks(
    net: Network, test: Samples, indices: NDArray[np.int64]
) -> tuple[list[int], NDArray[np.bool_], NDArray[np.bool_]]:
    """Read the batch's masks at input size; images without one are left out."""
    scored, truth, ignored = [], [], []
    for place, index in enumerate(indices.tolist()):
        mask = test.mask(index) if test.has_masks else None
        if mask is None:
            continue
        ignore = test.ignore(index)
        seen = net.preprocess.mask(mask)
        unseen = np.zeros_like(seen) if ignore is None else net.preprocess.mask(ignore)
        if not (seen & ~unseen).any():
            raise DataError(
                f"the mask of {test.ids[index]} shows no object at {seen.shape[1]} x {seen.shape[0]} pixels; "
                "mend or remove it"
            )
        scored.append(place)
        truth.append(seen)
        ignored.append(unseen)
    size = net.preprocess.input_size
    return scored, np.asarray(truth, bool).reshape(-1, *size), np.asarray(ignored, bool).reshape(-1, *size)


def _retrieval(embeddings: NDArray[np.float32], test: Samples, gallery: _Gallery | None) -> dict[str, float | None]:
    unknown: dict[str, float | None] = dict.fromkeys(("recall_at_1", "map_at_r", "nmi"))
    if test.labels is None or (gallery is None and len(test) < 2):
        return unknown
    if gallery is None:
        return {**unknown, **retrieval(embeddings, test.labels)}
    return {**unknown, **retrieval(embeddings, test.labels, gallery.embeddings, gallery.labels)}


def default_row(result: dict[str, Any]) -> dict[str, Any]:
    """Find the row of what `Explainer` does by default.

    Args:
        result: Of `evaluate`.

    Returns:
        The row.

    Raises:
        EmbedcamError: If not exactly one row is the default.
    """
    rows: list[dict[str, Any]] = [row for row in result["rows"] if row["default"]]
    if len(rows) != 1:
        raise EmbedcamError(f"expected one default row, found {len(rows)}; this is not a result of evaluate")
    return rows[0]
