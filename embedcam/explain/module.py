"""The method as one module: images in, heat maps and where the embeddings lie out."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..database.quantiles import Slopes
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError
from ..nets import layers
from ..nets.geometry import PIXELS, Geometry
from ..nets.network import Activations, Network
from .belonging import Belonging
from .contributions import contributions, origin
from .explanation import Outputs
from .maps import ROUNDS, combine, fuse, interpolation, normalize, place, spread
from .question import Question
from .transfer import Lookup, Transfer

# Of the default's map of two layers, which is less peaked then; chosen on training images, see docs/heat-maps.md.
_POWER = 0.75


class Answered(NamedTuple):
    """The parts of similarities, see `Answer`.

    Attributes:
        similarity: (B,).
        contributions: (B, h, w).
        rest: (B,).
        signed: (B, H, W).
    """

    similarity: Tensor
    contributions: Tensor
    rest: Tensor
    signed: Tensor


class ExplainerModule(nn.Module):
    """Explains image batches; `Explainer` wraps it, compiled and exported graphs are made of it.

    Args:
        net: The network, at the database's feature layer.
        database: Its arrays become buffers.
        transfer: Chooses channel weights; None to ask each cell for the cluster instead, see `Belonging`.
        fused: Multiply the maps with those of `database.fusion`.
        placement: One of `maps.PLACEMENTS`.
        autocast: Number type in which the network runs; None for its own.
        mirrored: Average the maps at image size with those of the mirrored images.
        size: (H, W) of all images, for a graph of fixed size: its matrices become buffers. None for any size.
        at_image_size: Place the maps at image size, rather than leave one value per cell.
    """

    centroids: Tensor
    common: Tensor
    slopes: Tensor
    offsets: Tensor
    falls: Tensor

    def __init__(
        self,
        net: Network,
        database: WeightDatabase,
        transfer: Transfer | None,
        *,
        fused: bool,
        placement: str,
        autocast: torch.dtype | None = None,
        mirrored: bool = False,
        size: tuple[int, int] | None = None,
        at_image_size: bool = True,
    ) -> None:
        super().__init__()
        self.net, self.database = net, database
        self.transfer = None if transfer is None else transfer.to(net.device)
        self.belonging = None
        if transfer is None:
            self.belonging = Belonging(database, whole=net.require_decomposable().whole).to(net.device)
        self.fusion = database.fusion if fused else None
        self.placement, self.autocast, self.size, self.at_image_size = placement, autocast, size, at_image_size
        self.mirrored = mirrored and at_image_size
        self._cosine = database.network.metric == "cosine"
        self._keep("centroids", torch.from_numpy(database.centroids))
        self._keep("common", torch.from_numpy(origin(database)))
        for name, values in Slopes.of(database.distance_quantiles)._asdict().items():
            self._keep(name, torch.from_numpy(values).float())
        if size is not None:
            self._keep_matrices(size)

    @property
    def exemplars(self) -> int:
        """How many of the nearest exemplars `explain` needs; 0 for none."""
        return 0 if self.transfer is None else self.transfer.exemplars

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.to(self.net.device), persistent=False)

    def fixed(self, size: tuple[int, int] | None, *, at_image_size: bool = True) -> ExplainerModule:
        """Make the module for a graph.

        Args:
            size: (H, W) of all images; None for any size.
            at_image_size: Place the maps at image size.

        Returns:
            A module that shares network and transfer.

        Raises:
            DatabaseError: If the transfer needs exemplars, which are searched outside the module.
        """
        if self.exemplars:
            raise DatabaseError(
                "this transfer searches all training images, which no graph holds; choose --transfer cluster, "
                "contrast, soft or soft-contrast"
            )
        return self.of(self.net, size=size, at_image_size=at_image_size)

    def of(self, net: Network, *, size: tuple[int, int] | None = None, at_image_size: bool = True) -> ExplainerModule:
        """Make the same module for a network.

        Args:
            net: With the same parameters.
            size: As for `fixed`.
            at_image_size: Likewise.

        Returns:
            A module that shares the transfer.
        """
        return ExplainerModule(
            net,
            self.database,
            self.transfer,
            fused=self.fusion is not None,
            placement=self.placement,
            autocast=self.autocast,
            mirrored=self.mirrored,
            size=size,
            at_image_size=at_image_size,
        )

    def forward(self, images: Tensor) -> Outputs:
        """Explain images, by a transfer that needs no exemplars.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            Tensors; the maps at image size unless `at_image_size` is off.
        """
        return self.averaged(self.explain(self.run(images), (images.shape[2], images.shape[3])), images)

    def averaged(self, outputs: Outputs, images: Tensor) -> Outputs:
        """Average maps with those of the mirrored images, if `mirrored` is set.

        Args:
            outputs: Of the images.
            images: (B, 3, H, W), normalised.

        Returns:
            The outputs with the averaged maps.
        """
        if not self.mirrored:
            return outputs
        other = self.explain(self.run(images.flip(3)), (images.shape[2], images.shape[3]))
        raw = (outputs.raw + other.raw.flip(2)) / 2
        return outputs._replace(heatmap=normalize(raw), raw=raw, finite=outputs.finite & other.finite)

    def run(self, images: Tensor) -> Activations:
        """Run the network.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            Its embeddings and the maps of the layers that are explained.
        """
        precision = nullcontext() if self.autocast is None else torch.autocast(images.device.type, self.autocast)
        with precision:
            return self.net.activations(images, None if self.fusion is None else self.fusion.layer)

    def explain(
        self,
        seen: Activations,
        size: tuple[int, int],
        exemplars: Tensor | None = None,
        question: Question | None = None,
    ) -> Outputs:
        """Explain what the network saw.

        Args:
            seen: Of `run`.
            size: (H, W) of the images.
            exemplars: (B, n) the nearest exemplars, where the transfer needs them.
            question: What the maps explain; if None, why each image lies where it lies.

        Returns:
            As `forward`.
        """
        embeddings = seen.embeddings.float()
        # A sum with NaN is NaN in every runtime, a maximum is not. The bound is that of `neighbors.searchable`.
        finite = embeddings.square().sum(dim=1) < torch.finfo(torch.float32).max / 16
        lookup = self.look_up(torch.where(finite[:, None], embeddings, 0.0), size, exemplars)
        asked = lookup if question is None else self.look_up(question.target, size, exemplars)
        maps, geometry = self._map(seen, asked, question), self._geometry(self.geometry, seen.maps, size)
        if self.fusion is not None:
            assert seen.fine is not None
            self._require_channels(seen.fine)
            fine_geometry = self._geometry(self.fusion.geometry, seen.fine, size)
            fine_size = (seen.fine.shape[2], seen.fine.shape[3])
            rows, columns = self._matrices("fine", maps, geometry, fine_size, fine_geometry)
            maps, geometry = rows @ maps @ columns, fine_geometry
            maps = fuse(maps, self._fine_map(seen.fine.float(), maps, asked))
            if self.transfer is None:
                maps = maps**_POWER
        finite = finite & (maps.sum(dim=(1, 2)) < math.inf)
        maps = torch.where(finite[:, None, None], maps, 0.0)
        if self.at_image_size:
            rows, columns = self._matrices("image", maps, geometry, size, PIXELS)
            maps = rows @ maps @ columns
        distances = self._distances(lookup)
        scaled = distances / lookup.scale
        typicality = Slopes(self.slopes, self.offsets, self.falls).beyond(lookup.clusters, scaled)
        anomaly = scaled / self.database.far_distance
        return Outputs(normalize(maps), maps, embeddings, lookup.clusters, distances, typicality, anomaly, finite)

    @property
    def geometry(self) -> Geometry:
        """Where the cells of the network's feature maps lie, which may be denser than in the database."""
        return self.database.geometry.denser(self.net.density)

    def answer(self, seen: Activations, size: tuple[int, int], question: Question) -> Answered:
        """Decompose similarities over the cells.

        Args:
            seen: Of `run`, with a decomposable network.
            size: (H, W) of the images.
            question: What the images are compared with.

        Returns:
            The similarities, and their parts.
        """
        direction = question.direction(self.common)
        similarity = ((seen.embeddings.float() - self.common) * direction).sum(dim=1)
        densities, rest = contributions(self.net.cells(seen), direction, self.common)
        signed = place(densities, self._geometry(self.geometry, seen.maps, size), size)
        return Answered(similarity, densities / (densities.shape[1] * densities.shape[2]), rest, signed)

    def look_up(self, embeddings: Tensor, size: tuple[int, int], exemplars: Tensor | None = None) -> Lookup:
        """Compare embeddings with the centroids.

        Args:
            embeddings: (B, D) finite.
            size: (H, W) of the images.
            exemplars: (B, n) the nearest exemplars, where the transfer needs them.

        Returns:
            Where they lie.
        """
        if self._cosine:
            similarities = (embeddings @ self.centroids.T).clip(max=1)  # a cosine may be rounded up to more
        else:
            similarities = (embeddings[:, None] - self.centroids[None]).square().sum(dim=2) / -2
        sides: tuple[int | Tensor, ...] = size
        if not all(isinstance(side, int) for side in size):  # symbols of a graph that is being exported
            sides = tuple(torch.full((), side, dtype=torch.float32, device=embeddings.device) for side in size)
        scale = self.database.distance_scale((sides[0], sides[1]))
        return Lookup(embeddings, similarities, similarities.argmax(dim=1), scale, exemplars)

    def _distances(self, lookup: Lookup) -> Tensor:
        nearest = lookup.similarities.amax(dim=1)
        return 1 - nearest if self._cosine else (nearest * -2).sqrt()

    def _map(self, seen: Activations, asked: Lookup, question: Question | None) -> Tensor:
        if self.transfer is not None:
            combined: Tensor = combine(seen.maps.float(), self.transfer(asked, 0))
            return combined
        assert self.belonging is not None
        question = question or Question(asked.embeddings)
        heat: Tensor = self.belonging(self.net.cells(seen), seen.maps.float(), question)
        return heat

    def _fine_map(self, features: Tensor, heat: Tensor, asked: Lookup) -> Tensor:
        if self.transfer is None:
            fine: Tensor = spread(heat, features, ROUNDS)
            return fine * fine
        combined: Tensor = combine(features, self.transfer(asked, 1))
        return combined

    def _geometry(self, stored: Geometry, maps: Tensor, size: tuple[int, int]) -> Geometry:
        return Geometry.stretch((maps.shape[2], maps.shape[3]), size) if self.placement == "stretch" else stored

    def _matrices(
        self, name: str, maps: Tensor, geometry: Geometry, size: tuple[int, int], onto: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Make the matrices that place maps; of a fixed size they are kept."""
        if hasattr(self, f"{name}_rows"):
            return self.get_buffer(f"{name}_rows"), self.get_buffer(f"{name}_columns")
        rows, columns = interpolation(maps, geometry, size, onto)
        if self.size is not None:
            self._keep(f"{name}_rows", rows)
            self._keep(f"{name}_columns", columns)
        return rows, columns

    def _keep_matrices(self, size: tuple[int, int]) -> None:
        with torch.no_grad():
            self(layers.as_input(self.net, torch.zeros(1, self.net.in_channels, *size)))

    def _require_channels(self, fine: Tensor) -> None:
        assert self.fusion is not None
        weights = self.fusion.weights_mean
        if weights is not None and fine.shape[1] != weights.shape[1]:
            raise DatabaseError(
                f"layer {self.fusion.layer!r} has {fine.shape[1]} channels, the weight database {weights.shape[1]}; "
                "build it again"
            )
