"""An explainer as one module of plain tensor operations, with the weight database's arrays as constants."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..database.record import QUANTILES
from ..errors import DatabaseError
from ..nets.geometry import PIXELS, Geometry
from .explainer import Explainer
from .maps import LEVELLED
from .transfer import CLUSTERS, Found


class ExplainerGraph(nn.Module):
    """What `Explainer` does, in a form that can be written down as a graph.

    Args:
        explainer: What is written down; a transfer from clusters, not from exemplars.
        size: (H, W) of the images, for which all matrices are made now; None to make them anew for every batch.
        at_image_size: Place the maps at image size, rather than leave them one value a cell.

    Raises:
        DatabaseError: If the explainer uses exemplars.
    """

    centroids: Tensor
    slopes: Tensor
    offsets: Tensor
    falls: Tensor

    def __init__(self, explainer: Explainer, size: tuple[int, int] | None, *, at_image_size: bool) -> None:
        super().__init__()
        db, transfer = explainer.database, explainer.transfer
        if transfer.name in ("nearest", "neighbors"):
            raise DatabaseError(
                f"transfer {transfer.name!r} looks among all training images, which no graph holds; "
                "choose --transfer cluster, contrast, soft or soft-contrast"
            )
        self.net, self.database, self.fusion = explainer.net, db, explainer.fusion
        self._precision = explainer.precision
        self._finer = None if self.fusion is None else self.fusion.layer
        self._size, self._at_image_size = size, at_image_size
        self._soft = transfer.name.startswith("soft")
        self._cosine, self._spread = db.network.metric == "cosine", transfer.spread
        self._placement = explainer.placement
        self._keep("centroids", db.centroids)
        for layer in range(1 + (self.fusion is not None)):
            if self._soft:
                self._keep(f"weights_{layer}", transfer.weights[layer])
                continue
            every = np.arange(db.clusters)[:, None]
            chosen = transfer.choose(Found(every, np.zeros(every.shape, np.float32), None, None), layer=layer)
            self._keep(f"weights_{layer}", chosen.weights)
            self._keep(f"channels_{layer}", chosen.channels)
        self._keep_quantiles()
        self._anomaly = float(db.anomaly(np.ones(1, np.float32))[0])
        if size is not None:
            self._keep_matrices(size)

    def _keep(self, name: str, values: object) -> None:
        self.register_buffer(name, torch.as_tensor(np.ascontiguousarray(values)).to(self.net.device), persistent=False)

    def _keep_quantiles(self) -> None:
        rows = self.database.distance_quantiles.astype(np.float64)
        # A cluster's own images all lie in its centroid where it has but one; rounding must not decide there.
        bounds = np.maximum(np.concatenate([np.zeros((len(rows), 1)), rows], axis=1), rows[:, :1] * 1e-6 + 1e-6)
        # Between equal quantiles the share falls at once.
        slopes = 1 / np.maximum(np.diff(bounds, axis=1), 1e-12)
        self._keep("slopes", slopes.astype(np.float32))
        self._keep("offsets", (bounds[:, :-1] * slopes).astype(np.float32))
        self._keep("falls", np.diff(np.array([1.0, *(1 - q for q in QUANTILES)]))[:, None].astype(np.float32))

    def _keep_matrices(self, size: tuple[int, int]) -> None:
        black = torch.zeros(1, 3, *size, device=self.net.device)
        with torch.no_grad():
            seen = self.net.activations(black, self._finer)
        for name, (rows, columns) in self._matrices(_cells(seen.maps), _cells(seen.fine), size).items():
            self._keep(f"{name}_rows", rows)
            self._keep(f"{name}_columns", columns)

    def _kept_matrices(self) -> dict[str, tuple[Tensor, Tensor]]:
        wanted = [name for name in ("finer", "image") if hasattr(self, f"{name}_rows")]
        return {name: (self.get_buffer(f"{name}_rows"), self.get_buffer(f"{name}_columns")) for name in wanted}

    def _matrices(
        self, cells: tuple[int, int] | None, finer: tuple[int, int] | None, size: tuple[int, int]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Make the matrices that bring a coarse map onto a finer one's cells, and the last map to the image."""
        assert cells is not None
        made = {}
        geometry = self._geometry(self.database.geometry, cells, size)
        if finer is not None:
            assert self.fusion is not None
            fine_geometry = self._geometry(self.fusion.geometry, finer, size)
            made["finer"] = self._interpolation(geometry, cells, fine_geometry, finer)
            geometry, cells = fine_geometry, finer
        if self._at_image_size:
            made["image"] = self._interpolation(geometry, cells, PIXELS, size)
        return made

    def _geometry(self, known: Geometry, cells: tuple[int, int], size: tuple[int, int]) -> Geometry:
        return Geometry.stretch(cells, size) if self._placement == "stretch" else known

    def _interpolation(
        self, cells: Geometry, counts: tuple[int, int], onto: Geometry, wanted: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Make the matrices of `heatmap.place`: (H, h) for the rows, (w, W) for the columns."""
        rows, columns = (
            _hat(
                counts[axis],
                wanted[axis],
                (cells.cell_stride[axis], cells.first_cell_center[axis]),
                (onto.cell_stride[axis], onto.first_cell_center[axis]),
            ).to(self.centroids)
            for axis in (0, 1)
        )
        return rows, columns.T

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Explain images.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            What `onnx_record.OUTPUTS` names, in that order.
        """
        with self._precision(images.device):
            seen = self.net.activations(images, self._finer)
        embeddings = seen.embeddings.float()
        size = self._size or (images.shape[2], images.shape[3])
        matrices = self._kept_matrices() if self._size else self._matrices(_cells(seen.maps), _cells(seen.fine), size)
        # Of NaN, a sum is certain to be NaN in every runtime; a maximum is not. The bound is that of `searchable`.
        finite = embeddings.square().sum(dim=1, keepdim=True) < torch.finfo(torch.float32).max / 16
        nearness = self._nearness(torch.where(finite, embeddings, 0.0))
        near, clusters = nearness.topk(min(CLUSTERS, len(self.centroids)) if self._soft else 1, dim=1)
        near = near.clamp(max=1) if self._cosine else near  # a cosine may be rounded up to more
        cluster, scale = clusters.select(1, 0), self._distance_scale(size)
        share = self._share(nearness, near, scale) if self._soft else None

        maps = self._combined(seen.maps, cluster, share, 0)
        if seen.fine is not None:
            coarse = maps.reshape(maps.shape[0], *seen.maps.shape[2:])
            product = self._combined(seen.fine, cluster, share, 1) * _placed(coarse, *matrices["finer"]).flatten(1)
            maps = _levelled(product, fixed=self._size is not None)
        finite = finite & (maps.sum(dim=1, keepdim=True) < math.inf)
        last = seen.maps if seen.fine is None else seen.fine
        raw = torch.where(finite, maps, 0.0).reshape(maps.shape[0], *last.shape[2:])
        if self._at_image_size:
            raw = _placed(raw, *matrices["image"])

        distance = self._distance(_column(near, 0))
        scaled = distance / scale
        typicality, anomaly = self._typicality(cluster, scaled), scaled * self._anomaly
        flat = (each.flatten() for each in (distance, typicality, anomaly, finite))
        return _normalized(raw), raw, embeddings, cluster, *flat

    def _nearness(self, embeddings: Tensor) -> Tensor:
        """Say how near all clusters are (B, C): by the cosine, or minus half the squared distance."""
        if self._cosine:
            return embeddings @ self.centroids.T
        return (embeddings[:, None] - self.centroids[None]).square().sum(dim=2) / -2

    def _distance(self, nearness: Tensor) -> Tensor:
        return 1 - nearness if self._cosine else (nearness * -2).sqrt()

    def _share(self, nearness: Tensor, near: Tensor, scale: float | Tensor) -> Tensor:
        """Share the weights out over the nearest clusters; all others (B, C) get none."""
        behind = (nearness - _column(near, 0)).clamp(max=0)  # first, since the rest may be a large number
        behind = behind * (1 / (self._spread * (scale if self._cosine else scale * scale)))
        if near.shape[1] < nearness.shape[1]:
            behind = torch.where(nearness < _column(near, near.shape[1] - 1), -math.inf, behind)
        return torch.softmax(behind, dim=1)

    def _combined(self, maps: Tensor, cluster: Tensor, share: Tensor | None, layer: int) -> Tensor:
        """Sum the strongest channels' maps with their weights and keep the positive part (B, h * w)."""
        stored = self.get_buffer(f"weights_{layer}")
        if share is None:
            channels = self.get_buffer(f"channels_{layer}").index_select(0, cluster)
            weights = stored.index_select(0, cluster)
        else:
            weights, channels = (share @ stored).topk(min(self.database.top_k, int(stored.shape[1])), dim=1)
        cells = maps.float().flatten(2)
        picked = cells.gather(1, channels[:, :, None].expand(-1, -1, cells.shape[2]))
        return (weights[:, None] @ picked).relu().flatten(1)

    def _typicality(self, cluster: Tensor, distances: Tensor) -> Tensor:
        """Interpolate between the stored quantiles (B, 1), as `WeightDatabase.typicality` does."""
        slopes, offsets = (functional.embedding(cluster, kept) for kept in (self.slopes, self.offsets))
        return torch.addmm(torch.ones_like(self.falls[:1]), (distances * slopes - offsets).clamp(0, 1), self.falls)

    def _distance_scale(self, size: tuple[int, int]) -> float | Tensor:
        """Say what `WeightDatabase.distance_scale` says, of a size that may be known only when the graph runs."""
        db = self.database
        if self._size is not None or db.refinement is None:
            return db.distance_scale(size)
        own, refinement = (math.log(h * w) for h, w in (db.network.preprocess.input_size, db.refinement.input_size))
        if own == refinement:
            return 1.0
        wanted = torch.full((), size[0] * size[1], dtype=torch.float32, device=self.net.device).log()
        return ((wanted - own) * (math.log(db.refinement.distance_scale) / (refinement - own))).exp()


def _cells(maps: Tensor | None) -> tuple[int, int] | None:
    return None if maps is None else (maps.shape[2], maps.shape[3])


def _hat(cells: int, count: int, own: tuple[float, float], onto: tuple[float, float]) -> Tensor:
    """Make the (count, cells) matrix that interpolates linearly between cell centres, clamped at the ends."""
    wanted = onto[1] + torch.arange(count, dtype=torch.float64) * onto[0]
    position = ((wanted - own[1]) / own[0]).clamp(min=0).clamp(max=cells - 1)
    return (1 - (position[:, None] - torch.arange(cells, dtype=torch.float64)).abs()).clamp(min=0)


def _placed(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows @ maps @ columns


def _column(values: Tensor, index: int) -> Tensor:
    return values.index_select(1, torch.tensor([index], device=values.device))


def _levelled(product: Tensor, *, fixed: bool) -> Tensor:
    """Bring the strongest cells (B, h * w) to one level, as `heatmap.fuse` does; of a fixed number it is cheaper."""
    if fixed:
        count = max(1, round(LEVELLED * product.shape[1]))
        level = _column(product.topk(count, dim=1).values, count - 1)
    else:
        cells = torch.full((1,), product.shape[1], dtype=torch.float64, device=product.device)
        last = (cells * LEVELLED).round().long().clamp(min=1) - 1
        level = product.sort(dim=1, descending=True).values.index_select(1, last)
    return torch.where(level == 0, product, torch.minimum(product, level))


def _normalized(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1] by its minimum and maximum, a flat one to zero."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    span = high - low
    return (maps - low) / torch.where(span > torch.finfo(torch.float32).tiny, span, math.inf)
