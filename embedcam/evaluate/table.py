"""The table: methods as rows, scores as columns, on one data set with one network."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..builder.shards import Shards, fingerprint
from ..data.samples import Samples
from ..database.checks import arrays
from ..database.weight_database import WeightDatabase
from ..errors import DataError, EmbedcamError
from ..explain import Explainer
from ..nets.network import Network
from ..utils.distributed import Group
from .compare import Gallery, of_explainer, of_gallery, published, transfers, with_backprop
from .method import Method
from .passes import Passes
from .retrieval import retrieval
from .scores import SCORES


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
    work: str | Path | None = None,
    resume: bool = False,
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
        work: Folder for what is finished, which stays; a temporary one if None.
        resume: Go on with what an interrupted run left in `work`.

    Returns:
        {"schema": 1, "rows": [one a method], "recall_at_1": ..., "map_at_r": ..., "nmi": ..., "images": ...,
        "masks": ..., "skipped": ...}; scores that need labels are null without them.

    Raises:
        DataError: If an image or mask cannot be used.
        DatabaseError: If the database was made for another network, or `work` holds another run's work.
        OutputError: If `work` cannot be written.
    """
    explainer = Explainer(net, database, explain_size=explain_size)
    net, default = explainer.net, of_explainer(explainer)  # at the database's layer
    passes, wanted = Passes(net, batch_size, strict, workers), compare and not brief
    methods, natives = [default, *extra], [published(net, database)]
    own, best = net.preprocess, explainer.preprocess
    about = {
        "embedcam": __version__,
        "network": net.sha256(),
        "database": _fingerprint(database),
        "test images": fingerprint(test),
        "gallery": None if gallery is None else fingerprint(gallery),
        "scores": SCORES.names(),
        "methods": [*(method.name for method in methods), *["compare"] * compare, *["brief"] * brief],
        "size": list(best.input_size),
        "batch_size": batch_size,
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if work is None else work)

        def shards(step: str, images: int) -> Shards:
            return Shards(folder / step, images, about, Group(), resume=resume)

        known = None
        if gallery is not None and _comparable(test, gallery):
            known = Gallery(gallery, passes.embed(gallery, shards("gallery", len(gallery)), pooled=wanted))
        imitated = None
        if compare:
            if known is None or test.labels is None:
                raise DataError("--compare needs labels, and training images of the test images' classes; leave it out")
            imitated, *others = with_backprop(net, database, known, test.labels)
            if brief:
                methods.append(imitated)
            else:
                methods += [*transfers(net, database), *of_gallery(net, database, known), imitated, *others]
        run, everything = partial(passes.run, test, reference=imitated), np.arange(len(test))
        first, what = ([*natives, *methods], "") if best == own else (natives, " at the network's size")
        native = shards("own-size", len(test))
        read, embeddings, masks = run(everything, first, own, native, what=f"explaining{what}")
        if best != own:
            size = " x ".join(map(str, best.input_size))
            run(read, methods, best, shards("best-size", len(read)), what=f"explaining at {size} pixels")
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


def _fingerprint(database: WeightDatabase) -> str:
    """Tell databases apart by all that is in them."""
    digest = hashlib.sha256(repr(database.facts()).encode())
    for name, array in arrays(database).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _comparable(test: Samples, gallery: Samples) -> bool:
    """Tell whether every test image's label is one of the gallery's."""
    return test.labels is not None and gallery.labels is not None and bool(np.isin(test.labels, gallery.labels).all())


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
