"""Train an embedding network, whole or only its last layers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._version import __version__
from ..data.samples import Samples, input_files
from ..errors import NetworkError
from ..evaluate.retrieval import retrieval
from ..nets.embedding import EmbeddingNet
from ..show.curve import training_curve
from ..utils.distributed import Group
from ..utils.files import require_writable
from ..utils.progress import say, track
from ..utils.resume import SavedParts, work_folder
from . import checkpoint
from .batch_norm import synchronized
from .cut import cut
from .inputs import Batch, Inputs
from .objectives import Objective
from .sampling import epoch_order, labels_of, warn_of_single_images


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`.

    Attributes:
        objective: "triplet", "arcface", "proxy-anchor" or "multi-similarity".
        epochs: Passes over the training images.
        batch_size: Images per batch; each batch has a few images of each of several classes.
        lr: Highest learning rate of the backbone.
        head_lr: Highest learning rate of the head and of the objective's proxies.
        train_from: Train only the layers after this one, on its activations, which are computed once; None trains all.
        freeze_norm: Keep the batch-norm statistics (for pretrained weights).
        augment: Crop and flip the training pictures at random, see `augmentation.augment`; None does so if the whole
            network is trained. Activations that are computed once cannot be augmented.
        seed: Seed of sampling, augmentation and the objective's proxies.
    """

    objective: str = "triplet"
    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-4
    head_lr: float = 1e-3
    train_from: str | None = None
    freeze_norm: bool = False
    augment: bool | None = None
    seed: int = 0


def train(
    net: EmbeddingNet,
    training: Samples,
    test: Samples | None,
    out: str | Path,
    options: TrainOptions | None = None,
    *,
    resume: bool = False,
    strict: bool = False,
    workers: int = 2,
    group: Group | None = None,
) -> list[dict[str, float]]:
    """Train a network and write it; evaluate it, draw the training curve and save the state after each epoch.

    Args:
        net: The network; trained in place and left in evaluation mode.
        training: Labelled images. Classes of one image are embedded and evaluated, but not trained with.
        test: Labelled images to evaluate on; None to evaluate leave-one-out on the training images.
        out: Network file to write; the training curve is written to a PNG file of the same name.
        options: Options of the training.
        resume: Continue after the last epoch of an interrupted run, if there is one.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
        group: The processes that share the images, see `distributed.join`. Each computes its part of every batch; loss
            and batch-norm statistics are those of the whole batch.

    Returns:
        A row per epoch: "epoch" (0 is before training), "loss" (from epoch 1 on), "recall_at_1", "map_at_r", and in the
        last row "nmi", which takes minutes if there are ten thousand labels.

    Raises:
        DataError: If the images do not allow training.
        NetworkError: If an option cannot be used, or the loss is not finite.
        LayerError: If the network cannot be cut at `train_from`.
        OutputError: If `out` cannot be written, or the interrupted run is another one.
    """
    options, out, group = options or TrainOptions(), Path(out), group or Group()
    if options.augment and options.train_from is not None:
        raise NetworkError(
            f"the activations of layer {options.train_from!r} are computed once and cannot be augmented; leave out "
            "--augment or --train-from"
        )
    if options.augment is None:
        options = replace(options, augment=options.train_from is None)
    if out.suffix != ".safetensors":
        raise NetworkError(f"the network file {out} must end in .safetensors; rename --out")
    for file in (out, out.with_suffix(".png")):
        require_writable(file, [*input_files(training), *(input_files(test) if test is not None else ())])
    classes = int(labels_of(training).max()) + 1
    torch.manual_seed(options.seed)
    objective = Objective(options.objective, net.dim, classes, net.metric).to(net.device)
    first, second = _parts(net, options.train_from)
    optimizer = _optimizer(second, net.head, objective, options)
    net.eval()
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(work_folder(out, group))

        def feed(samples: Samples) -> Inputs:
            inputs = Inputs(first, net, samples, out.parent, strict=strict, workers=workers, group=group)
            return stack.enter_context(inputs)

        inputs, held_out = feed(training), None if test is None else feed(test)
        warn_of_single_images(labels_of(inputs.samples))
        run = asdict(options) | {"embedcam": __version__, "config": net.config(), "images": len(inputs)}
        parts = SavedParts(work, run, resume=resume, group=group)
        history: list[dict[str, float]] = []

        def measure(epoch: int, **loss: float) -> None:
            embedded = partial(_embed, second, net, batch_size=options.batch_size, group=group)
            scores = _scores(embedded, inputs, held_out, nmi=epoch == options.epochs)
            history.append({"epoch": epoch, **loss, **scores})
            if group.main:
                _report(history)
                training_curve(history, out.with_suffix(".png"))

        if "epoch" in parts:
            history.extend(checkpoint.restore(parts.read("epoch"), net, objective, optimizer))
            say(f"resuming after epoch {len(history) - 1}")
        else:
            measure(epoch=0)
        for epoch in range(len(history), options.epochs + 1):
            loss = _epoch(epoch, second, net, objective, optimizer, inputs, options, group)
            measure(epoch=epoch, loss=loss)
            if group.main:
                parts.write("epoch", **checkpoint.state(history, net, objective, optimizer))
        if group.main:
            net.save(out)
        group.wait()
    return history


def _parts(net: EmbeddingNet, train_from: str | None) -> tuple[nn.Module | None, nn.Module]:
    """Split the backbone into the part that is not trained, if any, and the part that is."""
    if train_from is None:
        return None, net.backbone
    first, second = cut(net.backbone, train_from)
    return first.to(net.device), second.to(net.device)


def _optimizer(
    second: nn.Module, head: nn.Module, objective: nn.Module, options: TrainOptions
) -> torch.optim.Optimizer:
    new = [*head.parameters(), *objective.parameters()]
    groups = [{"params": list(second.parameters()), "lr": options.lr}, {"params": new, "lr": options.head_lr}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=1e-4)


def _epoch(
    epoch: int,
    second: nn.Module,
    net: EmbeddingNet,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    options: TrainOptions,
    group: Group,
) -> float:
    """Train one epoch and return its mean loss."""
    labels = labels_of(inputs.samples)
    order, size = epoch_order(labels, options.batch_size, options.seed, epoch)
    torch.manual_seed(options.seed * 1_000_003 + epoch)  # for dropout; depends on the epoch, so a run can be resumed
    _training_mode(second, net.head, options.freeze_norm)
    steps = math.ceil(len(order) / size)
    target = torch.from_numpy(labels).to(net.device)
    losses: list[float] = []
    batches = inputs.batches(order, size, (options.seed % 2**63, epoch) if options.augment else None)
    with synchronized(second, group):
        for step, batch in enumerate(track(batches, f"epoch {epoch}", len(order), unit=size)):
            _set_rate(optimizer, options, (epoch - 1) * steps + step, options.epochs * steps)
            embeddings = _embeddings(second, net, batch, group)
            loss = objective(embeddings, target[torch.from_numpy(batch.rows)])
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise NetworkError(
                    f"the loss became {losses[-1]} in epoch {epoch}; lower --lr and --head-lr, or check the images"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            _add_up_gradients(optimizer, objective, group)
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    net.eval()
    second.eval()
    return float(np.mean(losses))


def _embeddings(second: nn.Module, net: EmbeddingNet, batch: Batch, group: Group) -> Tensor:
    """Embed a whole batch (b, D), each process its part; gradients reach only that part."""
    with _autocast(net.device):
        vector = second(batch.inputs)
    mine = net.head_embed(vector)
    if group.size == 1:
        return mine
    own = torch.from_numpy(batch.own).to(net.device)
    whole = group.add_up(torch.zeros(len(batch.rows), net.dim, device=net.device).index_copy(0, own, mine.detach()))
    return whole.index_copy(0, own, mine)


def _add_up_gradients(optimizer: torch.optim.Optimizer, objective: nn.Module, group: Group) -> None:
    """Sum the gradients of the parts of a batch."""
    if group.size == 1:
        return
    shared = set(objective.parameters())  # each process has the whole gradient of these
    parameters = [parameter for entries in optimizer.param_groups for parameter in entries["params"]]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        elif parameter in shared:
            parameter.grad /= group.size
    flat = group.add_up(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(gradient.view_as(parameter))


def _training_mode(second: nn.Module, head: nn.Module, freeze_norm: bool) -> None:
    second.train()
    head.train()
    if freeze_norm:
        for module in second.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _set_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps: int) -> None:
    """Warm up over a tenth of the steps, then decay along a cosine; depends on the step only, so a run can resume."""
    warm = max(1, steps // 10)
    factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    for group, rate in zip(optimizer.param_groups[::-1], (options.head_lr, options.lr), strict=False):
        group["lr"] = rate * factor


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", torch.bfloat16)


def _embed(
    second: nn.Module, net: EmbeddingNet, inputs: Inputs, *, batch_size: int, group: Group
) -> NDArray[np.float32]:
    whole = torch.zeros(len(inputs), net.dim, device=net.device)
    with torch.inference_mode():
        for batch in inputs.batches(np.arange(len(inputs)), batch_size):
            if len(batch.own):
                whole[torch.from_numpy(batch.rows[batch.own])] = net.head_embed(second(batch.inputs))
    return group.add_up(whole).cpu().numpy()


def _scores(
    embedded: Callable[[Inputs], NDArray[np.float32]], inputs: Inputs, held_out: Inputs | None, *, nmi: bool
) -> dict[str, float]:
    """Evaluate on the test images: against the training images if they share labels, else leave-one-out."""
    labels = labels_of(inputs.samples)
    if held_out is None:
        return retrieval(embedded(inputs), labels, nmi=nmi)
    test_labels = held_out.samples.labels
    assert test_labels is not None  # the same kind of data set as the training images
    if not set(test_labels.tolist()) <= set(labels.tolist()):
        return retrieval(embedded(held_out), test_labels, nmi=nmi)
    return retrieval(embedded(held_out), test_labels, embedded(inputs), labels, nmi=nmi)


def _report(history: list[dict[str, float]]) -> None:
    row = history[-1]
    loss = f"loss {row['loss']:.4f}, " if "loss" in row else "before training: "
    nmi = f", NMI {row['nmi']:.4f}" if "nmi" in row else ""
    say(f"epoch {row['epoch']:.0f}: {loss}Recall@1 {row['recall_at_1']:.4f}, MAP@R {row['map_at_r']:.4f}{nmi}")
