"""Computes the responses: pictures in, schemas out. No HTTP, and no picture is stored."""

from __future__ import annotations

import io
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import EmbedcamError, NetworkError
from ..explain.answer import Answer
from ..explain.explanation import AnyExplainer, Explanation
from ..explain.json_lines import explanation_line
from ..onnx.explainer import OnnxExplainer
from ..show import Box, draw_boxes
from ..show.drawing import bounded, scale_box
from ..show.overlay import overlay
from . import schemas
from .batches import Batches
from .limits import Limits
from .schemas import (
    Channel,
    CompareResponse,
    ExplainOptions,
    ExplainResponse,
    Levels,
    base64_text,
    encode_image,
)
from .training_images import TrainingImages
from .uploads import Upload

if TYPE_CHECKING:
    from ..explain import Explainer
    from ..gallery import Gallery
    from .inspector import NetworkInspector

_LONGEST_SIDE = 1600  # of overlays, in pixels
_THRESHOLDS = tuple(step / 20 for step in range(1, 20))
_NO_NETWORK = "an ONNX file has no network to inspect; start the server with --net and --db"


class Prepared(NamedTuple):
    """A picture that is ready to be explained.

    Attributes:
        name: File name of the upload.
        size: (height, width) of the picture.
        image: float32 (3, H, W), normalised.
        shown: uint8 (H', W', 3), the picture to draw on, or None if nothing is drawn.
        explainer: The explainer, which asks what the request asks.
    """

    name: str
    size: tuple[int, int]
    image: NDArray[np.float32]
    shown: NDArray[np.uint8] | None
    explainer: AnyExplainer

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The picture to draw on."""
        assert self.shown is not None
        return self.shown


class Service:
    """Explains and compares uploaded pictures with one explainer. Thread-safe.

    Args:
        explainer: A torch explainer, whose network is put into evaluation mode, or an ONNX explainer.
        limits: Limits of the server.
        data: SPEC of the data set that the weight database was built from, to show training images. None names them.
        gallery: An index that may have the training images too, or None.

    Attributes:
        training_images: The training images.

    Raises:
        DataError: If the data set cannot be read, or has none of the exemplars.
    """

    def __init__(
        self,
        explainer: Explainer | OnnxExplainer,
        limits: Limits,
        data: str | None = None,
        gallery: Gallery | None = None,
    ) -> None:
        self._explainer, self._limits = explainer, limits
        self._inspector: NetworkInspector | None = None
        database = None
        if not isinstance(explainer, OnnxExplainer):
            from .inspector import NetworkInspector

            database, self._inspector = explainer.database, NetworkInspector(explainer)
            explainer.net.eval()  # permanently, since threads share the network
        self._batches = Batches(limits.batch, limits.concurrency)
        self.training_images = TrainingImages(database, data, gallery)
        self._has_data = data is not None

    def info(self) -> dict[str, Any]:
        """Describe the explainer.

        Returns:
            Fields of `Info`.
        """
        if isinstance(self._explainer, OnnxExplainer):
            record = self._explainer.record.network | self._explainer.record.database
            facts = {name: str(value) for name, value in record.items()}
            about = record["architecture"], record["clusters"], record["images"]
        else:
            database = self._explainer.database
            facts = dict(database.facts())
            about = database.network.architecture, database.clusters, int(database.counts.sum())
        compare_hint = _NO_NETWORK if self._inspector is None else self._inspector.compare_hint
        return {
            "about": f"{about[0]}, {about[1]} clusters of {about[2]} training images",
            "facts": facts,
            "explain": True,
            "compare": not compare_hint,
            "compare_hint": compare_hint,
            "channels": self._inspector is not None,
            "thumbnails": self._has_data,
        }

    def prepare(self, upload: Upload, options: ExplainOptions) -> Prepared:
        """Decode a picture and prepare it for the network.

        Args:
            upload: The picture.
            options: Options of the response.

        Returns:
            What is left of it: the full picture is not kept.

        Raises:
            Refused: If the picture cannot be read, or is too large.
            EmbedcamError: If what is asked about is unknown, or the network cannot be asked.
        """
        picture = upload.picture(self._limits)
        drawn = options.format in ("overlay", "evidence") or not options.include.isdisjoint(("overlay", "picture"))
        return Prepared(
            upload.name,
            (picture.height, picture.width),
            self._explainer.preprocess(picture),
            bounded(picture, _LONGEST_SIDE) if drawn else None,
            self._asked(options),
        )

    def explain(self, prepared: Prepared) -> Future[Explanation]:
        """Explain a picture, together with those that wait at the same time.

        Args:
            prepared: The picture.

        Returns:
            Its explanation.
        """
        return self._batches.explain(prepared.explainer, prepared.image)

    def respond(self, prepared: Prepared, explanation: Explanation, options: ExplainOptions) -> ExplainResponse | bytes:
        """Draw and describe an explanation.

        Args:
            prepared: The picture.
            explanation: Its explanation.
            options: Options of the response.

        Returns:
            The response, or the bytes of the requested file.

        Raises:
            EmbedcamError: If there is no evidence, since nothing was asked.
        """
        explanation = explanation.on_picture(prepared.size)
        if options.format == "evidence":
            if not isinstance(explanation, Answer):
                raise EmbedcamError("evidence is for or against something; ask towards or versus a label or a cluster")
            return encode_image(explanation.signed_overlay([prepared.pixels])[0], "PNG")
        if options.format == "npz":
            return _npz(explanation)
        if options.format == "heatmap":
            return _heatmap_file(explanation)
        if options.format == "overlay":
            return _overlay_file(prepared, explanation, options)
        return self._response(prepared, explanation, options)

    def close(self) -> None:
        """Shut down the threads that explain."""
        self._batches.close()

    def _asked(self, options: ExplainOptions) -> Explainer | OnnxExplainer:
        if options.towards is None and options.versus is None:
            return self._explainer
        if isinstance(self._explainer, OnnxExplainer):
            raise NetworkError("an ONNX file answers no questions; start the server with --net and --db")
        from ..explain.references import References

        references = References(self._explainer.net, self._explainer.database, self._explainer.preprocess)
        sides = (None if text is None else references.named(text) for text in (options.towards, options.versus))
        towards, versus = sides
        return self._explainer.asking(towards=towards, versus=versus)

    def _response(self, prepared: Prepared, explanation: Explanation, options: ExplainOptions) -> ExplainResponse:
        raw, size = explanation.raw[0], prepared.size
        fields: dict[str, Any] = {
            **explanation_line(explanation, 0, prepared.name, self._explainer),
            "width": size[1],
            "height": size[0],
            "looks_like": self._looks_like(explanation),
            "boxes": _boxes(explanation, options.threshold, size),
            "raw_range": (float(raw.min()), float(raw.max())),
        }
        if "levels" in options.include:
            fields["levels"] = Levels.of(explanation.heatmaps[0])
            fields["boxes_at"] = {f"{t:g}": _boxes(explanation, t, size) for t in _THRESHOLDS}
        if "heatmap" in options.include:
            fields["heatmap"] = base64_text(_heatmap_file(explanation))
        if "overlay" in options.include:
            fields["overlay"] = base64_text(_overlay_file(prepared, explanation, options))
        if "picture" in options.include:
            fields["picture"] = base64_text(encode_image(prepared.pixels, "JPEG"))
        return ExplainResponse(**fields)

    def _looks_like(self, explanation: Explanation) -> list[schemas.TrainingImage]:
        if explanation.embeddings is None or explanation.clusters is None:
            return []
        return self.training_images.near(explanation.embeddings[0], int(explanation.clusters[0]))

    def compare(self, image: Upload, other: Upload) -> CompareResponse:
        """Compare two pictures.

        Args:
            image: A picture.
            other: Another picture.

        Returns:
            The comparison.

        Raises:
            Refused: If a picture cannot be read, or is too large.
            NetworkError: If there is no network, or it cannot compare pictures.
        """
        if self._inspector is None:
            raise NetworkError(_NO_NETWORK)
        pictures = [upload.picture(self._limits) for upload in (image, other)]
        return self._inspector.compare((image.name, other.name), *pictures)

    def channels(self, upload: Upload) -> list[Channel]:
        """List the strongest channels of a picture.

        Args:
            upload: The picture.

        Returns:
            The channels, strongest first.

        Raises:
            Refused: If the picture cannot be read, or is too large.
            NetworkError: If there is no network.
        """
        if self._inspector is None:
            raise NetworkError(_NO_NETWORK)
        return self._inspector.channels(upload.picture(self._limits))


def _boxes(explanation: Explanation, threshold: float, size: tuple[int, int]) -> list[schemas.Box]:
    return [schemas.Box(**vars(box)) for box in _scaled_boxes(explanation, threshold, size)]


def _scaled_boxes(explanation: Explanation, threshold: float, size: tuple[int, int]) -> list[Box]:
    """Boxes of the first heat map, in pixels of a picture of (height, width)."""
    return [scale_box(box, explanation.heatmaps.shape[1:], size) for box in explanation.boxes(threshold)[0]]


def _overlay_file(prepared: Prepared, explanation: Explanation, options: ExplainOptions) -> bytes:
    pixels = prepared.pixels
    drawn = overlay(pixels, explanation.heatmaps[0], alpha=options.alpha, colormap=options.colormap)
    if options.boxes:
        drawn = draw_boxes(drawn, _scaled_boxes(explanation, options.threshold, pixels.shape[:2]))
    return encode_image(drawn, "PNG")


def _heatmap_file(explanation: Explanation) -> bytes:
    return encode_image(np.rint(explanation.heatmaps[0] * 65535).astype(np.uint16), "PNG")


def _npz(explanation: Explanation) -> bytes:
    file = io.BytesIO()
    maps = {"heatmap": explanation.heatmaps[0], "raw": explanation.raw[0]}
    if isinstance(explanation, Answer):
        maps |= {"signed": explanation.signed[0], "contributions": explanation.contributions[0]}
    np.savez(file, **maps)
    return file.getvalue()
