"""The checks of `evaluate` beyond scores against masks: faithfulness, randomisation and heat by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.samples import Samples
from ..database.weight_database import WeightDatabase
from ..explain import Explainer
from ..nets.inference import tensor_batches
from ..nets.network import Network
from .faithfulness import Explain, faithfulness
from .parts import heat_by_part
from .randomisation import of_database, randomisation, rebuilt
from .rivals import first_component, gaussian, of_maps

# The database is built again for each stage, from at most this many images.
_STAGES, _TRAINING = 6, 512


@dataclass(frozen=True)
class Check:
    """Inputs of the checks.

    Attributes:
        net: The network.
        db: Its database.
        test: Images.
        training: Images from which databases of re-initialised networks are built; None for none.
        reading: Options of `tensor_batches`: "batch_size", "strict", "workers".
    """

    net: Network
    db: WeightDatabase
    test: Samples
    training: Samples | None = None
    reading: dict[str, Any] = field(default_factory=lambda: {"batch_size": 16})

    def run(self, kind: str) -> dict[str, Any]:
        """Run one of `CHECKS`.

        Args:
            kind: Its name.

        Returns:
            As the function `faithfulness`, `randomisation` or `heat_by_part`.

        Raises:
            DataError: If there are not enough images, or they have no keypoints.
        """
        check, images = CHECKS[kind]
        some = evenly_spread(self.test, images)
        explainer = Explainer(self.net, self.db)
        batches = tensor_batches(
            explainer.net, some, what=f"checking {kind}", preprocess=explainer.preprocess, **self.reading
        )
        return check(self, explainer, some, batches)

    def methods(self, net: Network, db: WeightDatabase) -> dict[str, Explain]:
        """Make the methods that are checked: the default, the published method, EigenCAM, and those with one layer."""
        explainer = Explainer(net, db)
        methods: dict[str, Explain] = {"embedcam": explainer}
        if explainer.module.fusion is not None:
            methods["embedcam, one layer"] = Explainer(net, db, fused=False)
        methods["cluster transfer (paper)"] = Explainer(net, db, preset="paper")
        plain = explainer.net.plain  # the database has the geometry of its cells, and not of those that are added
        methods["EigenCAM"] = of_maps(plain, db, first_component, fused=False)
        if db.fusion is not None:
            methods["EigenCAM, two layers"] = of_maps(plain, db, first_component, fused=True)
        return methods


def _faithfulness(check: Check, explainer: Explainer, _: Samples, batches: Any) -> dict[str, Any]:
    methods = check.methods(check.net, check.db)
    return faithfulness(explainer.net.plain, {**methods, "Gaussian in the centre": gaussian}, batches)


def _parts(check: Check, explainer: Explainer, some: Samples, batches: Any) -> dict[str, Any]:
    methods = check.methods(check.net, check.db)
    return heat_by_part({**methods, "Gaussian in the centre": gaussian}, some, batches, explainer.preprocess)


def _randomisation(check: Check, explainer: Explainer, _: Samples, batches: Any) -> dict[str, Any]:
    training = None if check.training is None else evenly_spread(check.training, _TRAINING)

    def explain_with(net: Network) -> dict[str, Explain]:
        stale: dict[str, Explain] = {"embedcam, stale database": Explainer(net, of_database(net, check.db))}
        if training is None:
            return stale
        clusters = min(check.db.clusters, len(training) // 3)
        return {**check.methods(net, rebuilt(net, check.db, training, clusters=clusters)), **stale}

    return randomisation(explainer.net.plain, explain_with, batches, stages=_STAGES)


CHECKS: dict[str, tuple[Callable[[Check, Explainer, Samples, Any], dict[str, Any]], int]] = {
    "faithfulness": (_faithfulness, 100),
    "randomisation": (_randomisation, 32),
    "parts": (_parts, 256),
}
"""By name, the function, and how many images it is given at most: more would change little."""


def evenly_spread(samples: Samples, count: int) -> Samples:
    """Select images evenly spread over a data set.

    Args:
        samples: The data set.
        count: How many images at most.

    Returns:
        A subset, or all images.
    """
    return samples.subset(np.unique(np.linspace(0, len(samples) - 1, count).round().astype(np.int64)))
