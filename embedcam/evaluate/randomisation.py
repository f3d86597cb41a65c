"""Randomisation check: maps of a network with random layers must differ from those of the trained network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from ..builder.build import build_database
from ..data.samples import Samples
from ..database.record import NetworkRecord
from ..database.weight_database import WeightDatabase
from ..errors import DataError, NetworkError
from ..explain.weighting import WEIGHTINGS
from ..nets import layers
from ..nets.network import Network
from ..utils.progress import track
from .faithfulness import Explain


def randomisation(
    net: Network,
    explain_with: Callable[[Network], Mapping[str, Explain]],
    batches: Iterable[tuple[NDArray[np.int64], Tensor]],
    *,
    stages: int | Sequence[str] = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Re-initialise a copy of the network layer by layer, from the output to the input, and compare the maps.

    Maps are compared with the original network's maps of the same images by Spearman's rank correlation over pixels.
    All images and the ranks of their maps are kept in memory; dozens to hundreds of images suffice.

    Args:
        net: The network; it is not changed.
        explain_with: From the network, or a re-initialised copy, to methods by name, each of which explains images
            (B, 3, H, W). A weight database must be built again for the copy; `of_database` gives the stale one.
        batches: Indices, which are not used, and normalised images (B, 3, H, W), all of one size.
        stages: Number of parts into which the layers are divided, at least 2: the last layer, and even parts of the
            layers before it; fewer if there are fewer layers. Or the names of modules, the last to run first: in each
            stage, this module and all layers after it are random.
        seed: Of the new parameters.

    Returns:
        A dictionary that JSON can hold: `images` compared and `rows`, one per method. A row has the `method`,
        `left_out` (images whose original map is flat), `between_images` and `stages`, the first for the copy before
        any layer is random. A stage has `layer` (the first random layer in the order of the forward pass; None in the
        first stage), `layers` (the number of random layers), `spearman` and `spearman_abs` (mean over images of the
        correlation and of its absolute value; 0 for a flat map) and `flat` (share of images with a flat map).
        `between_images` has `spearman` and `spearman_abs` between the original maps of different images, the
        correlation that a common bias, such as one to the centre, explains (None for one image).

    Raises:
        DataError: If there is no image, or all original maps of a method are flat.
        NetworkError: If no layer has parameters, or a named module has none.

    Source:
        Adebayo et al. 2018, Sanity checks for saliency maps (arXiv 1810.03292), cascading randomisation.
    """
    if isinstance(stages, int) and stages < 2:
        raise DataError(f"stages must be at least 2, got {stages}; 10 are usual")
    images = [batch.to(net.device) for _, batch in batches if len(batch)]
    if not images:
        raise DataError("no image was given for the randomisation check; give at least one batch")
    originals = {name: _ranks(explain, images) for name, explain in explain_with(net).items()}
    used = {name: ranks.any(axis=1) for name, ranks in originals.items()}
    for name, lit in used.items():
        if not lit.any():
            raise DataError(f"all maps of {name} are flat for the trained network; use other images")
    rows: dict[str, dict[str, Any]] = {
        name: {
            "method": name,
            "left_out": int(np.count_nonzero(~used[name])),
            "between_images": _means(_between(ranks[used[name]])),
            "stages": [],
        }
        for name, ranks in originals.items()
    }
    copied = copy.deepcopy(net)
    order, done = _in_order(copied), 0
    parts = _parts(order, stages) if isinstance(stages, int) else _named(order, stages)
    stages_of_layers = [[], *parts]
    for part in track(stages_of_layers, "randomising", len(stages_of_layers)):
        done += len(part)
        # The caller's random number generator is restored, and what explains may draw too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + done)
            for _, layer in reversed(part):
                _reinitialise(layer)
        for name, explain in explain_with(copied).items():
            ranks = _ranks(explain, images)[used[name]]
            stage = {"layer": part[0][0] if part else None, "layers": done}
            correlations = _means(_spearman(originals[name][used[name]], ranks))
            rows[name]["stages"].append(stage | correlations | {"flat": float((~ranks.any(axis=1)).mean())})
    return {"schema": 1, "images": sum(map(len, images)), "seed": seed, "rows": list(rows.values())}


def of_database(net: Network, db: WeightDatabase) -> WeightDatabase:
    """Assign a weight database to a re-initialised copy of its network, so that `Explainer` accepts it.

    Clusters, weights and geometry stay those of the trained network, so that only the layers differ.

    Args:
        net: The copy, of the same architecture.
        db: Made for the original network.

    Returns:
        A database for the copy; it shares the arrays.
    """
    return replace(db, network=NetworkRecord.of(net))


def rebuilt(net: Network, db: WeightDatabase, samples: Samples, **options: Any) -> WeightDatabase:
    """Build the database of another network as a given one was built, without exemplars.

    Args:
        net: The network, such as a re-initialised copy.
        db: The given database.
        samples: The training images.
        options: Of `build_database`, instead of those of `db`.

    Returns:
        The database of `net`.
    """
    of_db: dict[str, Any] = {
        "clusters": db.clusters,
        "top_k": db.top_k,
        "pairs": db.pairs or None,
        "method": db.method if db.method in WEIGHTINGS else "gradcam",
        "refinement": db.refinement is not None,
        "finer_weights": db.fusion is not None and db.fusion.weights_mean is not None,
        "seed": db.seed,
    }
    return build_database(net, samples, exemplars=False, **{**of_db, **options})


def untrained(net: Network, seed: int = 0) -> Network:
    """Copy a network and re-initialise the last layer that has parameters.

    Args:
        net: The network.
        seed: Of the new parameters.

    Returns:
        The copy.
    """
    copied = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _reinitialise(_in_order(copied)[-1][1])
    return copied


def _in_order(net: Network) -> list[tuple[str, nn.Module]]:
    """List the layers with parameters of their own in the order in which they first run.

    A layer that is never called, but whose parameters are used, counts as run with the module that contains it.
    """
    called: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda module, _: called.append(module)) for m in net.modules()]
    try:
        with layers.evaluating(net), torch.inference_mode(), layers.uncompiled():
            net(torch.zeros(1, net.in_channels, *net.preprocess.input_size, device=net.device))
    finally:
        for handle in handles:
            handle.remove()
    first_call = {module: position for position, module in reversed(list(enumerate(called)))}
    modules = dict(net.named_modules())

    def position(name: str) -> int:
        while modules[name] not in first_call:
            name = name.rpartition(".")[0]
        return first_call[modules[name]]

    named = [
        (name, module) for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None
    ]
    if not named:
        raise NetworkError(f"{net.architecture} has no layer with parameters; there is nothing to re-initialise")
    return sorted(named, key=lambda item: position(item[0]))


def _parts(order: list[tuple[str, nn.Module]], stages: int) -> list[list[tuple[str, nn.Module]]]:
    before = np.array_split(np.arange(len(order) - 1), stages - 1)
    return [order[-1:], *([order[i] for i in part] for part in reversed(before) if part.size)]


def _named(order: list[tuple[str, nn.Module]], stages: Sequence[str]) -> list[list[tuple[str, nn.Module]]]:
    """Divide the layers at the first layer of each named module."""
    parts, end = [], len(order)
    for module in stages:
        inside = [i for i, (name, _) in enumerate(order[:end]) if f"{name}.".startswith(f"{module}.")]
        if not inside:
            raise NetworkError(
                f"no layer with parameters in {module!r} before the stages already named; name modules from the output "
                f"to the input, such as {order[-1][0]!r}"
            )
        parts.append(order[inside[0] : end])
        end = inside[0]
    return parts


@torch.no_grad()
def _reinitialise(layer: nn.Module) -> None:
    # On the CPU, so that the parameters do not depend on the device.
    device = next(layer.parameters(recurse=False)).device
    layer.to("cpu")
    reset = getattr(layer, "reset_parameters", None)
    if callable(reset):
        reset()  # a batch norm's running statistics too
    else:
        # How tokens, scales and the like were initialised is not known; shuffling keeps their distribution.
        for parameter in layer.parameters(recurse=False):
            shuffled = parameter.flatten()[torch.randperm(parameter.numel())]
            parameter.copy_(shuffled.view_as(parameter))
    layer.to(device)


def _ranks(explain: Explain, images: list[Tensor]) -> NDArray[np.float32]:
    """Rank the pixels of every map, ties by their mean rank: (N, H W) centred at 0, all 0 for a flat map."""
    maps = (explain(batch).heatmaps.reshape(len(batch), -1) for batch in images)
    # Multiples of 1/2, which are exact in float32 up to 8 million pixels.
    return np.concatenate([(rankdata(m, axis=1) - (m.shape[1] + 1) / 2).astype(np.float32) for m in maps])


def _spearman(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = first.astype(np.float64), second.astype(np.float64)
    both, one, other = (np.einsum("np,np->n", x, y) for x, y in ((a, b), (a, a), (b, b)))
    correlation: NDArray[np.float64] = both / np.maximum(np.sqrt(one * other), np.finfo(float).tiny)
    return correlation


def _between(ranks: NDArray[np.float32]) -> NDArray[np.float64]:
    unit = ranks / np.linalg.norm(ranks, axis=1, keepdims=True)
    pairs: NDArray[np.float64] = (unit @ unit.T)[np.triu_indices(len(unit), 1)].astype(float)
    return pairs


def _means(values: NDArray[np.float64]) -> dict[str, float | None]:
    if not values.size:
        return {"spearman": None, "spearman_abs": None}
    return {"spearman": float(values.mean()), "spearman_abs": float(np.abs(values).mean())}
