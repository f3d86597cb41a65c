"""Train an embedding network, whole or only its last layers."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import layers
from ..data.loading import batches
from ..data.samples import Samples
from ..errors import DataError, NetworkError
from ..retrieval import retrieval
from ..files import require_writable
from ..nets.embedding import EmbeddingNet
from ..nets.inference import tensor_batches
from ..progress import say, track
from . import checkpoint
from .cut import cut
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

    Returns:
        A row an epoch: "epoch" (0 is before training), "loss", "recall_at_1", "map_at_r", "nmi".

    Raises:
        DataError: If the images do not allow training.
        NetworkError: If an option cannot be used, the loss is not finite, or the checkpoint is of another run.
        LayerError: If the network cannot be cut at `train_from`.
        OutputError: If `out` cannot be written.
    """
    options = options or TrainOptions()
    out = Path(out)
    require_writable(out)
    labels = _labels_of(training)
    classes = int(labels.max()) + 1
    torch.manual_seed(options.seed)
    objective = Objective(options.objective, net.dim, classes, net.metric).to(net.device)
    first, second = _parts(net, options.train_from)
    optimizer = _optimizer(second, net.head, objective, options)
    net.eval()
    with _Inputs(first, net, training, out.parent, strict, workers) as inputs, _test_inputs(first, net, test, out, strict, workers) as held_out:
        labels = inputs.labels
        run = asdict(options) | {"config": net.config(), "images": len(labels)}
        history: list[dict[str, float]] = []
        saved = checkpoint.path_of(out)

        def measure(**row: float) -> None:
            scores = _scores(second, net, inputs, held_out, options)
            history.append({**row, **scores})
            _report(history)
            _draw(history, out)

        if resume and saved.is_file():
            state = checkpoint.load(saved, _plain(run), net, objective, optimizer)
            history.extend(state.history)
            say(f"going on after epoch {state.epoch}")
        else:
            measure(epoch=0)
        for epoch in range(len(history), options.epochs + 1):
            loss = _epoch(epoch, second, net, objective, optimizer, inputs, labels, options)
            measure(epoch=epoch, loss=loss)
            checkpoint.save(saved, checkpoint.Checkpoint(_plain(run), epoch, history), net, objective, optimizer)
    net.save(out)
    saved.unlink(missing_ok=True)
    return history


def _plain(run: dict[str, Any]) -> dict[str, Any]:
    """Bring tuples to lists, as a checkpoint's JSON does, so that runs compare equal."""
    import json

    plain: dict[str, Any] = json.loads(json.dumps(run))
    return plain


def _labels_of(samples: Samples) -> NDArray[np.int64]:
    if samples.labels is None:
        raise DataError("training needs labels: put the images of each class into a folder of its own")
    found, counts = np.unique(samples.labels, return_counts=True)
    if len(found) < 2:
        raise DataError(f"training needs two classes, found only {samples.names[found[0]]!r}; add images of another class")
    lonely = [samples.names[label] for label in found[counts < 2]]
    if lonely:
        raise DataError(f"class {lonely[0]!r} has only one training image; add another or remove the class")
    return samples.labels


def _parts(net: EmbeddingNet, train_from: str | None) -> tuple[nn.Module, nn.Module]:
    """Split the backbone into what stays as it is and what is trained."""
    if train_from is None:
        return nn.Identity(), net.backbone
    first, second = cut(net.backbone, train_from)
    return first.to(net.device), second.to(net.device)


def _optimizer(second: nn.Module, head: nn.Module, objective: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    new = [*head.parameters(), *objective.parameters()]
    groups = [{"params": list(second.parameters()), "lr": options.lr}, {"params": new, "lr": options.head_lr}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=1e-4)


class _Inputs:
    """What the trained part is fed with: images, or a layer's activations computed once and kept on disk."""

    def __init__(self, first: nn.Module, net: EmbeddingNet, samples: Samples, folder: Path, strict: bool, workers: int) -> None:
        self._net, self._samples, self._workers, self._strict = net, samples, workers, strict
        self._cached = not isinstance(first, nn.Identity)
        self._first, self._folder = first, folder
        self._store: NDArray[np.float32] | None = None

    def __enter__(self) -> _Inputs:
        kept: list[NDArray[np.int64]] = []
        if self._cached:
            # Deleted by the system when it is closed, even when the process is killed.
            self._file = tempfile.TemporaryFile(dir=self._folder, prefix=".activations.")  # noqa: SIM115
            shape: tuple[int, ...] = ()
            with layers.evaluating(self._net), torch.inference_mode():
                for indices, images in tensor_batches(self._net, self._samples, 32, "caching", strict=self._strict, workers=self._workers):
                    activations = self._first(images).float().cpu().numpy()
                    kept.append(indices)
                    shape = activations.shape[1:]
                    self._file.write(np.ascontiguousarray(activations).data)
            self._file.flush()
        else:  # one pass that only finds out which images can be read
            loaded = batches(self._samples, self._net.preprocess, 32, strict=self._strict, workers=self._workers)
            kept = [indices for indices, _ in track(loaded, "reading", len(self._samples), unit=32)]
        self._samples = self._samples.subset(np.concatenate(kept))
        if self._cached:
            self._store = np.memmap(self._file, np.float32, "r", shape=(len(self._samples), *shape))
        self.labels = _labels_of(self._samples)
        return self

    def __exit__(self, *_: object) -> None:
        self._store = None
        if self._cached:
            self._file.close()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: NDArray[np.int64], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Go through chosen images in a given order."""
        starts = range(0, len(order), batch_size)
        if self._store is not None:
            for start in starts:
                rows = order[start : start + batch_size]
                yield rows, torch.from_numpy(self._store[rows]).to(self._net.device)
        else:
            loaded = batches(self._samples.subset(order), self._net.preprocess, batch_size, strict=True, workers=self._workers)
            for rows, images in loaded:
                yield order[rows], torch.from_numpy(images).to(self._net.device)


@contextlib.contextmanager
def _test_inputs(
    first: nn.Module, net: EmbeddingNet, test: Samples | None, out: Path, strict: bool, workers: int
) -> Iterator[_Inputs | None]:
    if test is None:
        yield None
    else:
        with _Inputs(first, net, test, out.parent, strict, workers) as inputs:
            yield inputs


def _order(labels: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], int]:
    """Draw an epoch's images: a few of each of several classes a batch. Keyed by seed and epoch, so a run can resume."""
    from pytorch_metric_learning.samplers import MPerClassSampler
    from pytorch_metric_learning.utils import common_functions

    classes = len(np.unique(labels))
    each = max(4, math.ceil(batch_size / classes))
    size = each * max(2, min(classes, batch_size // each))
    sampler = MPerClassSampler(labels, each, size, length_before_new_iter=max(len(labels), size))
    before = common_functions.NUMPY_RANDOM
    common_functions.NUMPY_RANDOM = np.random.RandomState([seed % 2**32, epoch])  # noqa: NPY002  (the library's type)
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
    inputs: _Inputs,
    labels: NDArray[np.int64],
    options: TrainOptions,
) -> float:
    """Train one epoch and return its mean loss."""
    order, size = _order(labels, options.batch_size, options.seed, epoch)
    torch.manual_seed(options.seed * 1_000_003 + epoch)  # dropout; keyed by the epoch, so a run can resume
    _training_mode(second, net.head, options.freeze_norm)
    steps = math.ceil(len(order) / size)
    target = torch.from_numpy(labels).to(net.device)
    losses = []
    for step, (rows, batch) in enumerate(track(inputs.batches(order, size), f"epoch {epoch}", len(order), unit=size)):
        _set_rate(optimizer, options, (epoch - 1) * steps + step, options.epochs * steps)
        with _autocast(net.device):
            vector = second(batch)
        embeddings = net.head_embed(vector.float())
        loss = objective(embeddings, target[torch.from_numpy(rows)])
        if not torch.isfinite(loss):
            raise NetworkError(f"the loss became {loss.item()} in epoch {epoch}; lower --lr and --head-lr, or check the images")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    optimizer.zero_grad(set_to_none=True)
    net.eval()
    second.eval()
    return float(np.mean(losses))


def _training_mode(second: nn.Module, head: nn.Module, freeze_norm: bool) -> None:
    second.train()
    head.train()
    if freeze_norm:
        for module in second.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _set_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps: int) -> None:
    """Warm up over a tenth of the steps, then fall along a cosine; a function of the step alone, so a run can resume."""
    warm = max(1, steps // 10)
    factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    for group, rate in zip(optimizer.param_groups[::-1], (options.head_lr, options.lr), strict=False):
        group["lr"] = rate * factor


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", torch.bfloat16)


def _embed(second: nn.Module, net: EmbeddingNet, inputs: _Inputs, batch_size: int) -> NDArray[np.float32]:
    rows = np.arange(len(inputs))
    with torch.inference_mode():
        parts = [net.head_embed(second(batch)).cpu().numpy() for _, batch in inputs.batches(rows, batch_size)]
    return np.concatenate(parts)


def _scores(
    second: nn.Module, net: EmbeddingNet, inputs: _Inputs, held_out: _Inputs | None, options: TrainOptions
) -> dict[str, float]:
    """Measure on the test images: against the training images if they share labels, else among themselves."""
    net.eval()
    second.eval()
    if held_out is None:
        return retrieval(_embed(second, net, inputs, options.batch_size), inputs.labels)
    query = _embed(second, net, held_out, options.batch_size)
    if not set(held_out.labels) <= set(inputs.labels):
        return retrieval(query, held_out.labels)
    return retrieval(query, held_out.labels, _embed(second, net, inputs, options.batch_size), inputs.labels)


def _report(history: list[dict[str, float]]) -> None:
    row = history[-1]
    loss = f"loss {row['loss']:.4f}, " if "loss" in row else "before training: "
    scores = f"Recall@1 {row['recall_at_1']:.4f}, MAP@R {row['map_at_r']:.4f}, NMI {row['nmi']:.4f}"
    say(f"epoch {row['epoch']:.0f}: {loss}{scores}")


def _draw(history: list[dict[str, float]], out: Path) -> None:
    from ..show.curve import training_curve

    training_curve(history, out.with_suffix(".png"))
