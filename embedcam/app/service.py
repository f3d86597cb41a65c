"""What the server works out: pictures in, answers out; no HTTP, and nothing is kept of a picture."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from PIL import Image

from ..batch.files import line_of
from ..errors import NetworkError
from ..explain.explanation import Explanation
from ..onnx.explainer import OnnxExplainer
from ..show import Box, colorize, draw_boxes
from ..show.drawing import bounded
from ..show.overlay import overlay
from . import answers
from .answers import Channel, Colormap, Compared, Explained, Info, Levels, Wanted, file_of, text
from .limits import Limits
from .training_images import TrainingImages
from .uploads import Upload

if TYPE_CHECKING:
    from ..explain import Explainer
    from .dissect import Dissector

# Overlays keep a picture's own pixels up to this side; more adds nothing to a map of a few cells.
_LONGEST_SIDE = 1600
_THRESHOLDS = tuple(step / 20 for step in range(1, 20))
_NO_NETWORK = "an ONNX file holds no network to take apart; start the server with --net and --db"


class Service:
    """Explains, compares and takes apart uploaded pictures with one explainer. Threads may share it.

    Args:
        explainer: What explains: by torch, whose network is put into evaluation mode, or by an ONNX file.
        limits: How large a picture may be.
        data: SPEC of the data set that the weight database was built from, to show its images; None to name them.

    Attributes:
        training_images: What a picture can look like.

    Raises:
        DataError: If the data set cannot be read, or holds none of the training images.
    """

    def __init__(self, explainer: Explainer | OnnxExplainer, limits: Limits, data: str | None = None) -> None:
        self._explainer, self._limits = explainer, limits
        self._dissector: Dissector | None = None
        database = None
        if not isinstance(explainer, OnnxExplainer):
            from .dissect import Dissector

            database, self._dissector = explainer.database, Dissector(explainer)
            explainer.net.eval()  # for good: what one thread put back, another would find changed
        self.training_images = TrainingImages(database, data)
        self._has_data = data is not None

    def info(self) -> Info:
        """Say what is explained with, and what can be asked.

        Returns:
            For a page.
        """
        if isinstance(self._explainer, OnnxExplainer):
            known = self._explainer.record.network | self._explainer.record.database
            facts = {name: str(value) for name, value in known.items()}
            about = known["architecture"], known["clusters"], known["images"]
        else:
            database = self._explainer.database
            facts = dict(database.facts())
            about = database.network.architecture, database.clusters, int(database.counts.sum())
        ramp = np.linspace(0, 1, 256)[None]
        cannot = _NO_NETWORK if self._dissector is None else self._dissector.cannot_compare
        return Info(
            about=f"{about[0]}, {about[1]} clusters of {about[2]} training images",
            facts=facts,
            compare=not cannot,
            compare_hint=cannot,
            channels=self._dissector is not None,
            thumbnails=self._has_data,
            upload=self._limits.upload,
            pixels=self._limits.pixels,
            colormaps={name: text(colorize(ramp, name).tobytes()) for name in get_args(Colormap)},
        )

    def explain(self, upload: Upload, wanted: Wanted) -> Explained | bytes:
        """Explain a picture.

        Args:
            upload: Its file.
            wanted: What the answer should hold.

        Returns:
            The answer, or the bytes of the file that is wanted.

        Raises:
            Refused: If the picture cannot be read, or is too large.
        """
        picture = upload.picture(self._limits)
        explanation = self._explainer(self._explainer.preprocess(picture)[None])
        if wanted.format == "npz":
            return _npz(explanation)
        if wanted.format == "heatmap":
            return _heatmap_file(explanation)
        if wanted.format == "overlay":
            return _overlay_file(picture, explanation, wanted)
        return self._explained(upload.name, picture, explanation, wanted)

    def _explained(self, name: str, picture: Image.Image, explanation: Explanation, wanted: Wanted) -> Explained:
        line = line_of(self._explainer, Path(name), explanation, 0)
        raw, size = explanation.raw[0], picture.size
        found: dict[str, Any] = {
            **line,
            "width": size[0],
            "height": size[1],
            "looks_like": self._looks_like(explanation),
            "boxes": _boxes(explanation, wanted.threshold, size),
            "raw_range": (float(raw.min()), float(raw.max())),
        }
        if "levels" in wanted.include:
            found["levels"] = Levels.of(explanation.heatmaps[0])
            found["boxes_at"] = {f"{t:g}": _boxes(explanation, t, size) for t in _THRESHOLDS}
        if "heatmap" in wanted.include:
            found["heatmap"] = text(_heatmap_file(explanation))
        # The last two, since `bounded` shrinks the picture itself.
        if "overlay" in wanted.include:
            found["overlay"] = text(_overlay_file(picture, explanation, wanted))
        if "picture" in wanted.include:
            found["picture"] = text(file_of(bounded(picture, _LONGEST_SIDE), "JPEG"))
        return Explained(**found)

    def _looks_like(self, explanation: Explanation) -> list[answers.LooksLike]:
        if explanation.embeddings is None or explanation.clusters is None:
            return []
        return self.training_images.near(explanation.embeddings[0], int(explanation.clusters[0]))

    def compare(self, image: Upload, other: Upload) -> Compared:
        """Say what two pictures share.

        Args:
            image: A picture's file.
            other: Another's.

        Returns:
            The answer.

        Raises:
            Refused: If a picture cannot be read, or is too large.
            NetworkError: If there is no network that can compare.
        """
        if self._dissector is None:
            raise NetworkError(_NO_NETWORK)
        inputs = [self._explainer.preprocess(upload.picture(self._limits)) for upload in (image, other)]
        return self._dissector.compare((image.name, other.name), *inputs)

    def channels(self, upload: Upload) -> list[Channel]:
        """Show the strongest channels of a picture.

        Args:
            upload: Its file.

        Returns:
            The strongest first.

        Raises:
            Refused: If the picture cannot be read, or is too large.
            NetworkError: If there is no network to look into.
        """
        if self._dissector is None:
            raise NetworkError(_NO_NETWORK)
        image = self._explainer.preprocess(upload.picture(self._limits))
        return self._dissector.channels(image)


def _boxes(explanation: Explanation, threshold: float, size: tuple[int, int]) -> list[answers.Box]:
    """Find boxes and give them in pixels of a picture of (width, height)."""
    return [answers.Box(**vars(box)) for box in _scaled(explanation, threshold, size)]


def _scaled(explanation: Explanation, threshold: float, size: tuple[int, int]) -> list[Box]:
    height, width = explanation.heatmaps.shape[1:]
    across, down = size[0] / width, size[1] / height
    return [
        replace(
            box,
            left=math.floor(box.left * across),
            top=math.floor(box.top * down),
            right=min(math.ceil(box.right * across), size[0]),
            bottom=min(math.ceil(box.bottom * down), size[1]),
        )
        for box in explanation.boxes(threshold)[0]
    ]


def _overlay_file(picture: Image.Image, explanation: Explanation, wanted: Wanted) -> bytes:
    pixels = bounded(picture, _LONGEST_SIDE)
    drawn = overlay(pixels, explanation.heatmaps[0], alpha=wanted.alpha, colormap=wanted.colormap)
    if wanted.boxes:
        drawn = draw_boxes(drawn, _scaled(explanation, wanted.threshold, picture.size))
    return file_of(drawn, "PNG")


def _heatmap_file(explanation: Explanation) -> bytes:
    return file_of(np.rint(explanation.heatmaps[0] * 65535).astype(np.uint16), "PNG")


def _npz(explanation: Explanation) -> bytes:
    file = io.BytesIO()
    np.savez(file, heatmap=explanation.heatmaps[0], raw=explanation.raw[0])
    return file.getvalue()
