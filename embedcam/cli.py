"""The command line: one function a verb; it parses, calls and prints."""

from __future__ import annotations

import heapq
import itertools
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import __version__, completion, console
from .errors import EmbedcamError

app = typer.Typer(
    help="Explain embedding networks: heat maps without backpropagation, from a precomputed weight database.",
    epilog="Start with: embedcam demo",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_SPEC = (
    "digits, folder:PATH, wds:PATTERN (tar shards; quote it), cub:PATH, cub-metric:PATH or pets:PATH; with @train, "
    "@test or @all at the end if need be."
)

# Headings of the long lists of options.
_NETWORK, _TRAINING, _WEIGHTS, _METHOD = "Network", "Training", "Weights", "Method"
_DRAWING, _GRAPH, _RUNNING = "Drawing", "Graph", "Running"

NetOption = Annotated[Path, typer.Option("--net", help="Network file made by `embedcam train`.", metavar="FILE")]
DbOption = Annotated[Path, typer.Option("--db", help="Weight database made by `embedcam build`.", metavar="FILE")]
DataOption = Annotated[
    str,
    typer.Option("--data", help=f"Images: {_SPEC}", metavar="SPEC", autocompletion=completion.specs),
]
SeedOption = Annotated[
    int,
    typer.Option(help="Seed of everything that is drawn at random.", metavar="N", rich_help_panel=_RUNNING),
]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Stop at an unreadable image instead of leaving it out.", rich_help_panel=_RUNNING),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Go on with what an interrupted run has finished.", rich_help_panel=_RUNNING),
]
WorkersOption = Annotated[
    int,
    typer.Option(min=0, help="Threads that read images ahead.", metavar="N", rich_help_panel=_RUNNING),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(min=1, help="Images a batch.", metavar="N", rich_help_panel=_RUNNING),
]
PresetOption = Annotated[
    Literal["default", "paper"],
    typer.Option(help="paper is the published method: one layer, plain resize.", rich_help_panel=_METHOD),
]
ExplainSizeOption = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Side in pixels that images are explained at; the database knows the best.",
        metavar="N",
        rich_help_panel=_METHOD,
    ),
]
Transfer = Literal["soft-contrast", "soft", "contrast", "cluster", "neighbors", "nearest"]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu, cuda or cuda:N; auto takes a GPU if there is one.", metavar="NAME", rich_help_panel=_RUNNING
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"embedcam {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.", metavar="DIR")] = Path("runs/demo"),
    seed: SeedOption = 0,
) -> None:
    """Run the whole pipeline on built-in images, in under two minutes: train, build, explain, score, report.

    \b
    Example:
      embedcam demo --out runs/demo
    """
    from .demo import demo as run

    result = run(out, seed)
    console.print_scores(result)
    console.print_next(out)


@app.command()
def train(
    data: DataOption,
    backbone: Annotated[
        str,
        typer.Option(
            help="tiny, or any torchvision classifier, such as resnet50.",
            metavar="NAME",
            autocompletion=completion.backbones,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Network file to write; the training curve goes beside it.", metavar="FILE")
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Start from this state dict, or from torchvision's DEFAULT.",
            metavar="FILE|DEFAULT",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    dim: Annotated[
        int, typer.Option(min=1, help="Dimensions of the embedding.", metavar="N", rich_help_panel=_NETWORK)
    ] = 128,
    hidden: Annotated[
        int | None,
        typer.Option(
            min=1, help="Width of a hidden layer in the head; none by default.", metavar="N", rich_help_panel=_NETWORK
        ),
    ] = None,
    metric: Annotated[
        Literal["cosine", "euclidean"],
        typer.Option(help="How embeddings are compared.", rich_help_panel=_NETWORK),
    ] = "cosine",
    image_size: Annotated[
        int, typer.Option(min=8, help="Side of the square input in pixels.", metavar="N", rich_help_panel=_NETWORK)
    ] = 224,
    objective: Annotated[
        str,
        typer.Option(
            help="triplet, arcface, proxy-anchor or multi-similarity.", metavar="NAME", rich_help_panel=_TRAINING
        ),
    ] = "triplet",
    epochs: Annotated[
        int, typer.Option(min=0, help="Passes over the training images.", metavar="N", rich_help_panel=_TRAINING)
    ] = 10,
    batch_size: Annotated[
        int, typer.Option(min=4, help="Images a batch.", metavar="N", rich_help_panel=_TRAINING)
    ] = 64,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Highest learning rate of the backbone; 1e-4 with weights, 3e-3 without.",
            metavar="X",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    head_lr: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Highest learning rate of the head; 1e-3 with weights, 3e-3 without.",
            metavar="X",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    train_from: Annotated[
        str | None,
        typer.Option(
            help="Train only what comes after this layer, on activations computed once.",
            metavar="LAYER",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    resume: ResumeOption = False,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Train an embedding network.

    \b
    Example:
      embedcam train --data folder:birds --backbone mobilenet_v2 \\
        --weights DEFAULT --out net.safetensors

    \b
    In several processes:
      torchrun --nproc-per-node=4 -m embedcam train ...
    """
    import torch

    from .data import has_split, load
    from .distributed import join
    from .nets import EmbeddingNet
    from .train import TrainOptions
    from .train import train as run

    group = join()
    training = load(data, "train")
    test = None if has_split(data) else load(data, "test")
    torch.manual_seed(seed)
    net = EmbeddingNet(backbone, dim, weights=weights, hidden=hidden, metric=metric, image_size=image_size)
    pretrained = weights is not None
    options = TrainOptions(
        objective=objective,
        epochs=epochs,
        batch_size=batch_size,
        lr=(1e-4 if pretrained else 3e-3) if lr is None else lr,
        head_lr=(1e-3 if pretrained else 3e-3) if head_lr is None else head_lr,
        train_from=train_from,
        freeze_norm=pretrained,
        seed=seed,
    )
    reading: dict[str, Any] = {"strict": strict, "workers": workers}
    history = run(net.to(console.device(device)), training, test, out, options, resume=resume, group=group, **reading)
    console.echo_once(f"wrote {out} (Recall@1 {history[-1]['recall_at_1']:.4f}) and {out.with_suffix('.png')}")


@app.command()
def build(
    net: NetOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Weight database to write.", metavar="FILE")],
    layer: Annotated[
        str | None,
        typer.Option(help="Feature layer; the last spatial one by default.", metavar="LAYER", rich_help_panel=_WEIGHTS),
    ] = None,
    clusters: Annotated[
        int, typer.Option(min=1, help="Clusters of the training images.", metavar="N", rich_help_panel=_WEIGHTS)
    ] = 50,
    top_k: Annotated[
        int, typer.Option(min=1, help="Channels kept of each cluster.", metavar="N", rich_help_panel=_WEIGHTS)
    ] = 50,
    pairs: Annotated[int, typer.Option(min=1, help="Triplets an image.", metavar="N", rich_help_panel=_WEIGHTS)] = 50,
    method: Annotated[
        Literal["gradcam", "gradcam++"],
        typer.Option(help="How channel weights are worked out.", rich_help_panel=_WEIGHTS),
    ] = "gradcam",
    exemplars: Annotated[
        bool,
        typer.Option(
            help="Keep every image's embedding and channels, for --transfer nearest.", rich_help_panel=_WEIGHTS
        ),
    ] = True,
    closer: Annotated[
        bool,
        typer.Option(
            help="Look at some images of each cluster more closely, for sharper maps.", rich_help_panel=_WEIGHTS
        ),
    ] = True,
    batch_size: BatchSizeOption = 32,
    resume: ResumeOption = False,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Build the weight database from the training images.

    \b
    Example:
      embedcam build --net net.safetensors --data folder:birds --out weights.h5

    \b
    In several processes:
      torchrun --nproc-per-node=4 -m embedcam build ...
    """
    from .data import load
    from .database.build import build_file
    from .distributed import join
    from .files import require_writable
    from .nets import EmbeddingNet

    group = join()
    require_writable(out)
    network = EmbeddingNet.load(net).to(console.device(device))
    if layer is not None:
        network.layer = layer
    training = load(data, "train")
    database = build_file(
        network,
        training,
        out,
        resume=resume,
        group=group,
        clusters=clusters,
        top_k=top_k,
        pairs=pairs,
        method=method,
        exemplars=exemplars,
        closer=closer,
        seed=seed,
        batch_size=batch_size,
        strict=strict,
        workers=workers,
    )
    images = int(database.counts.sum())
    console.echo_once(
        f"wrote {out}: {database.clusters} clusters of {images} images{console.left_out(len(training) - images)}"
    )


@app.command()
def explain(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Images and folders of images; or one video file or camera:0.", metavar="INPUT..."),
    ],
    net: Annotated[Path | None, typer.Option(help="Network file made by `embedcam train`.", metavar="FILE")] = None,
    db: Annotated[Path | None, typer.Option(help="Weight database made by `embedcam build`.", metavar="FILE")] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(help="File made by `embedcam export`, instead of these two; needs no torch.", metavar="FILE"),
    ] = None,
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
            rich_help_panel=_METHOD,
        ),
    ] = None,
    placement: Annotated[
        Literal["receptive-field", "stretch"] | None,
        typer.Option(
            help="Cells where the network looked (receptive-field), or plainly stretched.",
            metavar="NAME",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    explain_size: ExplainSizeOption = None,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Draw boxes around strong regions.", rich_help_panel=_DRAWING)
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(
            min=0.01, max=1.0, help="Least heat inside a box's region.", metavar="X", rich_help_panel=_DRAWING
        ),
    ] = 0.5,
    alpha: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Weight of the heat map in the overlay.", metavar="X", rich_help_panel=_DRAWING
        ),
    ] = 0.5,
    smoothing: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.99,
            help="Share of the frames before in a video frame's map.",
            metavar="X",
            rich_help_panel=_DRAWING,
        ),
    ] = 0.0,
    colormap: Annotated[
        str,
        typer.Option(
            help="turbo, viridis, jet, or any other that the cmap library knows.",
            metavar="NAME",
            autocompletion=completion.colormaps,
            rich_help_panel=_DRAWING,
        ),
    ] = "turbo",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Numbers that the network computes with.", rich_help_panel=_RUNNING),
    ] = "float32",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile network and lookup first; pays off for thousands of images.",
            rich_help_panel=_RUNNING,
        ),
    ] = False,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime's, with --onnx, such as CUDAExecutionProvider; repeat for others to fall back on.",
            metavar="NAME",
            rich_help_panel=_RUNNING,
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
    from .explain.files import DrawOptions, explain_files
    from .explain.video import is_video

    if (net is None or db is None) == (onnx is None) or (onnx is not None and (net or db)):
        raise typer.BadParameter("give --net and --db, or --onnx alone")
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
        from .explain.onnx import OnnxExplainer

        lanes = 1 if provider or video else console.cores()
        explainer = OnnxExplainer(onnx, provider, threads=1 if lanes > 1 else 0)
    else:
        if provider:
            raise typer.BadParameter("--provider goes with --onnx; a torch network runs on --device")
        import torch

        from .explain import CompiledExplainer, Explainer
        from .nets import EmbeddingNet

        assert net is not None
        assert db is not None
        target = console.device(device)
        several = target.type == "cpu" and not compiled and not video and against is None
        lanes = console.cores() if several else 1
        if lanes > 1:  # batches side by side, each on a core, are done sooner than one after the other on all cores
            torch.set_num_threads(1)
        explainer = (CompiledExplainer if compiled else Explainer)(
            EmbeddingNet.load(net).to(target),
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
        from .explain.against_files import explain_against

        pairs = explain_against(explainer, inputs, against, out, draw, **reading)
        for pair in pairs[:20]:
            typer.echo(f"{pair['image']}: similarity {pair['similarity']:.3f}, see {out / pair['pair']}")
        typer.echo(f"wrote {len(pairs)} pictures to {out / 'pairs'}, and {out / 'pairs.jsonl'}")
        return
    lines = explain_files(explainer, inputs, out, draw, lanes=lanes, resume=resume, **reading)
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


@app.command()
def export(
    net: NetOption,
    db: DbOption,
    out: Annotated[Path, typer.Option(help="ONNX file to write.", metavar="FILE")],
    preset: PresetOption = "default",
    explain_size: ExplainSizeOption = None,
    heatmap: Annotated[
        Literal["image", "map"],
        typer.Option(help="Heat maps of the image's size, or one value a cell.", rich_help_panel=_GRAPH),
    ] = "image",
    uint8_input: Annotated[
        bool,
        typer.Option(
            "--uint8-input",
            help="Take pictures of any size; resize and normalise in the graph.",
            rich_help_panel=_GRAPH,
        ),
    ] = False,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Take image batches of any height and width.", rich_help_panel=_GRAPH)
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in 8 bits where maps allow; needs --data.", rich_help_panel=_GRAPH)
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"Images to calibrate 8 bits on: {_SPEC}",
            metavar="SPEC",
            autocompletion=completion.specs,
            rich_help_panel=_GRAPH,
        ),
    ] = None,
) -> None:
    """Write network and weight database as one ONNX file that explains without torch.

    \b
    Example:
      embedcam export --net net.safetensors --db weights.h5 --out explainer.onnx
    """
    import tempfile

    from .data import load
    from .explain import Explainer
    from .explain.export import export as write
    from .explain.quantise import quantise
    from .files import require_writable
    from .nets import EmbeddingNet

    if int8 != (data is not None):
        raise typer.BadParameter("--int8 and --data SPEC go together: 8 bits are calibrated on images")
    require_writable(out)
    explainer = Explainer(EmbeddingNet.load(net), db, preset=preset, explain_size=explain_size)
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "explainer.onnx" if int8 else out
        report = write(explainer, exact, heatmap=heatmap, uint8_input=uint8_input, dynamic=dynamic)
        typer.echo(
            f"{'made' if int8 else f'wrote {out}'} ({report.size / 1e6:.1f} MB); checked on {report.images} images: "
            f"heat maps within {report.map_difference:.1e} of torch's, the same clusters"
        )
        if data is not None:
            console.print_cost(quantise(exact, load(data, "train"), out))


@app.command()
def evaluate(
    net: NetOption,
    db: DbOption,
    data: DataOption,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also score all other transfers, and per-image methods with gradients."),
    ] = False,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Also hide and show what the maps point at, and embed what is left.")
    ] = False,
    randomisation: Annotated[
        bool, typer.Option("--randomisation", help="Also explain with networks whose layers are random.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the curves of these two.", metavar="DIR")] = Path(
        "runs/evaluate"
    ),
    explain_size: ExplainSizeOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores here.", metavar="FILE")] = None,
    batch_size: BatchSizeOption = 16,
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Score heat maps against masks, and embeddings against labels.

    Neighbours are looked for among the training images of the same data set.

    \b
    Example:
      embedcam evaluate --net net.safetensors --db weights.h5 \\
        --data folder:birds --json scores.json
    """
    from .data import load, load_gallery
    from .database import WeightDatabase
    from .evaluate.checks import check_faithfulness, check_randomisation
    from .evaluate.table import evaluate as run
    from .files import require_writable, write_text
    from .nets import EmbeddingNet
    from .show.curve import draw_faithfulness, draw_randomisation

    if json_file is not None:
        require_writable(json_file)
    network, database = EmbeddingNet.load(net).to(console.device(device)), WeightDatabase.load(db)
    test = load(data, "test")
    reading: dict[str, Any] = {"batch_size": batch_size, "strict": strict, "workers": workers}
    result = run(network, database, test, load_gallery(data), compare=compare, explain_size=explain_size, **reading)
    console.print_scores(result)
    if faithfulness:
        result["faithfulness"] = check_faithfulness(network, database, test, **reading)
        console.print_faithfulness(result["faithfulness"])
        draw_faithfulness(result["faithfulness"], out / "faithfulness.png")
        typer.echo(f"wrote {out / 'faithfulness.png'}")
    if randomisation:
        result["randomisation"] = check_randomisation(network, database, test, **reading)
        console.print_randomisation(result["randomisation"])
        draw_randomisation(result["randomisation"], out / "randomisation.png")
        typer.echo(f"wrote {out / 'randomisation.png'}")
    if json_file is not None:
        write_text(json_file, json.dumps({**result, "data": data}, indent=2) + "\n")
        typer.echo(f"wrote {json_file}")


@app.command()
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
    from .gradient.classmap import classmap_file, load_classifier

    if window not in ("1", "3", "5", "whole"):
        raise EmbedcamError(f"--window must be 1, 3, 5 or whole, got {window!r}; choose one of them")
    classifier = load_classifier(net, weights, window="whole" if window == "whole" else int(window))
    for image in images:
        found = classmap_file(
            classifier, image, out, size=size, class_threshold=class_threshold, box_threshold=box_threshold
        )
        seen = ", ".join(f"{item.name} {item.probability:.2f} ({len(item.boxes)} boxes)" for item in found.found)
        likeliest = ", ".join(f"{name} {probability:.2f}" for name, probability in found.strongest(3))
        typer.echo(f"{image}: {seen or f'nothing above {class_threshold:g}; likeliest {likeliest}'}")
    typer.echo(f"wrote the pictures to {out}")


@app.command()
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
    from .database import WeightDatabase
    from .database.verify import verify as check

    if verify:
        outcomes = check(file)
        for outcome in outcomes:
            typer.echo(f"{'ok' if outcome.sound else 'BAD':<4}{outcome.item}: {outcome.found}")
        raise typer.Exit(0 if all(outcome.sound for outcome in outcomes) else 1)
    console.print_database(WeightDatabase.load(file), top)


@app.command(name="import-faster-gradcam")
def import_faster_gradcam(
    folder: Annotated[
        Path, typer.Argument(help="Folder with its csv files, and the centroids as csv or npy.", metavar="DIR")
    ],
    net: NetOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Weight database to write.", metavar="FILE")],
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Make a weight database of what Faster-Grad-CAM wrote.

    \b
    Example:
      embedcam import-faster-gradcam model/ --net net.safetensors \\
        --data folder:hands --out weights.h5
    """
    from .data import load
    from .database.faster_gradcam import import_faster_gradcam as read
    from .files import require_writable
    from .nets import EmbeddingNet

    require_writable(out)
    network = EmbeddingNet.load(net).to(console.device(device))
    database = read(folder, network, load(data, "train"), strict=strict, workers=workers)
    database.save(out)
    typer.echo(f"wrote {out}: {database.clusters} clusters; explain with --preset paper for Faster-Grad-CAM's own maps")


@app.command()
def serve(
    net: Annotated[Path | None, typer.Option(help="Network file made by `embedcam train`.", metavar="FILE")] = None,
    db: Annotated[Path | None, typer.Option(help="Weight database made by `embedcam build`.", metavar="FILE")] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="File made by `embedcam export`, instead of these two.", metavar="FILE")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"The training images, to show those that are like a picture: {_SPEC}",
            metavar="SPEC",
            autocompletion=completion.specs,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; by default, only this machine reaches it.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; any free one if 0.", metavar="N")] = 7860,
    token: Annotated[
        str | None, typer.Option(envvar="EMBEDCAM_TOKEN", help="What every visitor must give.", metavar="TEXT")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Pictures explained at once.", metavar="N")] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Serve a web page, and an HTTP API, that explain pictures.

    \b
    Example:
      embedcam serve --net net.safetensors --db weights.h5 --data folder:birds
    """
    if (net is None or db is None) == (onnx is None) or (onnx is not None and (net or db)):
        raise typer.BadParameter("give --net and --db, or --onnx alone")
    from .app import serve as run
    from .app.limits import Limits

    explainer: Any
    if onnx is not None:
        from .explain.onnx import OnnxExplainer

        explainer = OnnxExplainer(onnx)
    else:
        from .explain import Explainer
        from .nets import EmbeddingNet

        assert net is not None
        assert db is not None
        explainer = Explainer(EmbeddingNet.load(net).to(console.device(device)), db)
    run(explainer, host, port, token=token, data=data, limits=Limits(jobs=jobs))


def main() -> None:
    """Run the command line and exit: 0 done, 1 an error in one line, 2 wrong usage, 130 interrupted."""
    sys.exit(console.run(app, debug="--debug" in sys.argv))
