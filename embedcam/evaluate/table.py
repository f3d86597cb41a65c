"""The table of `evaluate`: methods as rows, scores as columns, for one network and one data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..data.samples import Samples, fingerprint
from ..database.checks import arrays
from ..database.weight_database import WeightDatabase
from ..errors import DataError
from ..explain import Explainer
from ..explain.likeness import warn_of_maps_alike
from ..nets.network import Network
from ..show.report import RETRIEVAL
from ..utils import shards as sharding
from ..utils.resume import Parts, SavedParts
from ..utils.shards import Shards
from .compare import Gallery, of_explainer, of_gallery, transfers, with_backprop
from .grid import Composites, grid_test
from .method import Method, score_columns
from .passes import Passes
from .ranking import Side, rank
from .retrieval import nmi_of
from .rivals import rivals, untrained_head, with_partner
from .scores import SCORES
from .search import has_classes_of
from .sum_rule import sum_rule


def evaluate(
    net: Network,
    database: WeightDatabase,
    test: Samples,
    gallery: Samples | None = None,
    *,
    compare: bool = False,
    brief: bool = False,
    grid: int = 0,
    explain_size: int | None = None,
    extra: Sequence[Method] = (),
    batch_size: int = 16,
    strict: bool = False,
    workers: int = 2,
    work: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Score heat maps against masks, and embeddings against labels.

    Memory grows by 4 D bytes per image and per gallery image, another 4 D per image that is searched, and about 190
    bytes per method and image with a mask; with `compare`, also by 4 K bytes per gallery image. Without `work`, it
    grows by twice as much.

    Args:
        net: The network.
        database: Built for this network.
        test: The images to explain; heat maps are scored on those with masks.
        gallery: Labelled images that are searched for neighbours: the training images. If None, or if it lacks a class
            of the test images, the test images themselves are searched.
        compare: Also score all other transfers, and explanations that need labels and a backward pass.
        brief: With `compare`, only add per-image Grad-CAM from triplets, whose maps transfers approximate.
        grid: Number of composites of the grid test; 0 for none.
        explain_size: Side in pixels to explain at; the database's own if None. The published method and the retrieval
            always use the network's own size.
        extra: Further methods to score, at the same size.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
        work: Folder for finished parts, which remains; None keeps them in memory.
        resume: Continue an interrupted run from `work`.

    Returns:
        {"schema": 1, "rows": [one per method, see `Method.row`], "nmi": ..., "images": ..., "masks": ..., "mask_kind":
        ..., "skipped": ..., "composites": ..., "sum_rule": see `sum_rule`}, and the scores of `Ranking.scores`;
        scores that need labels are null without them.

    Raises:
        DataError: If an image or mask cannot be used, or there are fewer than four classes for the grid test.
        DatabaseError: If the database was made for another network.
        OutputError: If `work` cannot be written, or holds parts of another run.
        EmbedcamError: If the columns of two scores have the same key.
    """
    score_columns()  # raises now, not after the long pass
    if grid:  # likewise
        Composites.draw(net, test, grid)
    explainer = Explainer(net, database, explain_size=explain_size)
    net, default = explainer.net.plain, of_explainer("embedcam", explainer, default=True)  # at the database's layer
    passes, complete = Passes(net, batch_size, strict, workers), compare and not brief
    methods = [default, *extra]
    natives = [of_explainer("cluster transfer (paper)", Explainer(net, database, preset="paper"))]
    own, best = net.preprocess, explainer.preprocess
    run = {
        "embedcam": __version__,
        "network": net.sha256(),
        "database": _fingerprint(database),
        "test images": fingerprint(test),
        "gallery": None if gallery is None else fingerprint(gallery),
        "mask threshold": getattr(test, "mask_threshold", None),
        "scores": SCORES.names(),
        "methods": [*(method.name for method in methods), *["compare"] * compare, *["brief"] * brief],
        "size": list(best.input_size),
        "batch_size": batch_size,
        "shard": sharding.SHARD,
    }
    parts = Parts() if work is None else SavedParts(work, run, resume=resume)
    searched = None
    if gallery is not None and has_classes_of(test, gallery):
        searched = Gallery(gallery, passes.embed(gallery, Shards(parts, "gallery", len(gallery)), pooled=complete))
    reference = None
    if compare:
        if searched is None or test.labels is None:
            raise DataError("--compare needs labels, and training images of the test images' classes; leave it out")
        reference, *others = with_backprop(net, database, searched, test.labels)
        if brief:
            methods.append(reference)
        else:
            methods += [*transfers(net, database), *of_gallery(net, database, searched)]
            methods += [*rivals(net, database), untrained_head(net, database, searched)]
            methods += [*with_partner(net, database, searched, test.labels), reference, *others]
    score, everything = partial(passes.run, test, reference=reference), np.arange(len(test))
    first, what = ([*natives, *methods], "") if best == own else (natives, " at the network's size")
    native = Shards(parts, "own-size", len(test))
    read, embeddings, masks = score(everything, first, own, native, what=f"explaining{what}")
    if best != own:
        size = " x ".join(map(str, best.input_size))
        score(read, methods, best, Shards(parts, "best-size", len(read)), what=f"explaining at {size} pixels")
    ordered = [default, *natives, *methods[1:]]
    if grid:
        _ask(ordered, Composites.draw(net, test.subset(read), grid), database, searched)
    warn_of_maps_alike(explainer, test.subset(read), workers=workers)
    rows = [method.row() for method in ordered]
    return {
        "schema": 1,
        "rows": rows,
        **_retrieval(test, read, embeddings, searched),
        "explain_size": list(best.input_size),
        "images": len(read),
        "masks": masks,
        "mask_kind": getattr(test, "mask_kind", "mask"),
        "skipped": len(test) - len(read),
        "composites": grid,
        "sum_rule": sum_rule(explainer, test.subset(read), batch_size=batch_size, workers=workers),
    }


def _ask(methods: Sequence[Method], composites: Composites, database: WeightDatabase, gallery: Gallery | None) -> None:
    questions: dict[str, NDArray[Any]] = {"cluster": composites.clusters(database)}
    if gallery is not None:
        questions["partner"] = gallery.embedded.embeddings[composites.partners(gallery.labels)]
    for by, asked in questions.items():
        asks = {method.name: method.asks[by] for method in methods if by in method.asks}
        for name, result in grid_test(asks, composites, asked).items():
            method = next(method for method in methods if method.name == name)
            method.grid = {**method.grid, by: result}


def _fingerprint(database: WeightDatabase) -> str:
    digest = hashlib.sha256(repr(database.facts()).encode())
    for name, array in arrays(database).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _retrieval(
    test: Samples, read: NDArray[np.int64], embeddings: NDArray[np.float32], gallery: Gallery | None
) -> dict[str, Any]:
    if test.labels is None or (gallery is None and len(read) < 2):
        return dict.fromkeys(column.key for column in RETRIEVAL)
    queries = Side.of(test, read, embeddings)
    references = None
    if gallery is not None:
        references = Side.of(gallery.samples, gallery.embedded.kept, gallery.embedded.embeddings)
    return {**rank(queries, references).scores(), "nmi": nmi_of(embeddings, queries.labels)}
