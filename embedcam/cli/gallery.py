"""The verbs of galleries: index, and match."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DataError
from . import completion, printing
from .networks import NetworkChoice, takes_network
from .options import (
    SPEC,
    BatchSizeOption,
    DeviceOption,
    ResumeOption,
    StrictOption,
    WorkersOption,
    data_option,
    method_option,
    refuse_unused,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from ..data.samples import FileSamples
    from ..gallery import Gallery, Matches

logger = logging.getLogger("embedcam")


@takes_network
def index(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Gallery index to write.", metavar="FILE")],
    merged: Annotated[
        list[Path] | None, typer.Argument(help="Indexes, with --merge.", metavar="[INDEX...]", show_default=False)
    ] = None,
    net: NetworkChoice = NetworkChoice(),  # noqa: B008
    data: Annotated[str | None, data_option(help=f"Images: {SPEC}")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add the images to an existing index.")] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge indexes that one network made, instead of indexing images.")
    ] = False,
    no_descriptors: Annotated[
        bool,
        typer.Option(
            "--no-descriptors",
            help="Leave out descriptors, which find corresponding places; two thirds of the file.",
        ),
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(help="Index to merge with later: descriptors are computed as in it.", metavar="FILE"),
    ] = None,
    batch_size: BatchSizeOption = 32,
    resume: ResumeOption = False,
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Index the images that are searched, so that matches with them can be explained.

    \b
    Examples:
      embedcam index --net net.safetensors --data folder:birds --out gallery.h5
      embedcam index --merge monday.h5 tuesday.h5 --out gallery.h5
    """
    from ..utils.files import require_writable

    files = merged or []
    if merge:
        names = [parameter.name or "" for parameter in context.command.params]
        refuse_unused(context, "with --merge", *(name for name in names if name not in ("out", "merge", "merged")))
        if not files:
            raise typer.BadParameter("--merge needs indexes: embedcam index --merge INDEX INDEX --out FILE")
    elif files:
        raise typer.BadParameter(f"unexpected argument {files[0]}; indexes are merged with --merge")
    elif net.net is None or data is None:
        raise typer.BadParameter("give --net and --data, or --merge and indexes")
    require_writable(out, [*net.files, *files])
    if merge:
        from ..gallery import merge as write_merged

        count = write_merged(files, out)
    else:
        from ..data import load
        from ..gallery import index as write
        from ..utils.distributed import join

        assert data is not None
        group = join()
        network, samples = net.load(device), load(data, "all")
        options = {"append": append, "resume": resume, "strict": strict, "descriptors": not no_descriptors}
        count = write(network, samples, out, like=like, batch_size=batch_size, workers=workers, group=group, **options)
    printing.echo_once(f"wrote {out}: {count} images")


@takes_network
def match(
    queries: Annotated[
        list[Path], typer.Argument(help="Images, folders and 'patterns*' of images.", metavar="QUERY...")
    ],
    index: Annotated[Path, typer.Option("--index", help="Gallery written by `embedcam index`.", metavar="FILE")],
    net: NetworkChoice = NetworkChoice(),  # noqa: B008
    out: Annotated[Path, typer.Option(help="Folder to write to.", metavar="DIR")] = Path("runs/match"),
    top: Annotated[int, method_option(min=1, help="Hits per query.", metavar="N")] = 10,
    searcher: Annotated[
        str | None,
        method_option(
            "--searcher",
            help="Search engine instead of the index: {searchers}.",
            metavar="ENGINE",
            autocompletion=completion.registered("searchers"),
        ),
    ] = None,
    hits: Annotated[
        Path | None,
        method_option(
            "--hits",
            help="Hits of any search instead: JSON lines with id or path, and optionally score and query.",
            metavar="FILE",
        ),
    ] = None,
    versus: Annotated[
        bool, method_option("--versus", help="Also show why the first hit is above each other one.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Search a gallery, and explain why each hit matches: write sheets, JSON lines and a report.

    \b
    Examples:
      embedcam match photo.jpg --index gallery.h5
      embedcam match photo.jpg --index gallery.h5 --searcher qdrant:http://localhost:6333/birds
    """
    from ..batch.files import find_files
    from ..gallery.report import seen_picture, write_matches
    from ..utils.files import require_writable
    from ..utils.progress import track

    if searcher is not None and hits is not None:
        raise typer.BadParameter("give --searcher or --hits, not both")
    samples = find_files(queries, out)
    for name in ("matches.jsonl", "matches.html"):
        require_writable(out / name, [*samples.files, *net.files, index, hits])
    with net.with_gallery(index, device) as gallery:
        search = _search(gallery, samples, top, searcher, hits)

        def found() -> Iterator[tuple[Matches, NDArray[np.uint8]]]:
            unreadable: list[DataError] = []
            for number in track(range(len(samples)), "matching", len(samples)):
                try:
                    image = samples.image(number)
                except DataError as error:
                    unreadable.append(error)
                    if len(unreadable) == len(samples):
                        raise
                    logger.warning("skipped: %s", error)
                    continue
                matches = search(number, image)
                yield matches, seen_picture(matches.queries[0], image)

        lines = write_matches(found(), out, compare_hits=versus)
    for line in lines[:20]:
        label = "" if line["label"] is None else f" ({line['label']})"
        typer.echo(f"{line['query']}: {line['rank']}. {line['hit']}{label}, similarity {line['similarity']:.3f}")
    if len(lines) > 20:
        typer.echo(f"... and {len(lines) - 20} more")
    typer.echo(f"wrote {out / 'matches.html'}, matches.jsonl and sheets/")


def _search(
    gallery: Gallery, samples: FileSamples, top: int, searcher: str | None, hits: Path | None
) -> Callable[[int, Image.Image], Matches]:
    """Return what finds the matches of a query, by its number and picture."""
    if hits is not None:
        from ..gallery.hits import HitsFile

        given = HitsFile(hits).of(samples.ids, samples.files)
        return lambda number, image: gallery.explain_hits([image], [given[number][:top]], ids=[samples.ids[number]])
    from ..gallery import open_searcher

    engine = None if searcher is None else open_searcher(searcher, gallery.record.network.metric)
    return lambda number, image: gallery.search([image], top, searcher=engine, ids=[samples.ids[number]])
