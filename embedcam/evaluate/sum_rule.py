"""How exactly the contributions of cells add up to similarities."""

from __future__ import annotations

import numpy as np

from ..data.samples import Samples
from ..explain import Explainer
from ..explain.answer import Answer
from ..nets.inference import tensor_batches

_IMAGES = 64


def sum_rule(explainer: Explainer, samples: Samples, *, batch_size: int = 16, workers: int = 2) -> float | None:
    """Measure the largest error of the sum of contributions and rest.

    Up to 64 images are asked why they are near their own cluster, and why nearer to it than to the first cluster.

    Args:
        explainer: The explainer.
        samples: Readable images.
        batch_size: Images per batch.
        workers: Threads that read images ahead.

    Returns:
        Largest difference to the similarity; relative to it where it is above 1, as those of Euclidean networks may be.
        None for networks that are not decomposable.
    """
    if not explainer.net.decomposable:
        return None
    chosen = samples.subset(np.unique(np.linspace(0, len(samples) - 1, _IMAGES).astype(np.int64)))
    questions, errors = [explainer.asking(), explainer.asking(versus=0)], [0.0]
    loaded = tensor_batches(
        explainer.net, chosen, batch_size, "adding up", preprocess=explainer.preprocess, workers=workers
    )
    for _, images in loaded:
        for asking in questions:
            answer = asking(images)
            assert isinstance(answer, Answer)
            total = answer.contributions.sum(axis=(1, 2), dtype=np.float64) + answer.rest
            error = np.abs(total - answer.similarity) / np.maximum(np.abs(answer.similarity), 1)
            errors.append(float(error.max()))
    return max(errors)
