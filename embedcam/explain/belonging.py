"""The default map: each cell is asked where it belongs among the clusters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..database.weight_database import WeightDatabase
from ..nets.cells import Cells
from .contributions import common_embedding
from .maps import TINY, spread
from .question import Question

# Chosen on training images of four data sets, see docs/heat-maps.md.
TEMPERATURE = 0.03
# Clusters that are more similar than this to what is asked for are no rivals: they often hold the same class.
SIMILAR = 0.5
# Side of the square of cells whose mean is asked, chosen likewise.
NEIGHBORHOOD = 3
# Smallest extent of a cell: near 0, a square root would enlarge rounding.
_LEAST = 1e-4


class Belonging(nn.Module):
    """Heat of the cells whose own embeddings point towards a target rather than towards other clusters.

    Let m be the mean embedding of the training images, e_i the embedding of cell i, n_i the mean embedding of the 3 x 3
    cells around it, t the target (by default the image's own embedding) and c_j the centroids. With
    s(x) = cos(n_i - m, x - m), the heat of a cell is

        sqrt(share * extent),  share = exp(s(t) / T) / (exp(s(t) / T) + sum over rivals j of exp(s(c_j) / T)),

    where T is `TEMPERATURE`, and rivals are the clusters with cos(c_j - m, t - m) below `SIMILAR`. The extent is
    sqrt(share * contribution), spread in one round to the cells with similar features, see `spread`; the contribution
    is the positive part of (e_i - m) . (t - m) / |t - m|. Subtracting m makes the question independent of what all
    embeddings have in common.

    Cells that are only part of the embedding (a class token has a path of its own) say less about clusters: their heat
    is the positive part of cos(e_i - e, t), where e is the mean of the image's cell embeddings.

    Args:
        database: Its centroids are asked for.
        whole: Whether the cells make the whole embedding, without a rest.
    """

    common: Tensor
    directions: Tensor

    def __init__(self, database: WeightDatabase, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        # With a single cluster nothing would be left.
        common = torch.from_numpy(common_embedding(database))
        common = common if database.clusters > 1 else torch.zeros_like(common)
        directions = functional.normalize(torch.from_numpy(database.centroids) - common)
        self.register_buffer("common", common, persistent=False)
        self.register_buffer("directions", directions, persistent=False)

    def forward(self, cells: Cells, maps: Tensor, question: Question) -> Tensor:
        """Ask every cell.

        Args:
            cells: Cell embeddings of B images.
            maps: float32 (B, K, h, w), the feature maps.
            question: Its `versus`, if any, is the only rival, and contributions are along the difference to it.

        Returns:
            (B, h, w), not negative.
        """
        if not self.whole:
            flat = cells.embeddings.flatten(start_dim=2)
            contrast = functional.normalize(flat - flat.mean(dim=2, keepdim=True), dim=1)
            part: Tensor = (_unit(question.direction(torch.zeros_like(self.common))) @ contrast).clamp(min=0)
            return part.reshape(-1, *maps.shape[2:])
        centred = cells.embeddings - self.common[:, None, None]
        # In any other memory format, pooling takes ten times as long.
        centred = centred.clone(memory_format=torch.channels_last)
        around = functional.avg_pool2d(centred, NEIGHBORHOOD, 1, NEIGHBORHOOD // 2, count_include_pad=False)
        centred, around = centred.flatten(start_dim=2), around.flatten(start_dim=2)
        around = around / (around.norm(dim=1, keepdim=True) * TEMPERATURE).clamp(min=TINY)
        asked = along = _unit(question.target - self.common)
        own = (asked @ around).exp()
        if question.versus is None:
            rivals = (asked @ self.directions.T < SIMILAR).to(around)
            others = rivals @ (self.directions @ around).exp()
        else:
            others = (_unit(question.versus - self.common) @ around).exp()
            along = _unit(question.direction(self.common))
        share = (own / (own + others)).reshape(-1, *maps.shape[2:])
        contribution = (along @ centred).clamp(min=0).reshape(share.shape)
        extent = spread((share * contribution).sqrt(), maps, rounds=1).clamp(min=_LEAST)
        heat: Tensor = (share * extent).sqrt()
        return heat


def _unit(directions: Tensor) -> Tensor:
    """From (B, D) to (B, 1, D), of length 1."""
    unit: Tensor = directions / directions.norm(dim=1, keepdim=True).clamp(min=TINY)
    return unit[:, None]
