"""Explain why two images match: their similarity, decomposed over the cells of both, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.preprocess import Preprocess
from ..errors import DataError
from ..nets import layers, receptive_field
from ..nets.cells import Cells
from ..nets.geometry import Geometry
from ..nets.network import Network
from .contributions import Contributions, common_embedding, contributions, require_decomposable
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
        similarity: float32 (B,): the sum of the contributions and the rest, of either image. The cosine, unless a
            common embedding was subtracted.
        distances: float32 (B,): 1 - cosine, or Euclidean.
        shared: Heat maps of the positive contributions, (B, H, W) in [0, 1]. Their `raw` is the contribution times the
            number n of cells: the similarity if the whole image were like this place.
        differs: Heat maps of the negative contributions, likewise.
        contributions: float32 (B, h, w), one per cell, of either sign.
        rest: float32 (B,), what no cell contributes; zero for networks whose head sees only the cells.
    """

    similarity: NDArray[np.float32]
    distances: NDArray[np.float32]
    shared: Pair[Explanation]
    differs: Pair[Explanation]
    contributions: Pair[NDArray[np.float32]]
    rest: Pair[NDArray[np.float32]]


class Seen(NamedTuple):
    """The result of the forward pass of images that are to be compared.

    Attributes:
        cells: Cell embeddings, see `Network.cells`.
        embeddings: (B, D).
        size: (H, W) of the images.
    """

    cells: Cells
    embeddings: Tensor
    size: tuple[int, int]


class Against:
    """Compare images with another: one forward pass per image, no backward pass.

    The embedding z of a decomposable network is the mean of the embeddings e_i of its n cells and a rest r. The
    similarity is therefore exactly the sum of signed contributions of the cells, and of the rest:

        (z - m) . (z' - m)  =  sum over i of  (e_i - m) . (z' - m) / n  +  r . (z' - m)

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
        NetworkError: If the network is not decomposable.
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
        require_decomposable(network)
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
        self._database_geometry = explainer.module.geometry if explainer else None
        self._geometries: dict[tuple[int, int], Geometry] = {}

    @torch.inference_mode()
    def see(self, images: Tensor) -> Seen:
        """Run the forward pass.

        Args:
            images: (B, 3, H, W), normalised; moved to the network's device.

        Returns:
            The input of a call.
        """
        with layers.evaluating(self.net, self._modules):
            seen = self.net.activations(images)
            with torch.autocast(self.net.device.type, enabled=False):  # only the network runs in low precision
                cells = self.net.cells(seen)
        return Seen(cells, seen.embeddings, (int(images.shape[2]), int(images.shape[3])))

    @torch.inference_mode()
    def __call__(self, images: Tensor | Seen, other: Tensor | Seen) -> Comparison:
        """Compare images with another.

        Args:
            images: (B, 3, H, W), normalised, or the result of `see`.
            other: One image (1, 3, H', W') for all, or one per image (B, 3, H', W'); or the result of `see`.

        Returns:
            Similarities, and B maps of either side.

        Raises:
            DataError: If the number of other images does not match.
        """
        ours, theirs = (side if isinstance(side, Seen) else self.see(side) for side in (images, other))
        with torch.autocast(self.net.device.type, enabled=False):
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
        crossed = (self._contributions(ours, towards), self._contributions(theirs, z))
        own = (self._contributions(ours, z), self._contributions(theirs, theirs.embeddings))
        peaks = [side.densities.abs().amax(dim=(1, 2)).expand(count) for side in (*crossed, *own)]
        strongest = torch.stack(peaks).amax(dim=0)
        parts = [
            self._explanations(side.densities, strongest, embeddings, seen.size)
            for side, embeddings, seen in zip(crossed, (z, towards), (ours, theirs), strict=True)
        ]
        shared, differs = (Pair(*sides) for sides in zip(*parts, strict=True))
        cells = (_numpy(side.densities / (side.densities.shape[1] * side.densities.shape[2])) for side in crossed)
        rest = (_numpy(side.rest) for side in crossed)
        return Comparison(_numpy(similarity), _numpy(distances), shared, differs, Pair(*cells), Pair(*rest))

    def _contributions(self, seen: Seen, towards: Tensor) -> Contributions:
        return contributions(seen.cells, towards - self._common, self._common)

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
            plain = receptive_field.geometry(self.net.body, self.net.layer, size)
            self._geometries[size] = plain.denser(self.net.density)
        return self._geometries[size]


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array
