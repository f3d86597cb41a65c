"""The checks of `evaluate`, faithfulness and randomisation, of a weight database."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..data.samples import Samples
from ..database.weight_database import WeightDatabase
from ..explain import Explainer
from ..nets.inference import tensor_batches
from ..nets.network import Network
from .faithfulness import faithfulness
from .randomisation import of_database, randomisation

# Each image is embedded about 60 times, or explained about 20 times; more images would change little.
_IMAGES = 64


def check(
    kind: Literal["faithfulness", "randomisation"],
    net: Network,
    db: WeightDatabase,
    test: Samples,
    *,
    batch_size: int = 16,
    strict: bool = False,
    workers: int = 2,
) -> dict[str, Any]:
    """Check the maps that a network and its database give.

    Args:
        kind: "faithfulness" measures deletion and insertion with the default's and the published method's maps;
            "randomisation" compares the maps with those of networks whose layers are re-initialised.
        net: The network.
        db: Its database.
        test: Images; at most 64 of them, evenly spread, are used.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        As the function `faithfulness` or `randomisation`.

    Raises:
        DataError: If there are not enough images.
    """
    explainer = Explainer(net, db)
    some = test.subset(np.unique(np.linspace(0, len(test) - 1, _IMAGES).round().astype(np.int64)))
    options: dict[str, Any] = {"preprocess": explainer.preprocess, "strict": strict, "workers": workers}
    loaded = tensor_batches(net, some, batch_size, f"checking {kind}", **options)
    if kind == "randomisation":
        return randomisation(net, lambda other: {"embedcam": Explainer(other, of_database(other, db))}, loaded)
    paper = Explainer(net, db, preset="paper")
    return faithfulness(net, {"embedcam": explainer, "cluster transfer (paper)": paper}, loaded)
