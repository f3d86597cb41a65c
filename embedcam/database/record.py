"""The contents of a weight database as plain data, without validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.preprocess import Preprocess
from ..errors import DatabaseError
from ..nets.geometry import Geometry
from ..nets.source import NetworkSource
from .neighbors import Partitions


@dataclass(frozen=True)
class NetworkRecord:
    """The network that a database was made for.

    Attributes:
        sha256: Hash of the parameters that the embedding depends on, see `Network.sha256`.
        architecture: Name of the backbone, or class of a wrapped module; for people, it is not compared.
        layer: Dotted name of the feature layer.
        channels: K of that layer.
        dim: D of the embedding.
        metric: "cosine" or "euclidean".
        preprocess: Turns a picture into a network input.
        map_size: Grid (h, w) of the feature maps at the network's input size, without cells that undone strides add.
        number_type: Coarsest number type of the parameters: "float32", "float16" or "bfloat16".
        sha256_float16: The hash with values rounded to float16.
        sha256_bfloat16: The hash with values rounded to bfloat16.
        source: Where the network came from, to find it again; None if it was made in Python.
    """

    sha256: str
    architecture: str
    layer: str
    channels: int
    dim: int
    metric: str
    preprocess: Preprocess
    map_size: tuple[int, int] = (1, 1)
    number_type: str = "float32"
    sha256_float16: str = ""
    sha256_bfloat16: str = ""
    source: NetworkSource | None = field(default=None, compare=False)

    @classmethod
    def of(cls, net: Any) -> NetworkRecord:
        """Describe a network.

        Args:
            net: A `nets.Network`.

        Returns:
            Its record.
        """
        return cls(
            net.sha256(),
            net.architecture,
            net.layer,
            net.channels,
            net.dim,
            net.metric,
            replace(net.preprocess, function=None),
            _seen_cells(net),
            net.number_type,
            net.sha256("float16"),
            net.sha256("bfloat16"),
            None if net.source is None else net.source.sealed(),
        )

    def load(self, folder: Path) -> Any:
        """Load the network from where it came from.

        Args:
            folder: In which the database lies; a file that is gone is looked for there.

        Returns:
            A `nets.Network`, in evaluation mode, on the CPU.

        Raises:
            NetworkError: If it is not recorded, loading it may run code, or its file is gone or has changed.
        """
        from ..nets.catalog import load_recorded  # needs torch

        options: dict[str, Any] = {"metric": self.metric, "input_size": self.preprocess.input_size}
        return load_recorded(self.source, folder, layer=self.layer, **options)

    def require_usable(self, net: Any) -> None:
        """Check that a network has the channels and dimensions that the database has.

        Args:
            net: A `nets.Network`, at the database's feature layer.

        Raises:
            DatabaseError: If not.
        """
        _require(_differences({name: (getattr(self, name), getattr(net, name)) for name in ("channels", "dim")}))

    def require_same(self, net: Any) -> None:
        """Check that a network is the one that the database was made for.

        Args:
            net: A `nets.Network`, at the database's feature layer.

        Raises:
            DatabaseError: If anything differs; the message names every difference.
        """
        _require(self.differences(net))

    def differences(self, net: Any) -> list[str]:
        """Compare a network with the recorded one.

        Its container, the name of its class and what the embedding does not depend on make no difference. If one of the
        two is in half precision, parameters are compared as rounded to that type.

        Args:
            net: A `nets.Network`, at the recorded feature layer.

        Returns:
            A description of each difference.
        """
        coarsest = max(self.number_type, net.number_type, key=NUMBER_TYPES.index)
        ours = self.sha256 if coarsest == "float32" else getattr(self, f"sha256_{coarsest}")
        rounded = "" if self.number_type == net.number_type else f" as {coarsest}"
        names = ("channels", "dim", "metric", "preprocess")
        same = {name: (getattr(self, name), getattr(net, name)) for name in names}
        same["map_size"] = (self.map_size, _seen_cells(net))
        return _differences({f"sha256{rounded}": (ours, net.sha256(coarsest)), **same})


def _differences(pairs: dict[str, tuple[object, object]]) -> list[str]:
    return [
        f"{name} {_short(ours)} recorded, {_short(theirs)} in the network"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]


def _require(differences: list[str]) -> None:
    if differences:
        raise DatabaseError(
            f"the weight database was made for another network: {'; '.join(differences)}; "
            "use the network it was built with, or build a database for this one; check=False (--no-check) uses "
            "them together all the same, as far as their shapes allow"
        )


def _seen_cells(net: Any) -> tuple[int, int]:
    """Return the grid of the cells that the head sees, without those that undone strides add."""
    (height, width), (rows, columns) = net.map_size, net.density
    return -(-height // rows), -(-width // columns)


# From fine to coarse.
NUMBER_TYPES = ("float32", "float16", "bfloat16")


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


@dataclass(frozen=True, repr=False)
class Exemplars:
    """The training images one by one, for nearest-exemplar transfer and for showing similar images.

    Attributes:
        embeddings: (N, D) float32.
        top_channels: (N, T) int32.
        top_weights: (N, T) float32, strongest first.
        cluster: (N,) int64.
        label: (N,) int64, index into the database's label names; -1 if unknown.
        path: N names, relative to the data set.
        partitions: Speeds up the search among many exemplars; None if the search is exact.
    """

    embeddings: NDArray[np.float32]
    top_channels: NDArray[np.int32]
    top_weights: NDArray[np.float32]
    cluster: NDArray[np.int64]
    label: NDArray[np.int64]
    path: tuple[str, ...]
    partitions: Partitions | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        return f"<{len(self)} exemplars>"


@dataclass(frozen=True)
class Fusion:
    """A second, finer layer whose maps sharpen those of the feature layer.

    Attributes:
        layer: Dotted name of the finer layer.
        geometry: Where its cells lie.
        weights_mean: (C, K') float32, mean channel weights at this layer over a sample of each cluster's images; None
            if no weights are transferred to it.
    """

    layer: str
    geometry: Geometry
    weights_mean: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Refinement:
    """What the default explainer adds to the published method: a larger input size, and a finer layer if there is one.

    Attributes:
        input_size: (H, W) at which images are explained by default.
        distance_scale: Factor by which distances to centroids grow at that size.
        fusion: The finer layer, or None if the network has none.
    """

    input_size: tuple[int, int]
    distance_scale: float
    fusion: Fusion | None = None


def top_channels(weights: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Select the channels with the largest signed weights, as Faster-Grad-CAM does.

    Args:
        weights: (N, K).
        top_k: T, at most K.

    Returns:
        Channels (N, T) and their weights (N, T), strongest first; ties keep the lower index first.
    """
    channels = np.argsort(-weights, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    return channels, np.take_along_axis(weights, channels.astype(np.int64), axis=1)


@dataclass(frozen=True, repr=False)
class Record:
    """The fields of a `WeightDatabase`, which documents them."""

    network: NetworkRecord
    geometry: Geometry
    method: str
    target: str
    pairs: int
    seed: int
    created: str
    centroids: NDArray[np.float32]
    counts: NDArray[np.int64]
    weights_mean: NDArray[np.float32]
    weights_std: NDArray[np.float32]
    top_channels: NDArray[np.int32]
    top_weights: NDArray[np.float32]
    distance_quantiles: NDArray[np.float32]
    label_names: tuple[str, ...] | None = None
    label_histogram: NDArray[np.int64] | None = None
    exemplars: Exemplars | None = None
    refinement: Refinement | None = None
    embedcam_version: str = ""

    @property
    def fusion(self) -> Fusion | None:
        """The finer layer, or None if there is none."""
        return None if self.refinement is None else self.refinement.fusion
