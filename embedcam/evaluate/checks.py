"""The checks of `evaluate`, faithfulness and randomisation, of a weight database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.samples import Samples
from ..database.weight_database import WeightDatabase
from ..explain import Explainer
from ..nets.inference import tensor_batches
from ..nets.network import Network
from .faithfulness import Explain, faithfulness
from .randomisation import of_database, randomisation

# Each image is embedded about 60 times, or explained about 20 times; more images would change little.
_IMAGES = 64


def check_faithfulness(
    net: Network, db: WeightDatabase, test: Samples, *, batch_size: int = 16, strict: bool = False, workers: int = 2
) -> dict[str, Any]:
    """Measure deletion and insertion with the default's and the published method's maps.

    Args:
        net: The network.
        db: Its database.
        test: Images; at most 64 of them, evenly spread, are used.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        As `faithfulness`.

    Raises:
        DataError: If there are not enough images.
    """
    explainer, paper = Explainer(net, db), Explainer(net, db, preset="paper")
    loaded = _batches(net, explainer, test, "checking faithfulness", batch_size, strict, workers)
    methods: dict[str, Explain] = {"embedcam": explainer, "cluster transfer (paper)": paper}
    return faithfulness(net, methods, loaded)


def check_randomisation(
    net: Network, db: WeightDatabase, test: Samples, *, batch_size: int = 16, strict: bool = False, workers: int = 2
) -> dict[str, Any]:
    """Compare the maps with those of networks whose layers are re-initialised, from the last to the first.

    Args:
        net: The network.
        db: Its database.
        test: Images; at most 64 of them, evenly spread, are used.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        As `randomisation`.

    Raises:
        DataError: If there are not enough images.
    """
    loaded = _batches(net, Explainer(net, db), test, "checking with random layers", batch_size, strict, workers)
    explain_with: Callable[[Network], Explain] = lambda other: Explainer(other, of_database(other, db))  # noqa: E731
    return randomisation(net, explain_with, loaded)


def _batches(
    net: Network, explainer: Explainer, test: Samples, what: str, batch_size: int, strict: bool, workers: int
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    some = test.subset(np.unique(np.linspace(0, len(test) - 1, _IMAGES).round().astype(np.int64)))
    return tensor_batches(net, some, batch_size, what, preprocess=explainer.preprocess, strict=strict, workers=workers)
