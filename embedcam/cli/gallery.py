"""The verbs of galleries: index, and match."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import printing
from .networks import NetworkChoice, takes_network
from .options import (
    BatchSizeOption,
    DataOption,
    DeviceOption,
    ResumeOption,
    StrictOption,
    WorkersOption,
    method_option,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..gallery.matches import Item, Match


@takes_network
def index(
    net: NetworkChoice,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Gallery index to write.", metavar="FILE")],
    append: Annotated[bool, typer.Option("--append", help="Add the images to those of the file.")] = False,
    batch_size: BatchSizeOption = 32,
    resume: ResumeOption = False,
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Index the images that are searched, so that matches with them can be explained.

    \b
    Example:
      embedcam index --net net.safetensors --data folder:birds --out gallery.h5
    """
    from ..data import load
    from ..gallery import index as write
    from ..utils.distributed import join
    from ..utils.files import require_writable

    group = join()
    require_writable(out, net.files)
    network, samples = net.load(device), load(data, "all")
    options = {"append": append, "resume": resume, "strict": strict}
    count = write(network, samples, out, batch_size=batch_size, workers=workers, group=group, **options)
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
    versus: Annotated[
        bool, method_option("--versus", help="Also show why the first hit is above each other one.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Search a gallery, and explain why each hit matches: write sheets, JSON lines and a report.

    \b
    Example:
      embedcam match photo.jpg --index gallery.h5
    """
    from ..batch.files import find_files
    from ..gallery import Gallery
    from ..gallery.report import seen_picture, write_matches
    from ..utils.files import require_writable
    from ..utils.progress import track

    samples = find_files(queries, out)
    require_writable(out / "matches.jsonl", [*samples.files, *net.files, index])
    with Gallery.open(index) as stored:
        network = net.load_as(stored.record.network, index.parent, device)
    with Gallery.open(index, network) as gallery:

        def found(number: int) -> tuple[Item, NDArray[np.uint8], list[Match]]:
            image = samples.image(number)
            result = gallery.search([image], top, ids=[samples.ids[number]])
            return result.queries[0], seen_picture(result.queries[0], image), result[0]

        lines = write_matches(
            track(map(found, range(len(samples))), "matching", len(samples)), out, compare_hits=versus
        )
    for line in lines[:20]:
        label = "" if line["label"] is None else f" ({line['label']})"
        typer.echo(f"{line['query']}: {line['rank']}. {line['hit']}{label}, similarity {line['similarity']:.3f}")
    if len(lines) > 20:
        typer.echo(f"... and {len(lines) - 20} more")
    typer.echo(f"wrote {out / 'matches.html'}, matches.jsonl and sheets/")
