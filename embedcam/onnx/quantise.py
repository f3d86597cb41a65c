"""Quantise the convolutions of an ONNX explainer to 8 bits, as far as its maps allow."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.loading import batches
from ..data.samples import Samples, input_files
from ..errors import DataError, MissingDependencyError, NetworkError
from ..utils.files import atomic_path, require_writable, temporary_folder
from ..utils.progress import track
from .explainer import OnnxExplainer, with_checksum
from .record import INPUT, KEY

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger("embedcam")

# Lowest mean correlation with the maps of the float file.
LEAST_CORRELATION = 0.98
# Images to calibrate on and as many others to compare on, and those of the latter that single layers are compared on.
_IMAGES, _TRIED = 64, 16
_ACTIVATIONS = ("Clip", "Relu")


@dataclass(frozen=True)
class QuantiseReport:
    """A quantised file, and its agreement with the float file on images that it was not calibrated on.

    Attributes:
        path: The file.
        size: Of the file in bytes.
        float_size: Of the float file in bytes.
        layers: Number of convolutions.
        float_layers: Convolutions that stay in float.
        images: Number of compared images.
        embedding_cosine: Mean cosine of the two embeddings of an image.
        map_correlation: Mean correlation of the two heat maps of an image.
        same_cluster: Share of images with the same cluster.
        pointing: Share of images whose strongest pixel is on the object: float, 8 bits. None without masks.
        recall_at_1: Share of images whose nearest other image has the same label, likewise. None without labels.
    """

    path: Path
    size: int
    float_size: int
    layers: int
    float_layers: tuple[str, ...]
    images: int
    embedding_cosine: float
    map_correlation: float
    same_cluster: float
    pointing: tuple[float, float] | None
    recall_at_1: tuple[float, float] | None


def quantise(source: str | Path, samples: Samples, path: str | Path) -> QuantiseReport:
    """Write an 8-bit version of an ONNX explainer, with convolutions calibrated on images.

    If its maps differ too much, each convolution is quantised alone, and those that change the maps most stay in float.

    Args:
        source: A file that `export` wrote, of fixed height and width.
        samples: At least two typical images; half of them are used to calibrate, the others to compare. Masks and
            labels are optional and used for the report.
        path: The file.

    Returns:
        A description of the file.

    Raises:
        DataError: If fewer than two images can be read.
        NetworkError: If the file cannot be used, or its maps differ too much with any layer in 8 bits.
        MissingDependencyError: If onnx is not installed.
        OutputError: If the file cannot be written.
    """
    require_writable(path, [source, *input_files(samples)])
    given = OnnxExplainer(source)
    if given.record.float_layers is not None:
        raise NetworkError(f"{source} is in 8 bits already; give the float file")
    kept, images = _read(samples, given)
    calibrating, comparing = images[::2], images[1::2]
    expected = given(comparing).heatmaps
    with temporary_folder() as folder:
        work = _Work(Path(source), folder, given, calibrating)
        left: list[str] = []
        tried = work.heatmaps(work.layers, comparing)
        if _correlation(tried, expected) < LEAST_CORRELATION:
            ranked = work.ranked(comparing[:_TRIED], expected[:_TRIED])
            step = max(1, len(ranked) // 8)
            while _correlation(tried, expected) < LEAST_CORRELATION:
                left = ranked[: len(left) + step]
                if len(left) == len(ranked):
                    raise NetworkError(
                        f"the maps of {source} correlate less than {LEAST_CORRELATION} with any layers in 8 bits; "
                        "use the float file, or give data that is more like the training images"
                    )
                tried = work.heatmaps([name for name in work.layers if name not in left], comparing)
        with atomic_path(path) as temporary:
            work.finish(temporary, left)
            agreement = _compare(given, OnnxExplainer(temporary), comparing, samples.subset(kept[1::2]))
    size, float_size = Path(path).stat().st_size, Path(source).stat().st_size
    return QuantiseReport(Path(path), size, float_size, len(work.layers), tuple(sorted(left)), **agreement)


class _Work:
    """The float model, its convolutions, and the images to calibrate on."""

    def __init__(self, source: Path, folder: Path, given: OnnxExplainer, images: NDArray[np.float32]) -> None:
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f'writing an ONNX file needs {error.name}; install it with `pip install "embedcam[export]"`'
            ) from error
        self._source, self._target, self._given = source, folder / "small.onnx", given
        self._images = images
        nodes = onnx.load(source).graph.node
        after = {node.input[0]: node.name for node in nodes if node.op_type in _ACTIVATIONS}
        # Each convolution with the activation after it, if there is one.
        self._nodes = {node.name: [node.name, after.get(node.output[0])] for node in nodes if node.op_type == "Conv"}
        self.layers = list(self._nodes)
        if not self.layers:
            raise NetworkError(f"{source} has no convolutions, and only those are quantised; use the float file")

    def _write(self, layers: Sequence[str], images: NDArray[np.float32]) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        inputs = iter({INPUT: self._given.prepared(image[None])} for image in images)

        class Reader:
            def get_next(self) -> dict[str, NDArray[np.float32]] | None:
                return next(inputs, None)

        with _quiet():
            quantize_static(
                self._source,
                self._target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                # Quantised with its activation, a convolution's result is rounded once instead of twice.
                op_types_to_quantize=["Conv", *_ACTIVATIONS],
                nodes_to_quantize=[name for layer in layers for name in self._nodes[layer] if name is not None],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibration_providers=["CPUExecutionProvider"],
            )

    def _bytes(self, float_layers: Sequence[str]) -> bytes:
        import onnx

        model = onnx.load(self._target)
        del model.metadata_props[:]
        record = replace(self._given.record, float_layers=tuple(sorted(float_layers)))
        model.metadata_props.add(key=KEY, value=record.to_json())
        model.producer_name, model.ir_version = "embedcam", lowest_ir_version(model)
        content: bytes = model.SerializeToString(deterministic=True)
        return with_checksum(content)

    def heatmaps(
        self, layers: Sequence[str], images: NDArray[np.float32], calibrate: int | None = None
    ) -> NDArray[np.float32]:
        """Explain images with only these layers in 8 bits."""
        self._write(layers, self._images[:calibrate])
        path = self._target.with_name("tried.onnx")
        path.write_bytes(self._bytes([]))
        return OnnxExplainer(path)(images).heatmaps

    def ranked(self, images: NDArray[np.float32], expected: NDArray[np.float32]) -> list[str]:
        """Sort the layers by how much each of them alone changes the maps, the largest change first."""
        correlations = {
            name: _correlation(self.heatmaps([name], images, _TRIED), expected)
            for name in track(self.layers, "trying layers in 8 bits", len(self.layers))
        }
        return sorted(self.layers, key=correlations.__getitem__)

    def finish(self, path: Path, float_layers: Sequence[str]) -> None:
        """Write the file with all but these layers in 8 bits."""
        self._write([name for name in self.layers if name not in float_layers], self._images)
        path.write_bytes(self._bytes(float_layers))


def lowest_ir_version(model: onnx.ModelProto) -> int:
    """Find the lowest IR version that has the operators of a model; older runtimes read no higher ones.

    Args:
        model: The model.

    Returns:
        The version.
    """
    from onnx.helper import find_min_ir_version_for

    return int(find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress onnxruntime's warnings, which use the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _read(samples: Samples, given: OnnxExplainer) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Read evenly spread images of a data set."""
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(2 * _IMAGES, len(samples))).round().astype(np.int64))
    loaded = list(batches(samples.subset(chosen), given.preprocess, 16))
    kept = np.concatenate([chosen[indices] for indices, _ in loaded]) if loaded else chosen[:0]
    if len(kept) < 2:
        raise DataError(f"calibrating needs at least two images, {len(kept)} can be read; give more data")
    return kept, np.concatenate([images for _, images in loaded])


def _mask(samples: Samples, index: int) -> NDArray[np.bool_] | None:
    try:
        return samples.mask(index)
    except DataError as error:
        logger.warning("mask of %s left out: %s", samples.ids[index], error)
        return None


def _compare(
    given: OnnxExplainer, small: OnnxExplainer, images: NDArray[np.float32], samples: Samples
) -> dict[str, Any]:
    ours, theirs = given(images), small(images)
    assert ours.embeddings is not None
    assert theirs.embeddings is not None
    masks = {i: mask for i in range(len(samples)) if samples.has_masks and (mask := _mask(samples, i)) is not None}
    pointing = recall = None
    if masks:
        resized = {i: given.preprocess.mask(mask) for i, mask in masks.items()}
        pointing = (_pointing(ours.heatmaps, resized), _pointing(theirs.heatmaps, resized))
    if samples.labels is not None:
        recall = (_recall(ours.embeddings, samples.labels), _recall(theirs.embeddings, samples.labels))
    lengths = np.linalg.norm(ours.embeddings, axis=1) * np.linalg.norm(theirs.embeddings, axis=1)
    cosine = (ours.embeddings * theirs.embeddings).sum(axis=1) / np.maximum(lengths, 1e-12)
    return {
        "images": len(images),
        "embedding_cosine": float(cosine.mean()),
        "map_correlation": _correlation(theirs.heatmaps, ours.heatmaps),
        "same_cluster": float(np.mean(ours.clusters == theirs.clusters)),
        "pointing": pointing,
        "recall_at_1": recall,
    }


def _correlation(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return the mean correlation of maps; 1 for two flat maps, 0 if one is flat."""
    correlations = []
    for pair in zip(ours, theirs, strict=True):
        first, second = (heat.ravel().astype(np.float64) - float(heat.mean(dtype=np.float64)) for heat in pair)
        lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
        correlations.append(float(first @ second) / lengths if lengths else float(not first.any() and not second.any()))
    return float(np.mean(correlations))


def _pointing(heatmaps: NDArray[np.float32], masks: dict[int, NDArray[np.bool_]]) -> float:
    """Return the share of images whose strongest pixel is on the object; ties count by their share on it."""
    return float(np.mean([mask[heatmaps[i] == heatmaps[i].max()].mean() for i, mask in masks.items()]))


def _recall(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    distances = np.square(embeddings[:, None] - embeddings[None]).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.mean(labels[distances.argmin(axis=1)] == labels))
