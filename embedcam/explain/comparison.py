"""Explain why two images match: their similarity, decomposed over the cells of both, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.preprocess import Preprocess
from ..database.weight_database import WeightDatabase
from ..errors import DataError, NetworkError
from ..nets import layers, receptive_field
from ..nets.embedding import EmbeddingNet
from ..nets.geometry import Geometry
from ..nets.inference import is_pooled
from ..nets.network import Network
from .explainer import Explainer
from .explanation import FLAT, NOT_FINITE, Explanation
from .maps import PLACEMENTS, place

T = TypeVar("T")


@dataclass(frozen=True)
class Pair(Generic[T]):
    """A value for the images, and for the other image that each of them is compared with."""

    images: T
    other: T


@dataclass(frozen=True)
class Comparison:
    """Maps of the evidence for and against a match, in both images.

    All four maps of a pair have the same scale: the largest contribution of any cell of the two images to this match,
    or to its image's match with itself. A weak difference is therefore drawn weakly.

    Attributes:
        similarity: float32 (B,): the sum of the contributions, of either image. The cosine, unless a common embedding
            was subtracted.
        distances: float32 (B,): 1 - cosine, or Euclidean.
        shared: Heat maps of the positive contributions, (B, H, W) in [0, 1]. Their `raw` is the contribution times the
            number n of cells: the similarity if the whole image were like this place.
        differs: Heat maps of the negative contributions, likewise.
        contributions: float32 (B, h, w), one per cell, of either sign.
    """

    similarity: NDArray[np.float32]
    distances: NDArray[np.float32]
    shared: Pair[Explanation]
    differs: Pair[Explanation]
    contributions: Pair[NDArray[np.float32]]


class Seen(NamedTuple):
    """The result of the forward pass of images that are to be compared.

    Attributes:
        maps: (B, K, h, w).
        vectors: (B, K): the mean of each map.
        embeddings: (B, D).
        lengths: (B,): norm of the head's output, by which it was divided; 1 for Euclidean networks.
        size: (H, W) of the images.
    """

    maps: Tensor
    vectors: Tensor
    embeddings: Tensor
    lengths: Tensor
    size: tuple[int, int]


class Against:
    """Compare images with another: one forward pass per image, no backward pass.

    Where the head sees only the mean v of the n cells' features a_i, and is linear (at v, if it has a hidden layer),
    every cell has an embedding e_i = head(a_i) / |head(v)| of its own (Euclidean: head(a_i)), and the image's embedding
    is their mean. The similarity is therefore exactly the sum of signed contributions of the cells:

        (z - m) . (z' - m)  =  sum over i of  (e_i - m) . (z' - m) / n

    For cosine networks m = 0 unless `common` is given, and this is the cosine. Euclidean networks have no origin. Their
    sum is the mixed term of the negative squared distance: -|z - z'|^2 = 2 (z - m) . (z' - m) - |z - m|^2 - |z' - m|^2.
    (The distance itself can be decomposed too, but shows only where images differ: on butterflies, such maps lie on the
    object hardly more often than by chance.)

    Args:
        net: The network, or an explainer, whose network, feature layer, placement and preprocessing are used.
        common: (D,) embedding m to subtract, such as `common_embedding(database)`, to show what these two images share
            more than any two. If None, nothing is subtracted in cosine networks: once trained, their mean is small (of
            length 0.2 on butterflies, and the share of heat on the object is 0.61 either way). For Euclidean networks,
            the explainer's database gives it, if there is an explainer.
        placement: "receptive-field" places each cell at the centre of its receptive field; "stretch" resizes the map
            bilinearly. If None, the explainer's, or "receptive-field".
        preprocess: From a picture to an input; the explainer's or the network's if None.

    Raises:
        NetworkError: If the network's head does not allow the decomposition.
        DataError: If the placement is unknown, or `common` does not have the size of an embedding.

    Source:
        Zhu et al. 2019, Visual Explanation for Deep Metric Learning (arXiv 1909.12977); Stylianou et al. 2019,
        Visualizing Deep Similarity Networks (arXiv 1901.00536).
    """

    def __init__(
        self,
        net: Network | Explainer,
        *,
        common: NDArray[np.float32] | None = None,
        placement: str | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        explainer = net if isinstance(net, Explainer) else None
        network = net.net if isinstance(net, Explainer) else net
        if not isinstance(network, EmbeddingNet):
            raise _not_decomposable(network)
        self.net, self._modules = network, list(network.modules())
        self.placement = placement or (explainer.module.placement if explainer else "receptive-field")
        if self.placement not in PLACEMENTS:
            raise DataError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
        self.preprocess = preprocess or (explainer or network).preprocess
        if common is None and explainer and network.metric == "euclidean":
            common = common_embedding(explainer.database)
        if common is not None and common.shape != (network.dim,):
            raise DataError(f"common must be one embedding ({network.dim},), got {common.shape}; see common_embedding")
        offset = np.zeros(network.dim, dtype=np.float32) if common is None else common
        self._common = torch.as_tensor(offset, dtype=torch.float32, device=network.device)
        self._database_geometry = explainer.database.geometry if explainer else None
        self._geometries: dict[tuple[int, int], Geometry] = {}

    @torch.inference_mode()
    def see(self, images: Tensor) -> Seen:
        """Run the forward pass.

        Args:
            images: (B, 3, H, W), normalised; moved to the network's device.

        Returns:
            The input of a call.

        Raises:
            NetworkError: If the head sees more than the mean of each feature map.
        """
        with layers.evaluating(self.net, self._modules):
            seen = self.net.activations(images)
            maps, vectors = seen.maps, seen.maps.mean(dim=(2, 3))
            finite = seen.embeddings.isfinite().all(dim=1)
            if seen.vector is None or not is_pooled(seen.vector[finite], vectors[finite]):
                raise _not_decomposable(self.net)
            lengths = torch.ones_like(vectors[:, 0])
            if self.net.metric == "cosine":
                output = self.net.head(layers.as_input(self.net.head, vectors)).float()
                lengths = torch.linalg.vector_norm(output, dim=1).clamp(min=1e-12)
        return Seen(maps, vectors, seen.embeddings, lengths, (int(images.shape[2]), int(images.shape[3])))

    @torch.inference_mode()
    def __call__(self, images: Tensor | Seen, other: Tensor | Seen) -> Comparison:
        """Compare images with another.

        Args:
            images: (B, 3, H, W), normalised, or the result of `see`.
            other: One image (1, 3, H', W') for all, or one per image (B, 3, H', W'); or the result of `see`.

        Returns:
            Similarities, and B maps of either side.

        Raises:
            NetworkError: If the head sees more than the mean of each feature map.
            DataError: If the number of other images does not match.
        """
        ours, theirs = (side if isinstance(side, Seen) else self.see(side) for side in (images, other))
        with torch.autocast(self.net.device.type, enabled=False):  # only the network runs in low precision
            return self._compare(ours, theirs)

    def _compare(self, ours: Seen, theirs: Seen) -> Comparison:
        count = len(ours.embeddings)
        if len(theirs.embeddings) not in (1, count):
            raise DataError(f"got {len(theirs.embeddings)} others for {count} images; give one, or one per image")
        z, towards = ours.embeddings, theirs.embeddings.expand(count, -1)
        similarity = ((z - self._common) * (towards - self._common)).sum(dim=1)
        if self.net.metric == "cosine":
            distances = (1 - (z * towards).sum(dim=1)).clamp(min=0)
        else:
            distances = torch.linalg.vector_norm(z - towards, dim=1)
        crossed = (self._densities(ours, towards), self._densities(theirs, z))
        own = (self._densities(ours, z), self._densities(theirs, theirs.embeddings))
        strongest = torch.stack([side.abs().amax(dim=(1, 2)).expand(count) for side in (*crossed, *own)]).amax(dim=0)
        parts = [
            self._explanations(densities, strongest, embeddings, side.size)
            for densities, embeddings, side in zip(crossed, (z, towards), (ours, theirs), strict=True)
        ]
        shared, differs = (Pair(*sides) for sides in zip(*parts, strict=True))
        cells = (_numpy(densities / (densities.shape[1] * densities.shape[2])) for densities in crossed)
        return Comparison(_numpy(similarity), _numpy(distances), shared, differs, Pair(*cells))

    def _densities(self, seen: Seen, towards: Tensor) -> Tensor:
        """Compute each cell's contribution times the number of cells, (B, h, w); their mean is the similarity."""
        directions = towards - self._common
        try:
            weights, constants = self.net.head_along(seen.vectors, directions)
        except NetworkError as error:
            raise _not_decomposable(self.net) from error
        summed = (weights[:, None, :] @ seen.maps.flatten(start_dim=2)).squeeze(dim=1)
        lengths = seen.lengths[:, None]
        densities = (summed + constants[:, None]) / lengths - (directions @ self._common)[:, None]
        return densities.reshape(-1, *seen.maps.shape[2:])

    def _explanations(
        self, densities: Tensor, strongest: Tensor, embeddings: Tensor, size: tuple[int, int]
    ) -> tuple[Explanation, Explanation]:
        """Place the signed maps of one side; return the positive and the negative part."""
        placed = place(densities, self._geometry(densities, size), size)
        finite = strongest.isfinite()  # NaN in either image is in all maps of the pair
        usable = finite & (strongest > torch.finfo(strongest.dtype).tiny)
        placed = torch.where(finite[:, None, None], placed, 0)
        scale = torch.where(usable, strongest, 1)[:, None, None]
        states = list(zip(finite.tolist(), usable.tolist(), strict=True))

        def explanation(raw: Tensor) -> Explanation:
            notes = [[NOT_FINITE] if not ok else [] if lit else [FLAT] for ok, lit in states]
            return Explanation(_numpy(raw / scale), _numpy(raw), notes, _numpy(embeddings), preprocess=self.preprocess)

        return explanation(placed.clamp(min=0)), explanation((-placed).clamp(min=0))

    def _geometry(self, densities: Tensor, size: tuple[int, int]) -> Geometry:
        if self.placement == "stretch":
            return Geometry.stretch((int(densities.shape[1]), int(densities.shape[2])), size)
        if self._database_geometry is not None:
            return self._database_geometry
        if size not in self._geometries:
            self._geometries[size] = receptive_field.geometry(self.net.body, self.net.layer, size)
        return self._geometries[size]


def common_embedding(database: WeightDatabase) -> NDArray[np.float32]:
    """Compute the mean embedding of the training images, which all of them have in common.

    Args:
        database: Its centroids are averaged, weighted by the number of members.

    Returns:
        (D,) float32.
    """
    mean: NDArray[np.float32] = np.average(database.centroids, axis=0, weights=database.counts).astype(np.float32)
    return mean


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array


def _not_decomposable(net: Network) -> NetworkError:
    return NetworkError(
        f"the similarity of {net.architecture} cannot be decomposed over the cells of layer {net.layer!r}: this needs "
        "an EmbeddingNet whose head sees only the mean of each map of that layer (as in tiny, ResNet, MobileNetV2 and "
        "EfficientNet with their last layer) and is linear or has one hidden layer with ReLU; "
        "embedcam.gradient.GradCAM(net)(images, embedcam.gradient.Similarity(reference)) explains any network"
    )
