"""What an ONNX explainer says of itself, as one JSON text in the file's metadata. Needs no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from ..data.preprocess import Preprocess, usable
from ..errors import NetworkError
from ..nets.geometry import Geometry

# The metadata entry, and its version.
KEY, SCHEMA = "embedcam", 1
INPUT = "images"
OUTPUTS = {
    "heatmap": "float32 (B, H, W) in [0, 1]; all zero where `finite` is false",
    "raw": "float32 (B, H, W), the same maps before normalising, not negative",
    "embedding": "float32 (B, D)",
    "cluster": "int64 (B,), index of the nearest cluster",
    "distance": "float32 (B,), to its centroid: 1 - cosine, or Euclidean",
    "typicality": "float32 (B,) in [0, 1], share of the cluster's training images at least as far out",
    "anomaly": "float32 (B,), above 1 an image is farther out than 99 % of the training images",
    "finite": "bool (B,), false where NaN or infinity in the image or the network left no map",
}
HEATMAPS = ("image", "map")
# Far more than the labels of many thousand clusters; anything longer is no record of ours.
_LONGEST = 2**24


@dataclass(frozen=True)
class OnnxRecord:
    """Where an ONNX explainer comes from, and what it takes and gives.

    Attributes:
        embedcam_version: Of the program that exported it.
        preprocess: From a picture to an input of the size to explain it in.
        geometry: Where the cells of the maps sit, or None where they are stretched over the image.
        transfer: Where channel weights come from, see `Transfer`.
        fused: Dotted name of the second layer, or None.
        network: Of the network: sha256, architecture, layer, channels, dim, metric, input_size.
        database: Of the weight database: created, embedcam_version, method, target, pairs, seed, clusters, images.
        labels: For each cluster its commonest labels and their counts; empty without labels.
        uint8_input: The graph itself resizes and normalises pictures, uint8 (B, H, W, 3).
        dynamic: Images may have any height and width.
        float_layers: In a file of 8 bits, the convolutions that were left in float; None in a float file.
        heatmap: Size of the file's maps: "image", or "map" for one value a cell.
    """

    embedcam_version: str
    preprocess: Preprocess
    geometry: Geometry | None
    transfer: str
    fused: str | None
    network: dict[str, Any]
    database: dict[str, Any]
    labels: tuple[tuple[tuple[str, int], ...], ...] = ()
    uint8_input: bool = False
    dynamic: bool = False
    heatmap: str = "image"
    float_layers: tuple[str, ...] | None = None

    def to_json(self) -> str:
        """Write the record down.

        Returns:
            The same text for the same record.
        """
        known = {"schema": SCHEMA, **asdict(self), "input": INPUT, "outputs": OUTPUTS}
        return json.dumps(known, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> OnnxRecord:
        """Read a record and check it.

        Args:
            text: What `to_json` gave.

        Returns:
            The record.

        Raises:
            NetworkError: If the text is none, is newer, or lacks something.
        """
        if not text or len(text) > _LONGEST:
            raise NetworkError(f"its metadata has no {KEY!r} record of a usable length; it is of another program")
        try:
            known = json.loads(text)
            if known["schema"] != SCHEMA:
                raise NetworkError(f"it has schema {known['schema']!r}, this embedcam reads {SCHEMA}; update embedcam")
            return cls._of(known)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise NetworkError(f"its metadata is damaged: {error!r}") from error

    @classmethod
    def _of(cls, known: dict[str, Any]) -> OnnxRecord:
        (height, width), geometry = known["preprocess"]["input_size"], known["geometry"]
        red, green, blue = map(float, known["preprocess"]["mean"])
        red_std, green_std, blue_std = map(float, known["preprocess"]["std"])
        if known["heatmap"] not in HEATMAPS:
            raise ValueError(f"heatmap {known['heatmap']!r}")
        labels = tuple(tuple((str(name), int(count)) for name, count in row) for row in known["labels"])
        database = dict(known["database"])
        if type(clusters := database["clusters"]) is not int or (labels and len(labels) != clusters):
            raise ValueError(f"labels of {len(labels)} clusters, not of {clusters!r}")
        return cls(
            embedcam_version=str(known["embedcam_version"]),
            preprocess=usable(
                Preprocess(
                    (int(height), int(width)),
                    (red, green, blue),
                    (red_std, green_std, blue_std),
                    str(known["preprocess"]["interpolation"]),
                )
            ),
            uint8_input=bool(known["uint8_input"]),
            dynamic=bool(known["dynamic"]),
            heatmap=str(known["heatmap"]),
            geometry=None if geometry is None else _geometry(geometry),
            transfer=str(known["transfer"]),
            fused=None if known["fused"] is None else str(known["fused"]),
            network=dict(known["network"]),
            database=database,
            labels=labels,
            float_layers=None if known["float_layers"] is None else tuple(map(str, known["float_layers"])),
        )


def _geometry(known: dict[str, Any]) -> Geometry:
    stride, first = _pair(known["cell_stride"]), _pair(known["first_cell_center"])
    if not all(map(math.isfinite, (*stride, *first))) or min(stride) <= 0:
        raise ValueError(f"cells every {stride} from {first}")
    return Geometry(stride, first)


def _pair(values: Any) -> tuple[float, float]:
    y, x = map(float, values)
    return y, x
