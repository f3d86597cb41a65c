"""Signed contributions of the cells to similarities, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..database.weight_database import WeightDatabase
from ..errors import NetworkError
from ..nets.cells import Cells
from ..nets.network import Network


class Contributions(NamedTuple):
    """A similarity, decomposed: `densities.mean(dim=(1, 2)) + rest` is the similarity.

    Attributes:
        densities: (B, h, w), each cell's contribution times the number of cells: the similarity if the whole image
            were like this cell.
        rest: (B,), what no cell contributes.
    """

    densities: Tensor
    rest: Tensor


def contributions(cells: Cells, directions: Tensor, common: Tensor) -> Contributions:
    """Decompose similarities over the cells.

    The embedding z is the mean of the cell embeddings e_i and a rest r, so

        (z - m) . d  =  mean over i of (e_i - m) . d  +  r . d

    Args:
        cells: Cell embeddings of B images, or of one.
        directions: (B, D), what the embeddings are compared with, minus m; or the difference of two such.
        common: (D,), the embedding m that counts as no evidence; zero for cosine networks.

    Returns:
        The contributions.

    Source:
        Zhu et al. 2019, Visual Explanation for Deep Metric Learning (arXiv 1909.12977); Stylianou et al. 2019,
        Visualizing Deep Similarity Networks (arXiv 1901.00536).
    """
    summed = directions[:, None] @ cells.embeddings.flatten(start_dim=2)
    summed = summed.reshape(len(directions), *cells.embeddings.shape[2:])
    return Contributions(summed - (directions @ common)[:, None, None], (directions * cells.rest).sum(dim=1))


def common_embedding(database: WeightDatabase) -> NDArray[np.float32]:
    """Compute the mean embedding of the training images, which all of them have in common.

    Args:
        database: Its centroids are averaged, weighted by the number of members.

    Returns:
        (D,) float32.
    """
    mean: NDArray[np.float32] = np.average(database.centroids, axis=0, weights=database.counts).astype(np.float32)
    return mean


def origin(database: WeightDatabase) -> NDArray[np.float32]:
    """Choose the embedding that counts as no evidence.

    Args:
        database: Of the network.

    Returns:
        (D,) float32: zero for cosine networks, the common embedding for Euclidean ones, which have no origin.
    """
    common = common_embedding(database)
    return np.zeros_like(common) if database.network.metric == "cosine" else common


def require_decomposable(net: Network) -> None:
    """Refuse a network without cell embeddings.

    Args:
        net: The network.

    Raises:
        NetworkError: If its embedding is no sum over the cells of the feature layer; the message has the reason.
    """
    try:
        net.require_decomposable()
    except NetworkError as error:
        raise NetworkError(
            f"{error}; or use embedcam.gradient.GradCAM(net)(images, embedcam.gradient.Similarity(reference)), which "
            "explains any network"
        ) from error
