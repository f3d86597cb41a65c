"""Explain images with one forward pass: no label, no partner image, no backward pass."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import layers
from ..database.neighbors import Neighbors
from ..database.record import NetworkRecord, WeightDatabase
from ..errors import DatabaseError
from ..explanation import Explanation
from ..heatmap import PLACEMENTS, Geometry, combine, place
from ..nets.network import Network

TRANSFERS = ("cluster", "nearest")


class Explainer:
    """Weight transfer: the channel weights of an image's cluster, or of its nearest exemplar, make its heat map.

    Args:
        net: The network; its parameters are shared, its mode and feature layer are left as they are.
        database: Made for this network, or the path of its file.
        transfer: "cluster" (mean weights of the nearest cluster) or "nearest" (weights of the nearest exemplar).
        placement: "receptive-field" puts every cell where the network looked; "stretch" is the plain bilinear resize.
        autocast: torch.bfloat16 or torch.float16 to run the network in that precision; None for its own.

    Raises:
        DatabaseError: If the database was made for another network, or holds no exemplars for "nearest".

    Source:
        Chen et al. 2020, Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538), section 4.
    """

    def __init__(
        self,
        net: Network,
        database: WeightDatabase | str | Path,
        *,
        transfer: str = "cluster",
        placement: str = "receptive-field",
        autocast: torch.dtype | None = None,
    ) -> None:
        db = database if isinstance(database, WeightDatabase) else WeightDatabase.load(database)
        if transfer not in TRANSFERS:
            raise DatabaseError(f"unknown transfer {transfer!r}; use one of {', '.join(TRANSFERS)}")
        if placement not in PLACEMENTS:
            raise DatabaseError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
        if transfer == "nearest" and db.exemplars is None:
            raise DatabaseError(
                "this weight database holds no exemplars; use --transfer cluster, or build it with exemplars"
            )
        self.net = _at_layer(net, db)
        self.database, self.transfer, self.placement = db, transfer, placement
        self._autocast, self._modules = autocast, list(self.net.modules())
        self._clusters = Neighbors(db.centroids, db.network.metric)
        self._exemplars = Neighbors(db.exemplars.embeddings, db.network.metric) if db.exemplars is not None else None
        source = db if transfer == "cluster" else db.exemplars
        assert source is not None
        device = net.device
        self._channels = torch.from_numpy(source.top_channels.astype(np.int64)).to(device)
        self._weights = torch.from_numpy(source.top_weights).to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Explanation:
        """Explain images.

        Args:
            images: (B, 3, H, W), normalised; moved to the network's device.

        Returns:
            Heat maps (B, H, W) in [0, 1], and each image's embedding, cluster, distance, typicality and notes.
        """
        images = images.to(self.net.device)
        precision = torch.autocast(images.device.type, self._autocast, enabled=self._autocast is not None)
        with layers.evaluating(self.net, self._modules), precision:
            seen = self.net.activations(images)
        embeddings = seen.embeddings.float().cpu().numpy()
        finite = np.isfinite(embeddings).all(axis=1)
        safe = embeddings if finite.all() else np.where(finite[:, None], embeddings, 0)
        clusters, distances = self._clusters.nearest(safe)
        neighbors = None
        if self._exemplars is not None:
            neighbors, _ = self._exemplars.nearest(safe)
        chosen = torch.from_numpy(clusters if self.transfer == "cluster" or neighbors is None else neighbors).to(
            images.device
        )
        maps = combine(seen.maps.float(), self._weights[chosen], self._channels[chosen])
        size = (int(images.shape[2]), int(images.shape[3]))
        raw = place(maps, self._geometry(size, maps), size).cpu().numpy()
        if not finite.all():
            raw[~finite] = np.nan
        return Explanation.of(
            raw,
            notes=self._notes(clusters, distances, finite),
            embeddings=embeddings,
            clusters=clusters,
            distances=distances,
            typicality=self.database.typicality(clusters, distances),
            neighbors=neighbors,
            preprocess=self.net.preprocess,
        )

    def _geometry(self, size: tuple[int, int], maps: Tensor) -> Geometry:
        if self.placement == "stretch":
            return Geometry.stretch((int(maps.shape[1]), int(maps.shape[2])), size)
        return self.database.geometry

    def _notes(
        self, clusters: NDArray[np.int64], distances: NDArray[np.float32], finite: NDArray[np.bool_]
    ) -> list[list[str]]:
        farthest = self.database.distance_quantiles[clusters, -1]
        return [
            [f"unlike the training images: {d:.3f} from its cluster's centre, whose farthest image is at {far:.3f}"]
            if ok and d > far
            else []
            for d, far, ok in zip(distances, farthest, finite, strict=True)
        ]


def _at_layer(net: Network, db: WeightDatabase) -> Network:
    """Give the network at the database's feature layer, after checking that the database was made for it."""
    wanted = db.network
    if net.layer != wanted.layer:
        try:
            # A shallow copy shares all modules and parameters; only the name of the layer is its own.
            net = copy.copy(net)
            net.layer = wanted.layer
        except layers.LayerError as error:
            raise DatabaseError(f"the weight database was made for another network: {error}") from error
    wanted.require_same(NetworkRecord.of(net))
    return net
