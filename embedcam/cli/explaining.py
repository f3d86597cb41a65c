"""The verb that explains images and videos."""

from __future__ import annotations

import heapq
import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import completion, console, printing
from .networks import NetworkChoice, require_explainer, takes_network
from .options import (
    BatchSizeOption,
    DbOrNone,
    DeviceOption,
    ExplainSizeOption,
    OnnxOrNone,
    PresetOption,
    ResumeOption,
    StrictOption,
    WorkersOption,
    drawing_option,
    method_option,
    one_of,
    refuse_unused,
    running_option,
)


@takes_network
def explain(
    context: typer.Context,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Images, folders and 'patterns*' of images, or - for standard input; or one video, or camera:0.",
            metavar="INPUT...",
        ),
    ],
    net: NetworkChoice = NetworkChoice(),  # noqa: B008
    db: DbOrNone = None,
    onnx: OnnxOrNone = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to, runs/explain by default; a file for a video.", metavar="PATH"),
    ] = None,
    anomaly: Annotated[
        bool, typer.Option("--anomaly", help="List the images by anomaly score, highest first.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with another image: show which places match it, and which differ.", metavar="IMAGE"),
    ] = None,
    towards: Annotated[
        str | None,
        method_option(
            help="Ask why the images are near this: a label, the number of a cluster, or an image.", metavar="WHAT"
        ),
    ] = None,
    versus: Annotated[
        str | None,
        method_option(help="Ask why they are nearer to --towards, or their own cluster, than to this.", metavar="WHAT"),
    ] = None,
    preset: PresetOption = "default",
    transfer: Annotated[
        str | None,
        method_option(
            help="How stored weights are chosen, with one layer: {transfers}.",
            metavar="NAME",
            callback=one_of("transfers"),
            autocompletion=completion.registered("transfers"),
        ),
    ] = None,
    placement: Annotated[
        Literal["receptive-field", "stretch"] | None,
        method_option(help="Place cells by their receptive fields, or stretch the map over the image.", metavar="NAME"),
    ] = None,
    explain_size: ExplainSizeOption = None,
    boxes: Annotated[bool, drawing_option("--boxes", help="Draw boxes around strong regions.")] = False,
    threshold: Annotated[
        float | None, drawing_option(min=0.01, max=1.0, help="Minimum heat inside a box; 0.05.", metavar="X")
    ] = None,
    alpha: Annotated[
        float, drawing_option(min=0.0, max=1.0, help="Weight of the heat map in the overlay.", metavar="X")
    ] = 0.5,
    smoothing: Annotated[
        float,
        drawing_option(min=0.0, max=0.99, help="Weight of the previous frames in a video frame's map.", metavar="X"),
    ] = 0.0,
    colormap: Annotated[
        str,
        drawing_option(
            help="turbo, viridis, jet, or another colour map of the cmap library.",
            metavar="NAME",
            autocompletion=completion.colormaps,
        ),
    ] = "turbo",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"], running_option(help="Number type that the network computes with.")
    ] = "float32",
    compiled: Annotated[
        bool, running_option("--compile", help="Compile the explainer first; worthwhile for thousands of images.")
    ] = False,
    provider: Annotated[
        list[str] | None,
        running_option(
            help="Execution provider for --onnx, such as CUDAExecutionProvider; repeat the option for fallbacks.",
            metavar="NAME",
        ),
    ] = None,
    batch_size: BatchSizeOption = 4,
    resume: ResumeOption = False,
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Explain images: write overlays, a contact sheet, raw maps, and one JSON line per image.

    \b
    Example:
      embedcam explain --net net.safetensors --db weights.h5 photo.jpg holiday/

    \b
    A question:
      embedcam explain ... photo.jpg --towards monarch --versus viceroy

    \b
    A video:
      embedcam explain --onnx explainer.onnx film.mp4 --out explained.mp4
    """
    from ..batch.files import expand, explain_files
    from ..show.boxes import THRESHOLD
    from ..show.drawing import DrawOptions
    from ..video.video import is_video
    from ..video.writer import WRITTEN

    require_explainer(net, db, onnx)
    if not str(inputs[0]).startswith("camera:"):
        inputs = expand(inputs)
    film = out is not None and out.suffix.lower() in WRITTEN and not out.is_dir()  # also of an animated GIF
    video = film or any(map(is_video, inputs))
    if video and (len(inputs) > 1 or inputs[0].is_dir() or against is not None):
        raise typer.BadParameter("give a single video or camera, and nothing else")
    if not boxes:
        refuse_unused(context, "without --boxes", "threshold")
    if video:
        refuse_unused(context, "on a video", "anomaly", "batch_size", "resume", "strict", "workers")
        if boxes:
            refuse_unused(context, "on a video with --boxes, which shows no heat map", "alpha", "colormap")
    else:
        refuse_unused(context, "on images, only on a video", "smoothing")
    if against is not None:
        refuse_unused(context, "with --against", "anomaly", "resume", "transfer", "precision", "compiled")
    asked = towards is not None or versus is not None
    if asked:
        refuse_unused(context, "with --towards or --versus", "against", "compiled")
    explainer: Any
    if onnx is not None:
        if asked or against is not None:
            raise typer.BadParameter("questions need --net and --db; an ONNX file answers none")
        fixed = ("preset", "transfer", "placement", "explain_size", "precision", "compiled", "device")
        refuse_unused(context, "on an ONNX file, whose options are chosen when exporting", *fixed)
        from ..onnx.explainer import OnnxExplainer

        concurrency = 1 if provider or video else console.default_concurrency()
        threads = console.cores() // concurrency if concurrency > 1 else 0
        explainer = OnnxExplainer(onnx, provider, threads=threads)
    else:
        if provider:
            raise typer.BadParameter("--provider needs --onnx; a torch network runs on --device")
        import torch

        from ..explain import CompiledExplainer, Explainer

        assert db is not None
        network, database = net.with_database(db, device)
        several = network.device.type == "cpu" and not compiled and not video and against is None
        concurrency = console.default_concurrency() if several else 1
        if concurrency > 1:
            torch.set_num_threads(console.cores() // concurrency)
        explainer = (CompiledExplainer if compiled else Explainer)(
            network,
            database,
            preset=preset,
            transfer=transfer,
            placement=placement,
            explain_size=explain_size,
            autocast=None if precision == "float32" else getattr(torch, precision),
        )
        if asked:
            explainer = explainer.asking(towards=towards, versus=versus)
    draw = DrawOptions(boxes, threshold or THRESHOLD, alpha, colormap)
    if video:
        printing.print_stream(explainer, str(inputs[0]), out, draw, smoothing)
        return
    out = out or Path("runs/explain")
    reading: dict[str, Any] = {"batch_size": batch_size, "strict": strict, "workers": workers}
    if against is not None:
        from ..batch.comparison import explain_against

        pairs = explain_against(explainer, inputs, against, out, draw, **reading)
        for pair in pairs[:20]:
            typer.echo(f"{pair['image']}: similarity {pair['similarity']:.3f}, see {out / pair['pair']}")
        typer.echo(f"wrote {len(pairs)} pictures to {out / 'pairs'}, and {out / 'pairs.jsonl'}")
        return
    lines = explain_files(explainer, inputs, out, draw, concurrency=concurrency, resume=resume, **reading)
    shown = heapq.nlargest(20, lines, key=lambda line: line["anomaly"]) if anomaly else itertools.islice(lines, 20)
    for line in shown:
        labels = ", ".join(f"{name} ({count})" for name, count in line["cluster_labels"].items())
        cluster = f"cluster {line['cluster']}{f' of {labels}' if labels else ''}"
        score = [f"anomaly {line['anomaly']:.2f}"] if anomaly else []
        answer = [printing.answer(line)] if asked else []
        remarks = "; ".join([*score, *answer, *(line["notes"] or [line["typicality_in_words"]])])
        typer.echo(f"{line['image']}: {cluster}, distance {line['distance']:.3f}, {remarks}")
    if len(lines) > 20:
        typer.echo(f"... and {len(lines) - 20} more in {out / 'explanations.jsonl'}")
    typer.echo(f"wrote {out / 'contact_sheet.png'}, overlays/, maps/ and explanations.jsonl")
