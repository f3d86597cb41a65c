"""The verbs that train networks and build weight databases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import completion, console, printing
from .networks import NetworkChoice, takes_network
from .options import (
    BatchSizeOption,
    DataOption,
    DeviceOption,
    ResumeOption,
    SeedOption,
    StrictOption,
    WorkersOption,
    network_option,
    one_of,
    training_option,
    weights_option,
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.", metavar="DIR")] = Path("runs/demo"),
    seed: SeedOption = 0,
) -> None:
    """Train, build, explain and evaluate on built-in images, in under two minutes, and write a report.

    \b
    Example:
      embedcam demo --out runs/demo
    """
    from ..demo import demo as run

    result = run(out, seed)
    printing.print_scores(result)
    printing.print_next(out)


def train(
    data: DataOption,
    backbone: Annotated[
        str,
        typer.Option(
            help="tiny, any torchvision classifier, such as resnet50, or timm:NAME, hf:NAME, open_clip:MODEL.",
            metavar="NAME",
            autocompletion=completion.backbones,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Network file to write; the training curve goes beside it.", metavar="FILE")
    ],
    weights: Annotated[
        str | None, network_option(help="State dict to start from, or torchvision's DEFAULT.", metavar="FILE|DEFAULT")
    ] = None,
    dim: Annotated[int, network_option(min=1, help="Dimensions of the embedding.", metavar="N")] = 128,
    hidden: Annotated[
        int | None, network_option(min=1, help="Width of a hidden layer in the head; none by default.", metavar="N")
    ] = None,
    metric: Annotated[Literal["cosine", "euclidean"], network_option(help="How embeddings are compared.")] = "cosine",
    image_size: Annotated[int, network_option(min=8, help="Side of the square input in pixels.", metavar="N")] = 224,
    objective: Annotated[
        str, training_option(help="triplet, arcface, proxy-anchor or multi-similarity.", metavar="NAME")
    ] = "triplet",
    epochs: Annotated[int, training_option(min=0, help="Passes over the training images.", metavar="N")] = 10,
    batch_size: Annotated[int, training_option(min=4, help="Images per batch.", metavar="N")] = 64,
    lr: Annotated[
        float | None,
        training_option(
            min=0.0,
            help="Highest learning rate of the backbone; by default 1e-4 with weights, 3e-3 without.",
            metavar="X",
        ),
    ] = None,
    head_lr: Annotated[
        float | None,
        training_option(
            min=0.0, help="Highest learning rate of the head; by default 1e-3 with weights, 3e-3 without.", metavar="X"
        ),
    ] = None,
    train_from: Annotated[
        str | None,
        training_option(
            help="Train only the layers after this one, on activations that are computed once.", metavar="LAYER"
        ),
    ] = None,
    augment: Annotated[
        bool | None,
        training_option(
            "--augment/--no-augment",
            help="Crop and flip the training pictures at random; done by default unless --train-from is given. Text "
            "and digits need --no-augment.",
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

    from ..data import has_split, load
    from ..nets import EmbeddingNet
    from ..train import TrainOptions
    from ..train import train as run
    from ..utils.distributed import join
    from ..utils.files import require_writable

    group = join()
    require_writable(out, [weights])
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
        augment=augment,
        seed=seed,
    )
    reading: dict[str, Any] = {"strict": strict, "workers": workers}
    history = run(net.to(console.device(device)), training, test, out, options, resume=resume, group=group, **reading)
    printing.echo_once(f"wrote {out} (Recall@1 {history[-1]['recall_at_1']:.4f}) and {out.with_suffix('.png')}")


@takes_network
def build(
    net: NetworkChoice,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Weight database to write.", metavar="FILE")],
    clusters: Annotated[int, weights_option(min=1, help="Clusters of the training images.", metavar="N")] = 50,
    top_k: Annotated[int, weights_option(min=1, help="Channels stored per cluster.", metavar="N")] = 50,
    pairs: Annotated[
        int | None,
        weights_option(
            min=1,
            help="Triplets to draw per image, 50 in the published method; by default, all are used, in closed form.",
            metavar="N",
        ),
    ] = None,
    method: Annotated[
        str,
        weights_option(
            help="Channel weighting: {weightings}. Of Grad-CAM++, gradcam++-exact suits a database best.",
            metavar="NAME",
            callback=one_of("weightings"),
            autocompletion=completion.registered("weightings"),
        ),
    ] = "gradcam",
    exemplars: Annotated[
        bool, weights_option(help="Store the embedding and channels of every image, for --transfer nearest.")
    ] = True,
    refinement: Annotated[
        bool, weights_option(help="Explain at a larger size and by a finer layer, if they suit: sharper maps.")
    ] = True,
    finer_weights: Annotated[
        bool,
        weights_option(
            "--finer-weights", help="Average the weights of a finer layer too, for transfers in two layers."
        ),
    ] = False,
    unlabelled: Annotated[
        bool, weights_option("--unlabelled", help="Let clusters stand for classes, as without labels.")
    ] = False,
    embeddings: Annotated[
        Path | None,
        weights_option(
            help="Embeddings that exist already: a .npy file or a FAISS index; needs --paths.", metavar="FILE"
        ),
    ] = None,
    paths: Annotated[
        Path | None,
        weights_option(help="Path of the image of each embedding: .txt, .csv or .json.", metavar="FILE"),
    ] = None,
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
    from ..builder.build import build_file
    from ..builder.given import load_embeddings
    from ..data import load
    from ..utils.distributed import join
    from ..utils.files import require_writable

    if (embeddings is None) != (paths is None):
        raise typer.BadParameter("give --embeddings and --paths together")
    group = join()
    require_writable(out, [*net.files, embeddings, paths])
    network = net.load(device)
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
        refinement=refinement,
        finer_weights=finer_weights,
        embedded=load_embeddings(embeddings, paths, training) if embeddings and paths else None,
        unlabelled=unlabelled,
        seed=seed,
        batch_size=batch_size,
        strict=strict,
        workers=workers,
    )
    images = int(database.counts.sum())
    printing.echo_once(
        f"wrote {out}: {database.clusters} clusters of {images} images{printing.left_out(len(training) - images)}"
    )


@takes_network
def import_faster_gradcam(
    folder: Annotated[
        Path, typer.Argument(help="Folder with its csv files, and the centroids as csv or npy.", metavar="DIR")
    ],
    net: NetworkChoice,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Weight database to write.", metavar="FILE")],
    strict: StrictOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
) -> None:
    """Convert the files of Faster-Grad-CAM to a weight database.

    \b
    Example:
      embedcam import-faster-gradcam model/ --net net.safetensors \\
        --data folder:hands --out weights.h5
    """
    from ..builder.faster_gradcam import import_faster_gradcam as read
    from ..data import load
    from ..utils.files import require_writable

    require_writable(out, [*net.files, *(folder.iterdir() if folder.is_dir() else ())])
    database = read(folder, net.load(device), load(data, "train"), strict=strict, workers=workers)
    database.save(out)
    typer.echo(f"wrote {out}: {database.clusters} clusters; explain with --preset paper for Faster-Grad-CAM's own maps")
