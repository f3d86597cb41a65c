"""The record of an ONNX explainer: one JSON text in the file's metadata. Needs no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from ..data.preprocess import Preprocess
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
# Far more than the labels of thousands of clusters need, in characters.
_LONGEST = 2**24


@dataclass(frozen=True)
class OnnxRecord:
    """The origin of an ONNX explainer, and its input and output.

    Attributes:
        embedcam_version: Of the program that exported it.
        preprocess: From a picture to an input.
        geometry: Positions of the cells; None if maps are stretched over the image.
        transfer: Name of the transfer.
        fused: Dotted name of the second layer, or None.
        network: Of the network: sha256, architecture, layer, channels, dim, metric, input_size.
        database: Of the weight database: created, embedcam_version, method, target, pairs, seed, clusters, images.
        labels: Per cluster, its most frequent labels and their counts; empty without labels.
        uint8_input: The graph takes pictures, uint8 (B, H, W, 3), and resizes and normalises them.
        dynamic: Images may have any height and width.
        float_layers: In an 8-bit file, the convolutions that stay in float; None in a float file.
        heatmap: Size of the maps: "image", or "map" for one value per cell.
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
        """Write the record as JSON.

        Returns:
            The same text for equal records.
        """
        own = {**asdict(self), "preprocess": self.preprocess.record()}
        fields = {"schema": SCHEMA, **own, "input": INPUT, "outputs": OUTPUTS}
        return json.dumps(fields, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> OnnxRecord:
        """Read a record and check it.

        Args:
            text: Result of `to_json`.

        Returns:
            The record.

        Raises:
            NetworkError: If the text is damaged, or has another schema.
        """
        if not text or len(text) > _LONGEST:
            raise NetworkError(f"its metadata has no {KEY!r} record of a usable length; it is of another program")
        try:
            fields = json.loads(text)
            if fields["schema"] != SCHEMA:
                raise NetworkError(f"it has schema {fields['schema']!r}, this embedcam reads {SCHEMA}; update embedcam")
            return cls._of(fields)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise NetworkError(f"its metadata is damaged: {error!r}") from error

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> OnnxRecord:
        geometry = fields["geometry"]
        if fields["heatmap"] not in HEATMAPS:
            raise ValueError(f"heatmap {fields['heatmap']!r}")
        labels = tuple(tuple((str(name), int(count)) for name, count in row) for row in fields["labels"])
        database = dict(fields["database"])
        if type(clusters := database["clusters"]) is not int or (labels and len(labels) != clusters):
            raise ValueError(f"labels of {len(labels)} clusters, not of {clusters!r}")
        return cls(
            embedcam_version=str(fields["embedcam_version"]),
            preprocess=Preprocess.recorded(fields["preprocess"]),
            uint8_input=bool(fields["uint8_input"]),
            dynamic=bool(fields["dynamic"]),
            heatmap=str(fields["heatmap"]),
            geometry=None if geometry is None else _geometry(geometry),
            transfer=str(fields["transfer"]),
            fused=None if fields["fused"] is None else str(fields["fused"]),
            network=dict(fields["network"]),
            database=database,
            labels=labels,
            float_layers=None if fields["float_layers"] is None else tuple(map(str, fields["float_layers"])),
        )


def _geometry(fields: dict[str, Any]) -> Geometry:
    stride, first = _pair(fields["cell_stride"]), _pair(fields["first_cell_center"])
    if not all(map(math.isfinite, (*stride, *first))) or min(stride) <= 0:
        raise ValueError(f"cells every {stride} from {first}")
    return Geometry(stride, first)


def _pair(values: Any) -> tuple[float, float]:
    y, x = map(float, values)
    return y, x
