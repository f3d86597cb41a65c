"""Explain images with one forward pass: no label, no partner image, no backward pass."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..database.neighbors import searchable
from ..database.record import NetworkRecord
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError, LayerError
from ..nets import layers
from ..nets.geometry import Geometry
from ..nets.network import Network
from .explanation import Explanation
from .maps import PLACEMENTS, combine, fuse, place
from .notes import unlike_notes
from .transfer import Chosen, Transfer

PRESETS = ("default", "paper")


class Explainer:
    """Weight transfer: channel weights stored of the training images near an image make its heat map.

    By default, the weights are those of the nearest clusters, mixed by distance, less what all clusters have in common,
    and the maps of two layers are multiplied. The preset "paper" is the published method: the nearest cluster's
    weights, one layer, a plain resize. What is chosen besides a preset takes its place; naming a transfer gives one
    layer's maps unless `fused` is asked for.

    Args:
        net: The network; its parameters are shared, its mode and feature layer are left as they are.
        database: Made for this network, or the path of its file.
        preset: "default" or "paper".
        transfer: One of `TRANSFERS`, see `Transfer`.
        fused: Multiply the maps of the feature layer with those of the finer layer that the database knows.
        explain_size: Side in pixels of `preprocess`; if None, the one that the database knows to be best.
        placement: "receptive-field" puts every cell where the network looked; "stretch" is the plain bilinear resize.
        autocast: torch.bfloat16 or torch.float16 to run the network in that precision; None for its own.

    Attributes:
        preprocess: From a picture to an input of the size to explain it in. Inputs of any other size are explained too.

        autocast: As given.

    Raises:
        DatabaseError: If the database was made for another network, or lacks what the transfer needs.

    Source:
        Chen et al. 2020, Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538), section 4.
    """

    def __init__(
        self,
        net: Network,
        database: WeightDatabase | str | Path,
        *,
        preset: str = "default",
        transfer: str | None = None,
        fused: bool | None = None,
        placement: str | None = None,
        explain_size: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        db = database if isinstance(database, WeightDatabase) else WeightDatabase.load(database)
        if preset not in PRESETS:
            raise DatabaseError(f"unknown preset {preset!r}; use one of {', '.join(PRESETS)}")
        if fused is None:
            fused = preset == "default" and transfer is None and db.fusion is not None
        elif fused and db.fusion is None:
            raise DatabaseError("this weight database knows no finer layer to fuse; build it again, with a refinement")
        paper = preset == "paper"
        placement = placement or ("stretch" if paper else "receptive-field")
        if placement not in PLACEMENTS:
            raise DatabaseError(f"unknown placement {placement!r}; use one of {', '.join(PLACEMENTS)}")
        self.transfer = Transfer(db, transfer or ("cluster" if paper else "soft-contrast"))
        self.net = _at_layer(net, db)
        self.database, self.placement = db, placement
        self.fusion = db.fusion if fused else None
        # The published method looks at images in the size that the network was trained at.
        refinement = db.refinement if preset == "default" and transfer is None else None
        best = self.net.preprocess.input_size if refinement is None else refinement.input_size
        size = best if explain_size is None else (explain_size, explain_size)
        self.preprocess = replace(self.net.preprocess, input_size=size)
        # Listed once: to walk through them takes longer than a heat map.
        self.autocast, self._modules = autocast, list(self.net.modules())

    @torch.inference_mode()
    def __call__(self, images: Tensor | NDArray[np.float32]) -> Explanation:
        """Explain images.

        Args:
            images: (B, 3, H, W), normalised; moved to the network's device.

        Returns:
            Heat maps (B, H, W) in [0, 1], and each image's embedding, cluster, distance, typicality, anomaly and notes.

        Raises:
            DataError: If they are no images.
            DatabaseError: If the database's finer layer is not as wide as the network's.
        """
        images = layers.as_images(self.net, torch.as_tensor(images))
        # Convolutions are up to half as fast again with the channels last.
        images = images.contiguous(memory_format=torch.channels_last)
        size = (int(images.shape[2]), int(images.shape[3]))
        with layers.evaluating(self.net, self._modules), self.precision(images.device):
            seen = self.net.activations(images, None if self.fusion is None else self.fusion.layer)
        embeddings = seen.embeddings.float().cpu().numpy()
        finite = searchable(embeddings)
        scale = self.database.distance_scale(size)
        found = self.transfer.find(embeddings if finite.all() else np.where(finite[:, None], embeddings, 0), scale)
        maps = _combined(seen.maps, self.transfer.choose(found))
        geometry = self._geometry(self.database.geometry, maps, size)
        if self.fusion is not None and seen.fine is not None:
            self._require_channels(seen.fine)
            fine = _combined(seen.fine, self.transfer.choose(found, layer=1))
            fine_geometry = self._geometry(self.fusion.geometry, fine, size)
            maps, geometry = fuse(maps, geometry, fine, fine_geometry), fine_geometry
        raw = place(maps, geometry, size).cpu().numpy()
        if not finite.all():
            raw[~finite] = np.nan
        clusters, distances = found.clusters[:, 0], found.distances[:, 0]
        anomaly = self.database.anomaly(distances / scale)
        return Explanation.of(
            raw,
            notes=unlike_notes(distances, anomaly, finite),
            embeddings=embeddings,
            clusters=clusters,
            distances=distances,
            typicality=self.database.typicality(clusters, distances / scale),
            anomaly=anomaly,
            neighbors=None if found.exemplars is None else found.exemplars[:, 0],
            preprocess=self.net.preprocess,
        )

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Give the context in which the network runs.

        Args:
            device: Where it runs.

        Returns:
            One of `autocast`, or one that changes nothing.
        """
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    def labels_of(self, cluster: int) -> list[tuple[str, int]]:
        """List the commonest labels of a cluster.

        Args:
            cluster: Its index.

        Returns:
            (name, count), the commonest first; empty without labels.
        """
        return self.database.labels_of(cluster)

    def exemplar(self, index: int) -> tuple[str, str | None]:
        """Name a training image, such as the one an image looks like.

        Args:
            index: Of an `Explanation`'s `neighbors`.

        Returns:
            Its path, relative to the data set, and its label, or None if that is unknown.
        """
        exemplars, names = self.database.exemplars, self.database.label_names
        assert exemplars is not None
        label = int(exemplars.label[index])
        return exemplars.path[index], names[label] if names is not None and label >= 0 else None

    def _geometry(self, known: Geometry, maps: Tensor, size: tuple[int, int]) -> Geometry:
        if self.placement == "stretch":
            return Geometry.stretch((int(maps.shape[1]), int(maps.shape[2])), size)
        return known

    def _require_channels(self, fine: Tensor) -> None:
        assert self.fusion is not None
        stored = self.fusion.weights_mean.shape[1]
        if fine.shape[1] != stored:
            raise DatabaseError(
                f"layer {self.fusion.layer!r} has {fine.shape[1]} channels, the weight database {stored}; "
                "build it again"
            )


def _combined(maps: Tensor, chosen: Chosen) -> Tensor:
    channels, weights = (torch.from_numpy(array).to(maps.device) for array in chosen)
    combined: Tensor = combine(maps.float(), weights, channels)
    return combined


def _at_layer(net: Network, db: WeightDatabase) -> Network:
    """Give the network at the database's feature layer, after checking that the database was made for it."""
    wanted = db.network
    if net.layer != wanted.layer:
        try:
            # A shallow copy shares all modules and parameters; only the name of the layer is its own.
            net = copy.copy(net)
            net.layer = wanted.layer
        except LayerError as error:
            raise DatabaseError(f"the weight database was made for another network: {error}") from error
    wanted.require_same(NetworkRecord.of(net))
    return net
