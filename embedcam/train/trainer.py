"""Train an embedding network, whole or only its last layers."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.samples import Samples
from ..errors import NetworkError
from ..evaluate.retrieval import retrieval
from ..nets.embedding import EmbeddingNet
from ..show.curve import training_curve
from ..utils.distributed import Group
from ..utils.files import require_writable
from ..utils.locks import locked
from ..utils.progress import say, track
from . import checkpoint
from .cut import cut
from .inputs import Batch, Inputs, labels_of
from .objectives import Objective


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        objective: "triplet", "arcface", "proxy-anchor" or "multi-similarity".
        epochs: Passes over the training images.
        batch_size: Images a batch, made of a few images each of several classes.
        lr: Highest learning rate of the backbone.
        head_lr: Highest learning rate of the head and of an objective's proxies.
        train_from: Train only the layers after this one, on its activations, computed once; None trains all.
        freeze_norm: Keep batch-norm statistics as they are (for pretrained weights).
        seed: Of sampling and of the objective's proxies.
    """

    objective: str = "triplet"
    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-4
    head_lr: float = 1e-3
    train_from: str | None = None
    freeze_norm: bool = False
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
    """Train a network and write it; after each epoch measure it, draw the curve, and write a checkpoint.

    Args:
        net: Trained in place; left in evaluation mode.
        training: Labelled images.
        test: Labelled images to measure on, or None to measure leave-one-out on the training images.
        out: The network file; the curve goes beside it as PNG.
        options: How to train.
        resume: Go on from the checkpoint of an interrupted run, if there is one.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
        group: The processes that share the images, see `distributed.join`; each works on its part of every batch, and
            the loss is that of the whole batch.

    Returns:
        A row an epoch: "epoch" (0 is before training), "loss", "recall_at_1", "map_at_r", "nmi".

    Raises:
        DataError: If the images do not allow training.
        NetworkError: If an option cannot be used, the loss is not finite, or the checkpoint is of another run.
        LayerError: If the network cannot be cut at `train_from`.
        OutputError: If `out` cannot be written.
    """
    options, out, group = options or TrainOptions(), Path(out), group or Group()
    if out.suffix != ".safetensors":
        raise NetworkError(f"the network file {out} must end in .safetensors; rename --out")
    require_writable(out)
    classes = int(labels_of(training).max()) + 1
    torch.manual_seed(options.seed)
    objective = Objective(options.objective, net.dim, classes, net.metric).to(net.device)
    first, second = _parts(net, options.train_from)
    optimizer = _optimizer(second, net.head, objective, options)
    net.eval()
    with contextlib.ExitStack() as stack:
        if group.main:
            stack.enter_context(locked(out))

        def feed(samples: Samples) -> Inputs:
            inputs = Inputs(first, net, samples, out.parent, strict=strict, workers=workers, group=group)
            return stack.enter_context(inputs)

        inputs, held_out = feed(training), None if test is None else feed(test)
        labels_of(inputs.samples)  # again: unreadable images may have left a class with one image
        run = _plain(asdict(options) | {"config": net.config(), "images": len(inputs)})
        history: list[dict[str, float]] = []
        saved = checkpoint.path_of(out)

        def measure(**row: float) -> None:
            history.append({**row, **_scores(second, net, inputs, held_out, options.batch_size, group)})
            if group.main:
                _report(history)
                training_curve(history, out.with_suffix(".png"))

        if resume and saved.is_file():
            state = checkpoint.load(saved, run, net, objective, optimizer)
            history.extend(state.history)
            say(f"going on after epoch {state.epoch}")
        else:
            measure(epoch=0)
        for epoch in range(len(history), options.epochs + 1):
            loss = _epoch(epoch, second, net, objective, optimizer, inputs, options, group)
            measure(epoch=epoch, loss=loss)
            if group.main:
                checkpoint.save(saved, checkpoint.Checkpoint(run, epoch, history), net, objective, optimizer)
        if group.main:
            net.save(out)
            saved.unlink(missing_ok=True)
        group.wait()
    return history


def _plain(run: dict[str, Any]) -> dict[str, Any]:
    """Bring tuples to lists, as a checkpoint's JSON does, so that runs compare equal."""
    plain: dict[str, Any] = json.loads(json.dumps(run))
    return plain


def _parts(net: EmbeddingNet, train_from: str | None) -> tuple[nn.Module | None, nn.Module]:
    """Split the backbone into what stays as it is, if anything, and what is trained."""
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


def _order(labels: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], int]:
    """Draw an epoch's images, a few of each of several classes a batch, by seed and epoch: so a run can resume."""
    from pytorch_metric_learning.samplers import MPerClassSampler
    from pytorch_metric_learning.utils import common_functions

    classes = len(np.unique(labels))
    each = max(4, math.ceil(batch_size / classes))
    size = each * max(2, min(classes, batch_size // each))
    sampler = MPerClassSampler(labels, each, size, length_before_new_iter=max(len(labels), size))
    before = common_functions.NUMPY_RANDOM
    common_functions.NUMPY_RANDOM = np.random.RandomState([seed % 2**32, epoch])
    try:
        return np.fromiter(sampler, dtype=np.int64), size
    finally:
        common_functions.NUMPY_RANDOM = before


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
    order, size = _order(labels, options.batch_size, options.seed, epoch)
    torch.manual_seed(options.seed * 1_000_003 + epoch)  # dropout; keyed by the epoch, so a run can resume
    _training_mode(second, net.head, options.freeze_norm)
    steps = math.ceil(len(order) / size)
    target = torch.from_numpy(labels).to(net.device)
    losses: list[float] = []
    batches = inputs.batches(order, size)
    for step, batch in enumerate(track(batches, f"epoch {epoch}", len(order), unit=size)):
        _set_rate(optimizer, options, (epoch - 1) * steps + step, options.epochs * steps)
        embeddings = _embeddings(second, net, batch, group)
        loss = objective(embeddings, target[torch.from_numpy(batch.rows)])
        if not torch.isfinite(loss):
            raise NetworkError(
                f"the loss became {loss.item()} in epoch {epoch}; lower --lr and --head-lr, or check the images"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _add_up_gradients(optimizer, objective, group)
        optimizer.step()
        losses.append(loss.item())
    if not options.freeze_norm:
        _share_statistics(second, group)
    optimizer.zero_grad(set_to_none=True)
    net.eval()
    second.eval()
    return float(np.mean(losses))


def _embeddings(second: nn.Module, net: EmbeddingNet, batch: Batch, group: Group) -> Tensor:
    """Embed a whole batch (b, D), each process its part; gradients reach that part alone."""
    mine = None
    if len(batch.own):
        with _autocast(net.device):
            vector = second(batch.inputs)
        mine = net.head_embed(vector.float())
    if group.size == 1:
        assert mine is not None
        return mine
    own = torch.from_numpy(batch.own).to(net.device)
    whole = torch.zeros(len(batch.rows), net.dim, device=net.device)
    if mine is not None:
        whole[own] = mine.detach()
    group.add_up(whole)
    # Parameters of the loss need a gradient even where no image of the batch is this process's.
    return whole.requires_grad_() if mine is None else whole.index_copy(0, own, mine)


def _add_up_gradients(optimizer: torch.optim.Optimizer, objective: nn.Module, group: Group) -> None:
    """Make the gradients of parts of a batch those of the whole batch."""
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


def _share_statistics(second: nn.Module, group: Group) -> None:
    """Average what batch-norm layers have seen, each process of its own images."""
    for buffer in second.buffers():
        if buffer.is_floating_point():
            group.add_up(buffer).div_(group.size)


def _training_mode(second: nn.Module, head: nn.Module, freeze_norm: bool) -> None:
    second.train()
    head.train()
    if freeze_norm:
        for module in second.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _set_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps: int) -> None:
    """Warm up over a tenth of the steps, then fall along a cosine; no state but the step, so a run can resume."""
    warm = max(1, steps // 10)
    factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    for group, rate in zip(optimizer.param_groups[::-1], (options.head_lr, options.lr), strict=False):
        group["lr"] = rate * factor


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", torch.bfloat16)


def _embed(second: nn.Module, net: EmbeddingNet, inputs: Inputs, batch_size: int, group: Group) -> NDArray[np.float32]:
    whole = torch.zeros(len(inputs), net.dim, device=net.device)
    with torch.inference_mode():
        for batch in inputs.batches(np.arange(len(inputs)), batch_size):
            if len(batch.own):
                whole[torch.from_numpy(batch.rows[batch.own])] = net.head_embed(second(batch.inputs)).float()
    return group.add_up(whole).cpu().numpy()


def _scores(
    second: nn.Module, net: EmbeddingNet, inputs: Inputs, held_out: Inputs | None, batch_size: int, group: Group
) -> dict[str, float]:
    """Measure on the test images: against the training images if they share labels, else among themselves."""
    known = labels_of(inputs.samples)
    if held_out is None:
        return retrieval(_embed(second, net, inputs, batch_size, group), known)
    query, asked = _embed(second, net, held_out, batch_size, group), held_out.samples.labels
    assert asked is not None  # of the same kind of data set as the training images
    if not set(asked.tolist()) <= set(known.tolist()):
        return retrieval(query, asked)
    return retrieval(query, asked, _embed(second, net, inputs, batch_size, group), known)


def _report(history: list[dict[str, float]]) -> None:
    row = history[-1]
    loss = f"loss {row['loss']:.4f}, " if "loss" in row else "before training: "
    scores = f"Recall@1 {row['recall_at_1']:.4f}, MAP@R {row['map_at_r']:.4f}, NMI {row['nmi']:.4f}"
    say(f"epoch {row['epoch']:.0f}: {loss}{scores}")
