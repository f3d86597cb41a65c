"""The verbs that explain images, export and serve."""

from __future__ import annotations

import heapq
import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import EmbedcamError
from . import completion, console
from .options import (
    DRAWING,
    GRAPH,
    METHOD,
    RUNNING,
    SPEC,
    BatchSizeOption,
    DbOption,
    DbOrNone,
    DeviceOption,
    ExplainSizeOption,
    NetOption,
    NetOrNone,
    NetWeightsOption,
    OnnxOrNone,
    PresetOption,
    ResumeOption,
    StrictOption,
    Transfer,
    WorkersOption,
    require_explainer,
)


def explain(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Images and folders of images; or one video file or camera:0.", metavar="INPUT..."),
    ],
    net: NetOrNone = None,
    db: DbOrNone = None,
    weights: NetWeightsOption = None,
    onnx: OnnxOrNone = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to, runs/explain by default; of a video, a file.", metavar="PATH"),
    ] = None,
    anomaly: Annotated[
        bool, typer.Option("--anomaly", help="List how unlike the training images each is, the most unlike first.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(help="Another image: show what each shares with it, and what differs.", metavar="IMAGE"),
    ] = None,
    preset: PresetOption = "default",
    transfer: Annotated[
        Transfer | None,
        typer.Option(
            help="Whose weights an image gets, with one layer: soft-contrast, soft, contrast, cluster, neighbors or "
            "nearest.",
            metavar="NAME",
            rich_help_panel=METHOD,
        ),
    ] = None,
    placement: Annotated[
        Literal["receptive-field", "stretch"] | None,
        typer.Option(
            help="Cells where the network looked (receptive-field), or plainly stretched.",
            metavar="NAME",
            rich_help_panel=METHOD,
        ),
    ] = None,
    explain_size: ExplainSizeOption = None,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Draw boxes around strong regions.", rich_help_panel=DRAWING)
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="Least heat inside a box's region.", metavar="X", rich_help_panel=DRAWING),
    ] = 0.5,
    alpha: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Weight of the heat map in the overlay.", metavar="X", rich_help_panel=DRAWING
        ),
    ] = 0.5,
    smoothing: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.99,
            help="Share of the frames before in a video frame's map.",
            metavar="X",
            rich_help_panel=DRAWING,
        ),
    ] = 0.0,
    colormap: Annotated[
        str,
        typer.Option(
            help="turbo, viridis, jet, or any other that the cmap library knows.",
            metavar="NAME",
            autocompletion=completion.colormaps,
            rich_help_panel=DRAWING,
        ),
    ] = "turbo",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Numbers that the network computes with.", rich_help_panel=RUNNING),
    ] = "float32",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile network and lookup first; pays off for thousands of images.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime's, with --onnx, such as CUDAExecutionProvider; repeat for others to fall back on.",
            metavar="NAME",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    batch_size: BatchSizeOption = 4,
    resume: ResumeOption = False,
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Explain images: overlays, a contact sheet, raw maps, and a JSON line an image.

    \b
    Example:
      embedcam explain --net net.safetensors --db weights.h5 photo.jpg holiday/

    \b
    Of a video:
      embedcam explain --onnx explainer.onnx film.mp4 --out explained.mp4
    """
    from ..batch.files import explain_files
    from ..show.drawing import DrawOptions
    from ..video.video import is_video

    require_explainer(net, weights, db, onnx)
    video = any(map(is_video, inputs))
    if video and (len(inputs) > 1 or against is not None):
        raise typer.BadParameter("give one video or camera, alone")
    explainer: Any
    if onnx is not None:
        if against is not None:
            raise typer.BadParameter("--against needs --net and --db; an ONNX file has no head to take apart")
        settled = {
            "--preset": preset != "default",
            "--transfer": transfer,
            "--placement": placement,
            "--explain-size": explain_size,
            "--precision": precision != "float32",
            "--compile": compiled,
            "--device": device != "auto",
        }
        for option, chosen in settled.items():
            if chosen:
                raise typer.BadParameter(f"{option} has no effect on an ONNX file; export one that explains so")
        from ..onnx.explainer import OnnxExplainer

        concurrency = 1 if provider or video else console.default_concurrency()
        threads = console.cores() // concurrency if concurrency > 1 else 0
        explainer = OnnxExplainer(onnx, provider, threads=threads)
    else:
        if provider:
            raise typer.BadParameter("--provider goes with --onnx; a torch network runs on --device")
        import torch

        from ..explain import CompiledExplainer, Explainer

        assert net is not None
        assert db is not None
        network = console.network(net, weights, device)
        several = network.device.type == "cpu" and not compiled and not video and against is None
        concurrency = console.default_concurrency() if several else 1
        if concurrency > 1:
            torch.set_num_threads(console.cores() // concurrency)
        explainer = (CompiledExplainer if compiled else Explainer)(
            network,
            db,
            preset=preset,
            transfer=transfer,
            placement=placement,
            explain_size=explain_size,
            autocast=None if precision == "float32" else getattr(torch, precision),
        )
    if video:
        console.print_stream(explainer, str(inputs[0]), out, boxes, alpha, colormap, smoothing)
        return
    out = out or Path("runs/explain")
    draw = DrawOptions(boxes, threshold, alpha, colormap)
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
        said = "; ".join([*score, *(line["notes"] or [line["typicality_in_words"]])])
        typer.echo(f"{line['image']}: {cluster}, distance {line['distance']:.3f}, {said}")
    if len(lines) > 20:
        typer.echo(f"... and {len(lines) - 20} more in {out / 'explanations.jsonl'}")
    typer.echo(f"wrote {out / 'contact_sheet.png'}, overlays/, maps/ and explanations.jsonl")


def export(
    net: NetOption,
    db: DbOption,
    out: Annotated[Path, typer.Option(help="ONNX file to write.", metavar="FILE")],
    weights: NetWeightsOption = None,
    preset: PresetOption = "default",
    explain_size: ExplainSizeOption = None,
    heatmap: Annotated[
        Literal["image", "map"],
        typer.Option(help="Heat maps of the image's size, or one value a cell.", rich_help_panel=GRAPH),
    ] = "image",
    uint8_input: Annotated[
        bool,
        typer.Option(
            "--uint8-input",
            help="Take pictures of any size; resize and normalise in the graph.",
            rich_help_panel=GRAPH,
        ),
    ] = False,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Take image batches of any height and width.", rich_help_panel=GRAPH)
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in 8 bits where maps allow; needs --data.", rich_help_panel=GRAPH)
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"Images to calibrate 8 bits on: {SPEC}",
            metavar="SPEC",
            autocompletion=completion.registered("datasets"),
            rich_help_panel=GRAPH,
        ),
    ] = None,
) -> None:
    """Write network and weight database as one ONNX file that explains without torch.

    \b
    Example:
      embedcam export --net net.safetensors --db weights.h5 --out explainer.onnx
    """
    import tempfile

    from ..data import load
    from ..explain import Explainer
    from ..onnx.export import export as write
    from ..onnx.quantise import quantise
    from ..utils.files import require_writable

    if int8 != (data is not None):
        raise typer.BadParameter("--int8 and --data SPEC go together: 8 bits are calibrated on images")
    require_writable(out)
    explainer = Explainer(console.network(net, weights, "cpu"), db, preset=preset, explain_size=explain_size)
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "explainer.onnx" if int8 else out
        report = write(explainer, exact, heatmap=heatmap, uint8_input=uint8_input, dynamic=dynamic)
        typer.echo(
            f"{'made' if int8 else f'wrote {out}'} ({report.size / 1e6:.1f} MB); checked on {report.images} images: "
            f"heat maps within {report.map_difference:.1e} of torch's, the same clusters"
        )
        if data is not None:
            console.print_cost(quantise(exact, load(data, "train"), out))


def classmap(
    images: Annotated[list[Path], typer.Argument(help="Images.", metavar="IMAGE...")],
    net: Annotated[
        str,
        typer.Option(
            "--net",
            help="A torchvision classifier, such as mobilenet_v2.",
            metavar="NAME",
            autocompletion=completion.backbones,
        ),
    ],
    weights: Annotated[str, typer.Option(help="Its state dict, or torchvision's DEFAULT.", metavar="FILE|DEFAULT")],
    out: Annotated[Path, typer.Option(help="Folder to write to.", metavar="DIR")] = Path("runs/classmap"),
    window: Annotated[
        str, typer.Option(help="Cells averaged, across: 1, 3, 5, or whole for the whole image.", metavar="N")
    ] = "3",
    class_threshold: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Least probability of a class.", metavar="X")
    ] = 0.85,
    box_threshold: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Least probability inside a box.", metavar="X")
    ] = 0.5,
    size: Annotated[
        int | None, typer.Option(min=1, help="Shorter side to look at the image with, in pixels.", metavar="N")
    ] = None,
) -> None:
    """Show which classes a classifier sees where, in images of any size, without backpropagation.

    \b
    Example:
      embedcam classmap --net mobilenet_v2 --weights DEFAULT street.jpg
    """
    from ..classmap.classmap import classmap_file, load_classifier

    stems = [image.stem for image in images]
    if repeated := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise EmbedcamError(f"several images would write {repeated}_boxes.png; rename them or use one --out per image")
    if window not in ("1", "3", "5", "whole"):
        raise EmbedcamError(f"--window must be 1, 3, 5 or whole, got {window!r}; choose one of them")
    classifier = load_classifier(net, weights, window="whole" if window == "whole" else int(window))
    for image in images:
        class_map = classmap_file(
            classifier, image, out, size=size, class_threshold=class_threshold, box_threshold=box_threshold
        )
        detected = ", ".join(f"{d.name} {d.probability:.2f} ({len(d.boxes)} boxes)" for d in class_map.detections)
        strongest = ", ".join(f"{name} {probability:.2f}" for name, probability in class_map.strongest(3))
        typer.echo(f"{image}: {detected or f'nothing above {class_threshold:g}; most likely {strongest}'}")
    typer.echo(f"wrote the pictures to {out}")


def inspect(
    file: Annotated[Path, typer.Argument(help="Weight database.", metavar="weights.h5")],
    top: Annotated[int, typer.Option(min=1, help="Labels and channels shown of each cluster.", metavar="N")] = 3,
    verify: Annotated[bool, typer.Option("--verify", help="Check every item instead, and the checksum.")] = False,
) -> None:
    """Print what a weight database holds.

    \b
    Example:
      embedcam inspect weights.h5
    """
    from ..database.verify import verify as check
    from ..database.weight_database import WeightDatabase

    if verify:
        outcomes = check(file)
        for outcome in outcomes:
            typer.echo(f"{'ok' if outcome.sound else 'BAD':<4}{outcome.item}: {outcome.found}")
        raise typer.Exit(0 if all(outcome.sound for outcome in outcomes) else 1)
    console.print_database(WeightDatabase.load(file), top)


def serve(
    net: NetOrNone = None,
    db: DbOrNone = None,
    weights: NetWeightsOption = None,
    onnx: OnnxOrNone = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"The training images, to show those that are like a picture: {SPEC}",
            metavar="SPEC",
            autocompletion=completion.registered("datasets"),
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; by default, only this machine reaches it.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; any free one if 0.", metavar="N")] = 7860,
    token: Annotated[
        str | None, typer.Option(envvar="EMBEDCAM_TOKEN", help="What every visitor must give.", metavar="TEXT")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Images explained at the same time; on a CPU one per core, at most 8.", metavar="N"),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Serve a web page, and an HTTP API, that explain pictures.

    \b
    Example:
      embedcam serve --net net.safetensors --db weights.h5 --data folder:birds
    """
    require_explainer(net, weights, db, onnx)
    from ..app import serve as run
    from ..app.limits import Limits

    explainer: Any
    if onnx is not None:
        from ..onnx.explainer import OnnxExplainer

        concurrency = concurrency or console.default_concurrency()
        explainer = OnnxExplainer(onnx, threads=max(console.cores() // concurrency, 1))
    else:
        import torch

        from ..explain import Explainer

        assert net is not None
        assert db is not None
        network = console.network(net, weights, device)
        concurrency = concurrency or (console.default_concurrency() if network.device.type == "cpu" else 1)
        torch.set_num_threads(max(console.cores() // concurrency, 1))
        explainer = Explainer(network, db)
    run(explainer, host, port, token=token, data=data, limits=Limits(concurrency=concurrency))
