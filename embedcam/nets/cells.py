"""Cell embeddings: what each cell of the feature layer adds to the embedding."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Cells(NamedTuple):
    """An exact decomposition of embeddings: `embeddings.mean(dim=(2, 3)) + rest` is the embedding.

    What the embedding was divided by (its length, statistics of normalisation layers) and how tokens attended to each
    other are held at the values of the forward pass.

    Attributes:
        embeddings: float32 (B, D, h, w), the cell embeddings.
        rest: float32 (B, D), what no cell of this layer adds, such as the class token's own path; zero for networks
            whose head sees only the cells.
    """

    embeddings: Tensor
    rest: Tensor
