"""The table: methods as rows, scores as columns, on one data set with one network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.samples import Samples
from ..database.record import WeightDatabase
from ..errors import DataError, EmbedcamError
from ..explain import Explainer
from ..nets.inference import Gathered, embed, tensor_batches
from ..nets.network import Network
from ..preprocess import Preprocess
from ..retrieval import retrieval
from .compare import Gallery, of_explainer, of_gallery, published, transfers, with_backprop
from .method import Method


def evaluate(
    net: Network,
    database: WeightDatabase,
    test: Samples,
    gallery: Samples | None = None,
    *,
    compare: bool = False,
    brief: bool = False,
    explain_size: int | None = None,
    extra: Sequence[Method] = (),
    batch_size: int = 16,
    strict: bool = False,
    workers: int = 2,
) -> dict[str, Any]:
    """Score heat maps against masks, and embeddings against labels.

    Without `compare`, memory grows by 4 D bytes for each image and each gallery image, another 4 D for those that are
    searched, and some 170 bytes a method for each image that has a mask; not by anything of the size of an image or of
    its maps. With it, 4 K bytes of every gallery image are kept too.

    Args:
        net: The network.
        database: Made for it.
        test: The images to explain; those with masks are scored for localisation.
        gallery: Labelled images among which neighbours are looked for: the training images. None, or images of other
            classes: neighbours are looked for among the test images themselves.
        compare: Also score all other transfers, and explanations that need labels and a backward pass.
        brief: Of those, only score per-image Grad-CAM from triplets, the maps that transfers imitate.
        explain_size: Side in pixels to explain at; the database's own if None. The published method is always scored
            at the network's own size, and neighbours are always looked for there.
        extra: Further methods to score, at the same size.
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
    explainer = Explainer(net, database, explain_size=explain_size)
    net, default = explainer.net, of_explainer(explainer)  # at the database's layer
    known = _gallery(net, test, gallery, batch_size, strict, workers, pooled=compare and not brief)
    methods, natives = [default, *extra], [published(net, database)]
    if compare:
        if known is None or test.labels is None:
            raise DataError("--compare needs labels, and training images of the test images' classes; leave it out")
        imitated, *others = with_backprop(net, database, known, test.labels)
        if brief:
            methods.append(imitated)
        else:
            methods += [*transfers(net, database), *of_gallery(net, database, known), imitated, *others]
    pass_over = partial(
        _pass, net, test, reference=imitated if compare else None, batch_size=batch_size, strict=strict, workers=workers
    )
    own, best = net.preprocess, explainer.preprocess
    everything = np.arange(len(test))
    if best == own:
        read, embeddings, masks = pass_over(everything, [*natives, *methods], own, what="explaining")
    else:
        read, embeddings, masks = pass_over(everything, natives, own, what="explaining at the network's size")
        pass_over(read, methods, best, what=f"explaining at {' x '.join(map(str, best.input_size))} pixels")
    rows = [method.row() for method in [default, *natives, *methods[1:]]]
    return {
        "schema": 1,
        "rows": rows,
        **_retrieval(embeddings, None if test.labels is None else test.labels[read], known),
        "explain_size": list(best.input_size),
        "images": len(read),
        "masks": masks,
        "skipped": len(test) - len(read),
    }


def _pass(
    net: Network,
    test: Samples,
    among: NDArray[np.int64],
    methods: Sequence[Method],
    preprocess: Preprocess,
    *,
    what: str,
    reference: Method | None,
    batch_size: int,
    strict: bool,
    workers: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Run methods over some images in one size; give those that were read, their embeddings, and the number of masks.

    The embeddings are those of the first method. The reference is run beside, for each method's correlation with it.
    """
    kept, embeddings = Gathered(len(among)), Gathered(len(among))
    masks = 0
    some = test if len(among) == len(test) else test.subset(among)
    loaded = tensor_batches(net, some, batch_size, what, preprocess=preprocess, strict=strict, workers=workers)
    for rows, images in loaded:
        indices = among[rows]
        scored, truth, ignore = _masks(preprocess, test, indices)
        masks += len(scored)
        # Where the reference is one of the methods, its row is of the same run.
        listed = any(method is reference for method in methods)
        imitated = None if reference is None else (reference.run if listed else reference.explain)(images, indices)
        for method in methods:
            explanation = imitated if imitated is not None and method is reference else method.run(images, indices)
            if explanation.embeddings is not None and method is methods[0]:
                embeddings.add(explanation.embeddings)
            if imitated is not None:
                method.correlate(explanation, imitated)
            if len(scored):
                method.scores.add(explanation.heatmaps[scored], truth, ignore)
        kept.add(indices)
    return kept.result(), embeddings.result(), masks


def _gallery(
    net: Network, test: Samples, gallery: Samples | None, batch_size: int, strict: bool, workers: int, *, pooled: bool
) -> Gallery | None:
    if gallery is None or gallery.labels is None or test.labels is None:
        return None
    if not np.isin(test.labels, gallery.labels).all():
        return None
    seen = embed(net, gallery, batch_size=batch_size, what="gallery", strict=strict, workers=workers, pooled=pooled)
    return Gallery(gallery, seen)


def _masks(
    preprocess: Preprocess, test: Samples, indices: NDArray[np.int64]
) -> tuple[list[int], NDArray[np.bool_], NDArray[np.bool_]]:
    """Read the batch's masks at input size; images without one are left out."""
    scored, truth, ignored = [], [], []
    for place, index in enumerate(indices.tolist()):
        mask = test.mask(index) if test.has_masks else None
        if mask is None:
            continue
        ignore = test.ignore(index)
        seen = preprocess.mask(mask)
        unseen = np.zeros_like(seen) if ignore is None else preprocess.mask(ignore)
        if not (seen & ~unseen).any():
            raise DataError(
                f"the mask of {test.ids[index]} shows no object at {seen.shape[1]} x {seen.shape[0]} pixels; "
                "mend or remove it"
            )
        scored.append(place)
        truth.append(seen)
        ignored.append(unseen)
    size = preprocess.input_size
    return scored, np.asarray(truth, bool).reshape(-1, *size), np.asarray(ignored, bool).reshape(-1, *size)


def _retrieval(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64] | None, gallery: Gallery | None
) -> dict[str, float | None]:
    unknown: dict[str, float | None] = dict.fromkeys(("recall_at_1", "map_at_r", "nmi"))
    if labels is None or (gallery is None and len(labels) < 2):
        return unknown
    if gallery is None:
        return {**unknown, **retrieval(embeddings, labels)}
    return {**unknown, **retrieval(embeddings, labels, gallery.seen.embeddings, gallery.labels)}


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
