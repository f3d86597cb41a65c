"""The result of every method, and the protocol of explainers. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.preprocess import Preprocess
from ..errors import DataError
from .maps import normalize

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..show.boxes import Box

FLAT = "the map is flat: nothing in the image stands out for this explanation"
NOT_FINITE = "the map is not finite (NaN or infinity in the image or the network); it is shown as zero"


class Outputs(NamedTuple):
    """The outputs of the method for an image batch, as tensors or arrays; also those of an ONNX explainer.

    Attributes:
        heatmap: float32 (B, H, W) in [0, 1]; zero where `finite` is false.
        raw: float32 (B, H, W), the same maps before normalising, not negative.
        embedding: float32 (B, D).
        cluster: int64 (B,), index of the nearest cluster.
        distance: float32 (B,), to its centroid: 1 - cosine, or Euclidean.
        typicality: float32 (B,) in [0, 1], share of the cluster's training images that lie at least as far out.
        anomaly: float32 (B,), above 1 where an image lies farther out than 99 % of the training images.
        finite: bool (B,), false where NaN or infinity in the image or the network left no map.
    """

    heatmap: Any
    raw: Any
    embedding: Any
    cluster: Any
    distance: Any
    typicality: Any
    anomaly: Any
    finite: Any


@dataclass(frozen=True, repr=False)
class Explanation:
    """Heat maps of an image batch, and the clusters that they are based on.

    Attributes:
        heatmaps: float32 (B, H, W) in [0, 1], at image size.
        raw: float32 (B, H, W), the same maps before normalising, not negative.
        notes: Warnings, a list per image.
        embeddings: float32 (B, D), or None for classifiers.
        clusters: int64 (B,) index of each image's cluster; None for methods without a weight database.
        distances: float32 (B,) from each embedding to its cluster's centroid: 1 - cosine, or Euclidean.
        typicality: float32 (B,) in [0, 1]: share of the cluster's training images at least as far from the centroid.
        anomaly: float32 (B,) not negative: the distance in units of that which 1 % of the training images exceed;
            above 1, an image is unlike them.
        neighbors: int64 (B,) index of the nearest exemplar, or None where there are none.
        preprocess: How the images were made, to draw on them.
    """

    heatmaps: NDArray[np.float32]
    raw: NDArray[np.float32]
    notes: list[list[str]]
    embeddings: NDArray[np.float32] | None = None
    clusters: NDArray[np.int64] | None = None
    distances: NDArray[np.float32] | None = None
    typicality: NDArray[np.float32] | None = None
    anomaly: NDArray[np.float32] | None = None
    neighbors: NDArray[np.int64] | None = None
    preprocess: Preprocess | None = None

    @classmethod
    def of_outputs(
        cls, outputs: Outputs, preprocess: Preprocess, neighbors: NDArray[np.int64] | None = None
    ) -> Explanation:
        """Make an explanation from the outputs of an explainer.

        Args:
            outputs: Arrays; the maps at image size.
            preprocess: How the images were made.
            neighbors: (B,) index of the nearest exemplar, where there are exemplars.

        Returns:
            The explanation, with a note for every image that is unlike the training images, flat or not finite.
        """
        notes = _notes(outputs.finite, outputs.heatmap)
        for own, finite, distance, anomaly in zip(
            notes, outputs.finite, outputs.distance, outputs.anomaly, strict=True
        ):
            if finite and anomaly > 1:
                own.insert(
                    0,
                    f"unlike the training images: {distance:.3f} from the nearest cluster's centre, 99 % of them lie "
                    f"within {distance / anomaly:.3f}",
                )
        return cls(
            outputs.heatmap,
            outputs.raw,
            notes,
            embeddings=outputs.embedding,
            clusters=outputs.cluster,
            distances=outputs.distance,
            typicality=outputs.typicality,
            anomaly=outputs.anomaly,
            neighbors=neighbors,
            preprocess=preprocess,
        )

    @classmethod
    def of(cls, raw: NDArray[np.float32], **attributes: Any) -> Explanation:
        """Normalise placed maps and note which of them are flat or not finite.

        Args:
            raw: float32 (B, H, W) at image size.
            attributes: The other attributes, as far as they are known.

        Returns:
            The explanation.
        """
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(raw).all(axis=(1, 2)))
        if not finite.all():
            raw = np.where(finite[:, None, None], raw, 0)
        heatmaps = normalize(raw)
        return cls(heatmaps, raw, _notes(finite, heatmaps), **attributes)

    def of_image(self, row: int) -> Self:
        """Take one image out of the batch.

        Args:
            row: Index of the image.

        Returns:
            The explanation of a batch of that image alone, which shares the arrays.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        parts: dict[str, Any] = {
            name: each[row : row + 1] for name, each in values.items() if isinstance(each, np.ndarray | list)
        }
        return replace(self, **parts)

    def on_picture(self, size: tuple[int, int]) -> Self:
        """Put the maps of one image back to their place in its picture, from which a centre crop was explained.

        Args:
            size: (height, width) of the picture.

        Returns:
            The explanation with maps of the whole picture, zero outside of the crop; itself if nothing was cropped.
        """
        if self.preprocess is None or self.preprocess.crop_pct is None:
            return self
        names = [name for name in ("heatmaps", "raw", "signed") if hasattr(self, name)]
        maps: dict[str, Any] = {name: self.preprocess.on_picture(getattr(self, name)[0], size)[None] for name in names}
        return replace(self, **maps)

    def typicality_in_words(self, index: int) -> str:
        """Describe how typical an image is of its cluster.

        Args:
            index: The image's, in this batch.

        Returns:
            "typical of its cluster" (half of the cluster's images lie at least as far out), "usual for its cluster" (a
            tenth), "at the edge of its cluster", or "unlike the training images"; empty if it is unknown.
        """
        if self.typicality is None or self.anomaly is None:
            return ""
        if self.anomaly[index] > 1:
            return "unlike the training images"
        least = {"typical of its cluster": 0.5, "usual for its cluster": 0.1}
        return next((w for w, share in least.items() if self.typicality[index] >= share), "at the edge of its cluster")

    def __len__(self) -> int:
        return len(self.heatmaps)

    def __repr__(self) -> str:
        clusters = "" if self.clusters is None else f", clusters {self.clusters.tolist()}"
        size = " x ".join(map(str, self.heatmaps.shape[1:]))
        return f"<{type(self).__name__} of {len(self)} images, {size} pixels{clusters}>"

    def overlay(self, images: Any, *, alpha: float = 0.5, colormap: str = "turbo") -> list[NDArray[np.uint8]]:
        """Draw the heat maps over the images.

        Args:
            images: The batch that was explained (B, 3, H, W), a torch tensor or array; or B pictures of any size,
                each uint8 (H', W', 3) or a Pillow image.
            alpha: Opacity of the heat map, in [0, 1].
            colormap: Name of a colormap of the cmap library, such as "turbo", "viridis" or "jet".

        Returns:
            B pictures, uint8 RGB, each of its image's size.

        Raises:
            DataError: If the number or kind of images does not fit.
        """
        from ..show.overlay import overlay

        pairs = self._on_pictures(images, self.heatmaps)
        return [overlay(picture, heatmap, alpha=alpha, colormap=colormap) for picture, heatmap in pairs]

    def boxes(self, threshold: float | None = None) -> list[list[Box]]:
        """Find boxes around the strong regions of the heat maps.

        Args:
            threshold: Minimum heat inside a box's region, in (0, 1]; if None, 0.05, `show.boxes.THRESHOLD`.

        Returns:
            For each image its boxes in pixels of the heat map, one per connected region, the largest first.
        """
        from ..show.boxes import THRESHOLD, find_boxes

        return [find_boxes(heatmap, threshold or THRESHOLD) for heatmap in self.heatmaps]

    def plot(self, images: Any = None, *, alpha: float = 0.5, colormap: str = "turbo") -> NDArray[np.object_]:
        """Draw the heat maps with matplotlib.

        Args:
            images: As for `overlay`, to lay them over; the maps alone if None.
            alpha: Opacity of the heat map over an image, in [0, 1].
            colormap: Name of a colormap of the cmap library.

        Returns:
            (B,) matplotlib axes.

        Raises:
            DataError: If the number or kind of images does not fit.
            MissingDependencyError: If matplotlib is not installed.
        """
        from ..show.notebook import plot

        return plot(self, images, alpha=alpha, colormap=colormap)

    def _repr_html_(self) -> str:
        from ..show.notebook import explanation_html

        return explanation_html(self)

    def _repr_png_(self) -> bytes | None:
        from ..show.notebook import explanation_png

        return explanation_png(self)

    def _on_pictures(
        self, images: Any, maps: NDArray[np.float32]
    ) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        """Pair each picture with its map, put back to its place where a picture is larger than what was explained."""
        pictures = self._pictures(images)
        if len(pictures) != len(self):
            raise DataError(f"this explanation is of {len(self)} images, got {len(pictures)}; give the same batch")
        preprocess = self.preprocess or Preprocess()
        return [
            (picture, own if picture.shape[:2] == own.shape else preprocess.on_picture(own, picture.shape[:2]))
            for picture, own in zip(pictures, maps, strict=True)
        ]

    def _pictures(self, images: Any) -> Sequence[NDArray[np.uint8]]:
        if hasattr(images, "detach"):
            images = images.detach().cpu().float().numpy()
        if isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype != np.uint8:
            return list((self.preprocess or Preprocess()).restore(images))
        pictures = [np.asarray(image) for image in images]
        for index, picture in enumerate(pictures):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise DataError(
                    f"image {index} is {picture.dtype} {picture.shape}, expected the explained batch (B, 3, H, W) "
                    "or RGB pictures uint8 (H, W, 3)"
                )
        return pictures


def _notes(finite: NDArray[np.bool_], heatmaps: NDArray[np.float32]) -> list[list[str]]:
    lit: NDArray[np.bool_] = np.asarray(heatmaps.max(axis=(1, 2)) > 0)
    return [[NOT_FINITE] if not ok else [] if heat else [FLAT] for ok, heat in zip(finite, lit, strict=True)]


class AnyExplainer(Protocol):
    """An object that explains images, with torch or another runtime."""

    @property
    def preprocess(self) -> Preprocess:
        """From a picture to an input of the size to explain it in."""
        ...

    def __call__(self, images: Any) -> Explanation:
        """Explain an image batch, float32 (B, 3, H, W)."""
        ...

    def labels_of(self, cluster: int) -> list[tuple[str, int]]:
        """List the most frequent labels of a cluster, with their counts."""
        ...

    def exemplar(self, index: int) -> tuple[str, str | None]:
        """Name a training image, and its label if it is known."""
        ...
