"""What `evaluate` does without a weight database: score the retrieval, explain its failures, and look for biases."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import printing
from .networks import NetworkChoice, file_of

if TYPE_CHECKING:
    from ..evaluate.ranking import Side
    from ..evaluate.search import Search
    from ..gallery import Gallery

_EXTREMES = 12


@dataclass(frozen=True)
class RetrievalOptions:
    """Options of `evaluate` without --db.

    Attributes:
        index: Gallery index to search; None to embed what is searched.
        data: SPEC of the queries.
        errors: Number of failures to explain.
        bias: Whether to look for biases.
        out: Folder for what is explained.
        json_file: File for the scores.
        mask_threshold: As for `load`.
        device: As for `console.device`.
        reading: "batch_size", "strict" and "workers".
    """

    index: Path | None
    data: str
    errors: int
    bias: bool
    out: Path
    json_file: Path | None
    mask_threshold: int | None
    device: str
    reading: dict[str, Any]


def evaluate_retrieval(net: NetworkChoice, options: RetrievalOptions) -> None:
    """Run `embedcam evaluate` without --db.

    Args:
        net: The network; none for the one that the index records.
        options: The other options.

    Raises:
        EmbedcamError: If an image or the index cannot be used, or a file cannot be written.
    """
    from ..data import has_queries, load_all, load_gallery, load_queries
    from ..data.samples import input_files
    from ..evaluate.search import has_classes_of, search, side_of_index
    from ..utils.files import require_writable

    data, index, json_file = options.data, options.index, options.json_file
    queries = load_queries(data, mask_threshold=options.mask_threshold)
    explained = [options.out / f"errors.{kind}" for kind in ("html", "jsonl") if options.errors]
    explained += [options.out / f"bias.{kind}" for kind in ("html", "csv", "json") if options.bias]
    for file in (*explained, *([] if json_file is None else [json_file])):
        require_writable(file, [*net.files, index, *input_files(queries)])
    if index is None:
        network, searched = net.load(options.device), load_gallery(data)
        if searched is not None and not has_queries(data) and not has_classes_of(queries, searched):
            searched = None  # the training images are of other classes
        found = search(network, queries, searched, **options.reading)
        _report(found.result(), options)
        return
    with net.with_gallery(index, options.device) as gallery:
        if json_file is not None:
            require_writable(json_file, [file_of(gallery.net)])
        everything = load_all(data, mask_threshold=options.mask_threshold)
        references = side_of_index(index, everything)
        found = search(gallery.net, queries, references, **options.reading)
        _report(found.result(), options)
        _explain(found, references, gallery, everything, options)


def _report(result: dict[str, Any], options: RetrievalOptions) -> None:
    from ..utils.files import write_text

    printing.print_retrieval(result)
    if options.json_file is not None:
        write_text(options.json_file, json.dumps({**result, "data": options.data}, indent=2) + "\n")
        typer.echo(f"wrote {options.json_file}")


def _explain(found: Search, references: Side, gallery: Gallery, everything: Any, options: RetrievalOptions) -> None:
    from ..evaluate.bias import Pair, pairs, summarise
    from ..evaluate.errors import count_failures, failures
    from ..evaluate.objects import Objects
    from ..evaluate.pages import write_bias, write_errors

    objects = Objects(everything)
    scores = f"Recall@1 {found.ranking.scores()['recall_at_1']:.3f}"
    facts = [("Data", options.data), ("Gallery", f"{gallery.path.name}, {len(gallery)} images"), ("Scores", scores)]
    if options.errors:
        worst = failures(found, references, gallery, objects, options.errors)
        counted = ("Failures", f"{len(worst)} of {count_failures(found)}")
        for file in write_errors(worst, objects, [*facts, counted], options.out):
            typer.echo(f"wrote {file}")
    if options.bias:
        measured: list[Pair] = []

        def all_pairs() -> Iterator[tuple[float, int, tuple[Pair, Any]]]:
            for number, (pair, match) in enumerate(pairs(found, gallery, objects, **options.reading)):
                measured.append(pair)
                yield pair.excess * pair.similarity, -number, (pair, match)

        extremes = [each for _, _, each in heapq.nlargest(_EXTREMES, all_pairs())]
        summary = summarise(measured, objects.kind)
        printing.print_bias(summary)
        for file in write_bias(summary, extremes, objects, [*facts, ("Pairs", len(measured))], options.out):
            typer.echo(f"wrote {file}")
