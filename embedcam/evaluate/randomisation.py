"""Randomisation check: maps of a network with random layers must differ from those of the trained network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from ..database.record import NetworkRecord
from ..database.weight_database import WeightDatabase
from ..errors import DataError, NetworkError
from ..nets import layers
from ..nets.network import Network
from .faithfulness import Explain


def randomisation(
    net: Network,
    explain_with: Callable[[Network], Explain],
    batches: Iterable[tuple[NDArray[np.int64], Tensor]],
    *,
    stages: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Re-initialise a copy of the network layer by layer, from the output to the input, and compare the maps.

    The first stage is the last layer; the other stages divide the layers before it evenly. Maps are compared with the
    original network's maps of the same images by Spearman's rank correlation over pixels. All images and the ranks of
    their maps are kept in memory; dozens to hundreds of images suffice.

    Args:
        net: The network; it is not changed.
        explain_with: From the network, or a re-initialised copy, to a method that explains images (B, 3, H, W); for a
            weight database use `of_database`.
        batches: Indices, which are not used, and normalised images (B, 3, H, W), all of one size.
        stages: Number of parts into which the layers are divided, at least 2; fewer if there are fewer layers.
        seed: Of the new parameters.

    Returns:
        A dictionary that JSON can hold: `images` compared, `left_out` (images whose original map is flat),
        `between_images` and `rows`, the first for the copy before any layer is random. A row has `layer` (the first
        random layer in the order of the forward pass; None in the first row), `layers` (the number of random layers),
        `spearman` and `spearman_abs` (mean over images of the correlation and of its absolute value; 0 for a flat map)
        and `flat` (share of images with a flat map). `between_images` has `spearman` and `spearman_abs` between the
        original maps of different images, the correlation that a common bias, such as one to the centre, explains
        (None for one image).

    Raises:
        DataError: If there is no image, or all original maps are flat.
        NetworkError: If no layer has parameters.

    Source:
        Adebayo et al. 2018, Sanity checks for saliency maps (arXiv 1810.03292), cascading randomisation.
    """
    if stages < 2:
        raise DataError(f"stages must be at least 2, got {stages}; 10 are usual")
    images = [batch.to(net.device) for _, batch in batches if len(batch)]
    if not images:
        raise DataError("no image was given for the randomisation check; give at least one batch")
    originals = _ranks(explain_with(net), images)
    used = originals.any(axis=1)
    if not used.any():
        raise DataError("all maps of the trained network are flat; there is nothing to compare, use other images")
    originals = originals[used]
    copied = copy.deepcopy(net)
    rows: list[dict[str, Any]] = []
    done = 0
    # The caller's random number generator is restored.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for part in [[], *_parts(_in_order(copied), stages)]:
            for _, layer in reversed(part):
                _reinitialise(layer)
            done += len(part)
            ranks = _ranks(explain_with(copied), images)[used]
            row = {"layer": part[0][0] if part else None, "layers": done}
            rows.append(row | _means(_spearman(originals, ranks)) | {"flat": float((~ranks.any(axis=1)).mean())})
    return {
        "schema": 1,
        "images": len(originals),
        "left_out": int(np.count_nonzero(~used)),
        "seed": seed,
        "between_images": _means(_between(originals)),
        "rows": rows,
    }


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


def _in_order(net: Network) -> list[tuple[str, nn.Module]]:
    """List the layers with parameters of their own in the order in which they first run.

    A layer that is never called, but whose parameters are used, counts as run with the module that contains it.
    """
    called: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda module, _: called.append(module)) for m in net.modules()]
    try:
        with layers.evaluating(net), torch.inference_mode(), layers.uncompiled():
            net(torch.zeros(1, 3, *net.preprocess.input_size, device=net.device))
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
