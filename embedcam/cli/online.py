"""The verbs that use a network and its weight database: export, inspect, serve; and class maps."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import EmbedcamError
from . import completion, console, printing
from .networks import NetworkChoice, file_of, require_explainer, takes_network
from .options import (
    SPEC,
    DbOption,
    DbOrNone,
    DeviceOption,
    ExplainSizeOption,
    OnnxOrNone,
    PresetOption,
    data_option,
    graph_option,
    refuse_unused,
)

_GPU_BATCH = 32  # images of requests that wait at the same time


@takes_network
def export(
    db: DbOption,
    out: Annotated[Path, typer.Option(help="ONNX file to write.", metavar="FILE")],
    net: NetworkChoice = NetworkChoice(),  # noqa: B008
    preset: PresetOption = "default",
    explain_size: ExplainSizeOption = None,
    heatmap: Annotated[
        Literal["image", "map"], graph_option(help="Heat maps of the image's size, or one value per cell.")
    ] = "image",
    uint8_input: Annotated[
        bool, graph_option("--uint8-input", help="Accept uint8 images of any size; resize and normalise in the graph.")
    ] = False,
    dynamic: Annotated[bool, graph_option("--dynamic", help="Accept image batches of any height and width.")] = False,
    int8: Annotated[
        bool, graph_option("--int8", help="Quantise to 8 bits where the maps allow it; needs --data.")
    ] = False,
    data: Annotated[
        str | None, data_option(help=f"Images to calibrate the quantisation on: {SPEC}", rich_help_panel="Graph")
    ] = None,
) -> None:
    """Write network and weight database as one ONNX file that explains without torch.

    \b
    Example:
      embedcam export --net net.safetensors --db weights.h5 --out explainer.onnx
    """
    from ..data import load
    from ..explain import Explainer
    from ..onnx.export import export as write
    from ..onnx.quantise import quantise
    from ..utils.files import require_writable, temporary_folder

    if int8 != (data is not None):
        raise typer.BadParameter("--int8 and --data SPEC need each other: quantisation is calibrated on images")
    require_writable(out, [*net.files, db])
    network, database = net.with_database(db, "cpu")
    require_writable(out, [file_of(network)])
    explainer = Explainer(network, database, preset=preset, explain_size=explain_size)
    with temporary_folder() if int8 else contextlib.nullcontext(Path()) as folder:
        exact = folder / "explainer.onnx" if int8 else out
        report = write(explainer, exact, heatmap=heatmap, uint8_input=uint8_input, dynamic=dynamic)
        typer.echo(
            f"{'made' if int8 else f'wrote {out}'} ({report.size / 1e6:.1f} MB); checked on {report.images} images: "
            f"heat maps within {report.map_difference:.1e} of torch's, the same clusters"
        )
        if data is not None:
            printing.print_cost(quantise(exact, load(data, "train"), out))


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
        str,
        typer.Option(
            help="Side of the window in cells, over which features are averaged: 1, 3, 5, or whole.", metavar="N"
        ),
    ] = "3",
    class_threshold: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Minimum probability of a class.", metavar="X")
    ] = 0.85,
    box_threshold: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Minimum probability inside a box.", metavar="X")
    ] = 0.5,
    size: Annotated[
        int | None, typer.Option(min=1, help="Resize images to this shorter side in pixels.", metavar="N")
    ] = None,
) -> None:
    """Show where a classifier sees which classes, in images of any size, without backpropagation.

    \b
    Example:
      embedcam classmap --net mobilenet_v2 --weights DEFAULT street.jpg
    """
    from ..classmap.classmap import classmap_file, load_classifier, output_files
    from ..utils.files import require_writable

    stems = [image.stem.casefold() for image in images]
    if repeated := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise EmbedcamError(f"several images would write {repeated}_boxes.png; rename them or use one --out per image")
    if window not in ("1", "3", "5", "whole"):
        raise EmbedcamError(f"--window must be 1, 3, 5 or whole, got {window!r}; choose one of them")
    for output in (file for image in images for file in output_files(image, out)):
        require_writable(output, [*images, weights])
    classifier = load_classifier(net, weights, window="whole" if window == "whole" else int(window))
    for image in images:
        class_map = classmap_file(
            classifier, image, out, size=size, class_threshold=class_threshold, box_threshold=box_threshold
        )
        detected = ", ".join(f"{d.name} {d.probability:.2f} ({len(d.boxes)} boxes)" for d in class_map.detections)
        strongest = ", ".join(f"{name} {probability:.2f}" for name, probability in class_map.strongest(3))
        typer.echo(f"{image}: {detected or f'nothing above {class_threshold:g}; most likely {strongest}'}")
    typer.echo(f"wrote the pictures to {out}")


@takes_network
def inspect(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="Weight database or gallery index; none for --net alone.", metavar="FILE")
    ] = None,
    net: NetworkChoice = NetworkChoice(),  # noqa: B008
    top: Annotated[int, typer.Option(min=1, help="Labels and channels to show per cluster.", metavar="N")] = 3,
    verify: Annotated[bool, typer.Option("--verify", help="Check all items and the checksum instead.")] = False,
) -> None:
    """Print the contents of a weight database or gallery index, or the layer that is explained of a network.

    \b
    Example:
      embedcam inspect weights.h5
    """
    from ..database.verify import verify as check
    from ..database.weight_database import WeightDatabase
    from ..gallery import Gallery
    from ..gallery.index_file import is_index

    if (file is None) == (net.net is None):
        raise typer.BadParameter("give a weight database, or --net")
    if file is None:
        refuse_unused(context, "on a network", "top", "verify")
        printing.print_facts(net.load("cpu").facts())
        return
    if file.is_file() and is_index(file):
        refuse_unused(context, "on a gallery index", "top", "verify")
        with Gallery.open(file) as gallery:
            printing.print_facts(gallery.facts())
        return
    if verify:
        refuse_unused(context, "with --verify", "top")
        outcomes = check(file)
        for outcome in outcomes:
            typer.echo(f"{'ok' if outcome.sound else 'BAD':<4}{outcome.item}: {outcome.found}")
        raise typer.Exit(0 if all(outcome.sound for outcome in outcomes) else 1)
    printing.print_database(WeightDatabase.load(file), top)


@takes_network
def serve(
    context: typer.Context,
    net: NetworkChoice = NetworkChoice(),  # noqa: B008
    db: DbOrNone = None,
    onnx: OnnxOrNone = None,
    index: Annotated[
        Path | None, typer.Option(help="Gallery index to search; alone or with --db.", metavar="FILE")
    ] = None,
    data: Annotated[
        str | None, data_option(help=f"The training images, to show those that are similar: {SPEC}")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default, only this machine can connect.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.", metavar="N")] = 7860,
    token: Annotated[
        str | None, typer.Option(envvar="EMBEDCAM_TOKEN", help="Token that every request must contain.", metavar="TEXT")
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="Prefix of all paths behind a proxy, such as /cam; none by default.", metavar="PATH")
    ] = "",
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Batches explained at the same time; on a CPU one per core, at most 8.", metavar="N"),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Serve a web page and an HTTP API that explain images, and search a gallery.

    \b
    Examples:
      embedcam serve --net net.safetensors --db weights.h5 --data folder:birds
      embedcam serve --index gallery.h5
    """
    if (db, onnx, index) == (None, None, None):
        raise typer.BadParameter("give --db, --index or both, with --net if they record no network, or --onnx alone")
    if index is None or db is not None or onnx is not None:
        require_explainer(net, db, onnx)
    from ..app import serve as run
    from ..app.limits import Limits

    explainer: Any = None
    gallery = None
    if onnx is not None:
        refuse_unused(context, "on an ONNX file", "device", "data", "index")
        from ..onnx.explainer import OnnxExplainer

        batch, concurrency = Limits.batch, concurrency or console.default_concurrency()
        explainer = OnnxExplainer(onnx, threads=max(console.cores() // concurrency, 1))
    else:
        import torch

        from ..explain import Explainer
        from ..gallery import Gallery

        if db is not None:
            network, database = net.with_database(db, device)
            explainer = Explainer(network, database)
            gallery = None if index is None else Gallery.open(index, network)
        elif index is not None:
            refuse_unused(context, "without --db", "data", "check")
            gallery = net.with_gallery(index, device)
            network = gallery.net
        on_cpu = network.device.type == "cpu"
        batch = Limits.batch if on_cpu else _GPU_BATCH
        concurrency = concurrency or (console.default_concurrency() if on_cpu else 1)
        torch.set_num_threads(max(console.cores() // concurrency, 1))
    limits = Limits(concurrency=concurrency, batch=batch)
    run(explainer, host, port, gallery=gallery, token=token, data=data, limits=limits, root_path=root_path)
