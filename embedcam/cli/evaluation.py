"""The verb that evaluates."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import printing
from .networks import NetworkChoice, file_of, takes_network
from .options import (
    BatchSizeOption,
    DataOption,
    DbOrNone,
    DeviceOption,
    ExplainSizeOption,
    ResumeOption,
    StrictOption,
    WorkersOption,
    refuse_unused,
)
from .retrieval import RetrievalOptions, evaluate_retrieval

_OF_MAPS = ("images", "compare", "grid", "faithfulness", "randomisation", "parts", "explain_size", "resume", "check")


@takes_network
def evaluate(
    context: typer.Context,
    data: DataOption,
    net: NetworkChoice = NetworkChoice(),  # noqa: B008
    db: DbOrNone = None,
    index: Annotated[
        Path | None,
        typer.Option("--index", help="Gallery to search, written by `embedcam index`; without --db.", metavar="FILE"),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="At most this many images, evenly spread; all by default.", metavar="N"),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also score the other transfers ({transfers}), methods with gradients per image ({weightings}, "
            "EmbeddingCAM), and maps that know nothing of the embedding.",
        ),
    ] = False,
    grid: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of images of four pictures in which maps are asked for one of them; 100 are usual.",
            metavar="N",
        ),
    ] = 0,
    faithfulness: Annotated[
        bool,
        typer.Option(
            "--faithfulness",
            help="Also measure deletion and insertion: hide or show what the maps mark, and embed the image again.",
        ),
    ] = False,
    randomisation: Annotated[
        bool, typer.Option("--randomisation", help="Also compare with the maps of networks with random layers.")
    ] = False,
    parts: Annotated[
        bool,
        typer.Option("--parts", help="Also divide the heat among parts, for images with keypoints such as cub:."),
    ] = False,
    errors: Annotated[
        int,
        typer.Option(min=0, help="Number of failures of the search to explain, the worst; with --index.", metavar="N"),
    ] = 0,
    bias: Annotated[
        bool,
        typer.Option("--bias", help="Measure how much of the similarities comes from off the object; with --index."),
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for curves, and for the pages of --errors and --bias.", metavar="DIR")
    ] = Path("runs/evaluate"),
    explain_size: ExplainSizeOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write the scores to: {scores}, retrieval.", metavar="FILE")
    ] = None,
    mask_threshold: Annotated[
        int | None,
        typer.Option(
            min=0, max=254, help="Brightness above which a pixel of a mask belongs to the object; 127.", metavar="N"
        ),
    ] = None,
    batch_size: BatchSizeOption = 16,
    resume: ResumeOption = False,
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Score heat maps against masks, and embeddings against labels; without --db, embeddings alone.

    Neighbours are searched in the data set's gallery, or else among its training images if they have the same classes,
    or else among the test images themselves; with --index, in that gallery.

    \b
    Examples:
      embedcam evaluate --net net.safetensors --db weights.h5 \\
        --data folder:birds --json scores.json
      embedcam evaluate --net net.safetensors --data market1501:Market-1501
    """
    from ..data import load_gallery, load_queries
    from ..data.samples import input_files
    from ..evaluate.checks import Check, evenly_spread
    from ..evaluate.parts import keypoints_of
    from ..evaluate.table import evaluate as run
    from ..show.curve import draw_faithfulness, draw_randomisation
    from ..utils.files import require_writable, write_text
    from ..utils.resume import work_folder

    reading: dict[str, Any] = {"batch_size": batch_size, "strict": strict, "workers": workers}
    if db is None:
        refuse_unused(context, "without --db", *_OF_MAPS)
        if net.net is None and index is None:
            raise typer.BadParameter("give --net, --index or --db")
        if index is None:
            refuse_unused(context, "without --index", "errors", "bias")
        if not (errors or bias):
            refuse_unused(context, "without --errors or --bias", "out", "mask_threshold")
        options = RetrievalOptions(
            index, data, errors, bias, out, json_file, mask_threshold, device=device, reading=reading
        )
        evaluate_retrieval(net, options)
        return
    refuse_unused(context, "with --db", "index", "errors", "bias")
    if resume and json_file is None:
        raise typer.BadParameter("--resume needs --json FILE: finished scores are stored beside it")
    if not (faithfulness or randomisation):
        refuse_unused(context, "without --faithfulness or --randomisation", "out")
    checks: dict[str, tuple[Callable[..., None], Callable[..., None] | None]] = {}
    if faithfulness:
        checks["faithfulness"] = printing.print_faithfulness, draw_faithfulness
    if randomisation:
        checks["randomisation"] = printing.print_randomisation, draw_randomisation
    if parts:
        checks["parts"] = printing.print_parts, None
    drawings = {kind: out / f"{kind}.png" for kind, (_, draw) in checks.items() if draw is not None}
    outputs = [*drawings.values(), *([] if json_file is None else [json_file])]
    for file in outputs:
        require_writable(file, [*net.files, db])
    work = None
    with contextlib.ExitStack() as stack:
        if json_file is not None:
            work = stack.enter_context(work_folder(json_file))
        network, database = net.with_database(db, device)
        test, gallery = load_queries(data, mask_threshold=mask_threshold), load_gallery(data)
        if images is not None:
            test = evenly_spread(test, images)
        if parts:
            keypoints_of(test)  # raises now, not after the long pass
        for file in outputs:
            read = [*input_files(test), *(input_files(gallery) if gallery is not None else ())]
            require_writable(file, [file_of(network), *read])
        kept: dict[str, Any] = {"work": work, "resume": resume}
        chosen: dict[str, Any] = {"compare": compare, "grid": grid, "explain_size": explain_size}
        result = run(network, database, test, gallery, **chosen, **kept, **reading)
        check = Check(network, database, test, gallery, reading)
        for kind, (_, draw) in checks.items():
            result[kind] = check.run(kind)
            if draw is not None:
                draw(result[kind], drawings[kind])
        if json_file is not None:
            write_text(json_file, json.dumps({**result, "data": data}, indent=2) + "\n")
    printing.print_scores(result)
    for kind, (show, _) in checks.items():
        show(result[kind])
    for file in outputs:
        typer.echo(f"wrote {file}")
