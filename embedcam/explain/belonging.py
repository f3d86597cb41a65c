"""The default map: each cell is asked where it belongs among the clusters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..database.weight_database import WeightDatabase
from ..nets.cells import Cells
from .contributions import common_embedding
from .question import Question

# Chosen on training images of four data sets, see docs/heat-maps.md.
TEMPERATURE = 0.07
# Clusters that are more similar than this to what is asked for are no rivals: they often hold the same class.
SIMILAR = 0.5


class Belonging(nn.Module):
    """Heat of the cells whose own embeddings point towards a target rather than towards other clusters.

    Let m be the mean embedding of the training images, e_i the embedding of cell i, t the target (by default the
    image's own embedding) and c_j the centroids. With s(x) = cos(e_i - m, x - m), the heat of a cell is

        sqrt(share * contribution),  share = exp(s(t) / T) / (exp(s(t) / T) + sum over rivals j of exp(s(c_j) / T)),

    where contribution is the positive part of (e_i - m) . (t - m) / |t - m|, T is `TEMPERATURE`, and rivals are the
    clusters with cos(c_j - m, t - m) below `SIMILAR`. Subtracting m makes the question independent of what all
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

    def forward(self, cells: Cells, question: Question) -> Tensor:
        """Ask every cell.

        Args:
            cells: Cell embeddings of B images.
            question: Its `versus`, if any, is the only rival, and contributions are along the difference to it.

        Returns:
            (B, h, w), not negative.
        """
        flat = cells.embeddings.flatten(start_dim=2)
        if not self.whole:
            direction = functional.normalize(question.direction(torch.zeros_like(self.common)))
            contrast = functional.normalize(flat - flat.mean(dim=2, keepdim=True), dim=1)
            part: Tensor = _along(contrast, direction).clamp(min=0)
            return part.reshape(-1, *cells.embeddings.shape[2:])
        centred = flat - self.common[:, None]
        scale = torch.linalg.vector_norm(centred, dim=1).clamp(min=torch.finfo(centred.dtype).tiny) * TEMPERATURE
        asked = functional.normalize(question.target - self.common)
        along = _along(centred, asked)
        own = (along / scale).exp()
        if question.versus is None:
            rivals = (asked @ self.directions.T < SIMILAR).to(centred)
            others = _along((self.directions @ centred / scale[:, None]).exp(), rivals)
        else:
            others = (_along(centred, functional.normalize(question.versus - self.common)) / scale).exp()
            along = _along(centred, functional.normalize(question.direction(self.common)))
        heat: Tensor = (own / (own + others) * along.clamp(min=0)).sqrt()
        return heat.reshape(-1, *cells.embeddings.shape[2:])


def _along(cells: Tensor, directions: Tensor) -> Tensor:
    along: Tensor = (directions[:, None] @ cells).squeeze(dim=1)
    return along
