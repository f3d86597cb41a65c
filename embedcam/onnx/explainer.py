"""Explain images with one ONNX file, which needs numpy, Pillow and onnxruntime only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatabaseError, DataError, MissingDependencyError, NetworkError
from ..explain.explanation import Explanation, Outputs
from ..explain.maps import normalize, place
from ..nets.geometry import Geometry
from .guard import require_outputs, require_signature, validate_model
from .record import INPUT, KEY, OUTPUTS, OnnxRecord

if TYPE_CHECKING:
    import onnxruntime

# Protocol buffers have at most 2 GB.
LARGEST = 2**31 - 1

# The last metadata entry of the model, as bytes of the file: the checksum of everything before it. It shows damage,
# which onnxruntime does not notice in a weight, and files of other programs.
_MARK = b"\x72\x53\x0a\x0fembedcam.sha256\x12\x40"
_TRAILER_LENGTH = len(_MARK) + 64


def with_checksum(model: bytes) -> bytes:
    """Append a checksum to an ONNX model, as a metadata entry.

    Args:
        model: A serialised ModelProto.

    Returns:
        A serialised ModelProto.
    """
    return model + _MARK + hashlib.sha256(model).hexdigest().encode()


class OnnxExplainer:
    """Explain images by an ONNX file that `embedcam export` wrote.

    The results are those of the exported `Explainer`, without nearest exemplars, which stay in the weight database.
    Threads may share an object; each process opens its own.

    Args:
        path: The ONNX file.
        providers: Execution providers of onnxruntime, in order of preference; the CPU if None.
        threads: Threads of one call; 0 is onnxruntime's default, all cores.

    Attributes:
        record: Metadata of the file: the network, the database, and the options of the export.
        preprocess: From a picture to an input.

    Raises:
        NetworkError: If the file is missing, damaged or of another program, or a provider is not available.
        MissingDependencyError: If onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None = None, threads: int = 0) -> None:
        path = Path(path)
        model = _read(path)
        try:
            validate_model(model)
            self._session = _session(model, providers, threads)
            self.record = OnnxRecord.from_json(self._session.get_modelmeta().custom_metadata_map.get(KEY, ""))
            require_signature(self._session, self.record)
        except NetworkError as error:
            raise NetworkError(f"{path}: {error}; export it again with `embedcam export`") from error
        self.preprocess = self.record.preprocess

    @property
    def providers(self) -> list[str]:
        """The execution providers in use, in order of preference."""
        return list(self._session.get_providers())

    def __call__(self, images: NDArray[Any]) -> Explanation:
        """Explain images.

        Args:
            images: float32 (B, 3, H, W), normalised, or pictures uint8 (B, H, W, 3) of any size. A file of fixed height
                and width needs the size of `preprocess`.

        Returns:
            Heat maps (B, H, W) in [0, 1], and each image's embedding, cluster, distance, typicality, anomaly and notes.

        Raises:
            DataError: If the images have another shape or type.
            NetworkError: If the outputs contradict the file's record.
        """
        inputs = self.prepared(images)
        size = self.preprocess.input_size if self.record.uint8_input else (inputs.shape[2], inputs.shape[3])
        # onnxruntime cannot multiply empty matrices.
        given = inputs if len(inputs) else np.zeros((1, *inputs.shape[1:]), inputs.dtype)
        try:
            outputs = self._session.run(list(OUTPUTS), {INPUT: given})
        except Exception as error:  # onnxruntime has its own types, for example for a side that is too short
            raise DataError(
                f"onnxruntime cannot explain images {given.shape}: {' '.join(str(error).split())}; "
                "make them with the explainer's preprocess"
            ) from error
        require_outputs(dict(zip(OUTPUTS, outputs, strict=True)), len(given), size, self.record)
        explained = Outputs(*(output[: len(inputs)] for output in outputs))
        if self.record.heatmap == "map":
            geometry = self.record.geometry or Geometry.stretch(explained.raw.shape[1:], size)
            raw = place(explained.raw, geometry, size)
            explained = explained._replace(raw=raw, heatmap=normalize(raw))
        return Explanation.of_outputs(explained, self.preprocess)

    def labels_of(self, cluster: int) -> list[tuple[str, int]]:
        """List the most frequent labels of a cluster.

        Args:
            cluster: Its index.

        Returns:
            (name, count), the most frequent first; empty without labels.
        """
        return list(self.record.labels[cluster]) if self.record.labels else []

    def exemplar(self, index: int) -> tuple[str, str | None]:
        """Raise an error, since the file contains no training images.

        Args:
            index: Of a training image.

        Raises:
            DatabaseError: Always.
        """
        raise DatabaseError(
            f"an ONNX explainer holds no training images, so there is no number {index}; "
            "explain with the network and its weight database"
        )

    def prepared(self, images: NDArray[Any]) -> NDArray[Any]:
        """Convert images to the input of the file.

        Args:
            images: As for a call.

        Returns:
            float32 (B, 3, H, W), or uint8 (B, H, W, 3) for a file with such an input.

        Raises:
            DataError: If the images have another shape or type.
        """
        images = np.asarray(images)
        pictures = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
        if not pictures and (images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != 3):
            raise DataError(
                f"expected images float32 (B, 3, H, W), normalised, or uint8 (B, H, W, 3), got {images.dtype} "
                f"{images.shape}; make them with the explainer's preprocess"
            )
        if self.record.uint8_input:
            return images if pictures else self.preprocess.restore(images)
        images = self.preprocess.batch(images)
        if not self.record.dynamic and images.shape[2:] != self.preprocess.input_size:
            expected, got = (" x ".join(map(str, size)) for size in (self.preprocess.input_size, images.shape[2:]))
            raise DataError(
                f"this ONNX explainer takes images of {expected} pixels, got {got}; make them with its preprocess, or "
                "export with a dynamic size"
            )
        return images


def _read(path: Path) -> bytes:
    """Read a file and check that `embedcam export` wrote it and that it is complete."""
    if not path.is_file():
        raise NetworkError(f"no ONNX explainer {path}; make one with `embedcam export`")
    if path.stat().st_size > LARGEST:
        raise NetworkError(f"{path} is larger than 2 GB, which no ONNX explainer is; give one of `embedcam export`")
    content = path.read_bytes()
    model, trailer = content[:-_TRAILER_LENGTH], content[-_TRAILER_LENGTH:]
    if not trailer.startswith(_MARK):
        raise NetworkError(
            f"{path} is not an ONNX explainer of embedcam, or its end is missing; copy it again, or make one with "
            "`embedcam export`"
        )
    if with_checksum(model) != content:
        raise NetworkError(
            f"the checksum of {path} does not match its content: it is damaged, or was changed by another program; "
            "copy it again, or make one with `embedcam export`"
        )
    return model


def _session(model: bytes, providers: Sequence[str] | None, threads: int) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            'explaining with an ONNX file needs onnxruntime; install it with `pip install "embedcam[onnx]"`'
        ) from error
    available = onnxruntime.get_available_providers()
    chosen = list(providers or ["CPUExecutionProvider"])
    if missing := [name for name in chosen if name not in available]:
        raise NetworkError(
            f"onnxruntime has no execution provider {missing[0]!r} here; use one of {', '.join(available)}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # its warnings concern the exporter
    try:
        # The fallback would print the failure and try again on the CPU.
        return onnxruntime.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    except Exception as error:  # onnxruntime has a type for each kind of damage
        raise NetworkError(f"onnxruntime cannot run it: {' '.join(str(error).split())}") from error
