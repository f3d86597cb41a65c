"""Explain images with one ONNX file: numpy, Pillow and onnxruntime, no torch and no weight database beside it."""

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
from .guard import look_through, require_outputs, require_signature
from .record import INPUT, KEY, OUTPUTS, OnnxRecord

if TYPE_CHECKING:
    import onnxruntime

# ONNX files are protocol buffers, which end at 2 GB.
LARGEST = 2**31 - 1

# A last entry of the model's metadata, as it lies in the file: the checksum of all before it. Any program that reads
# ONNX takes it for metadata; here it tells damage, which onnxruntime would not see in a weight, and foreign files.
_MARK = b"\x72\x53\x0a\x0fembedcam.sha256\x12\x40"
_TRAILER_LENGTH = len(_MARK) + 64


def with_checksum(model: bytes) -> bytes:
    """Append a checksum to an ONNX model in a way that leaves it one.

    Args:
        model: A serialised ModelProto.

    Returns:
        The same with one more metadata entry.
    """
    return model + _MARK + hashlib.sha256(model).hexdigest().encode()


class OnnxExplainer:
    """Weight transfer by an explainer that `embedcam export` wrote as one ONNX file.

    It gives what the torch `Explainer` gave that was exported, but for the nearest exemplars, which stay in the weight
    database. Threads may share one; processes each open their own.

    Args:
        path: The ONNX file.
        providers: Execution providers of onnxruntime, the preferred first; the processor alone if None.
        threads: Of one call; onnxruntime's own choice (all cores) if 0.

    Attributes:
        record: What the file says of itself: the network, the database, how it was made.
        preprocess: From a picture to an input of the size to explain it in.

    Raises:
        NetworkError: If the file is missing, damaged or of another program, or a provider is not to be had.
        MissingDependencyError: If onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None = None, threads: int = 0) -> None:
        path = Path(path)
        model = _read(path)
        try:
            look_through(model)
            self._session = _session(model, providers, threads)
            self.record = OnnxRecord.from_json(self._session.get_modelmeta().custom_metadata_map.get(KEY, ""))
            require_signature(self._session, self.record)
        except NetworkError as error:
            raise NetworkError(f"{path}: {error}; export it again with `embedcam export`") from error
        self.preprocess = self.record.preprocess

    @property
    def providers(self) -> list[str]:
        """The execution providers in use, the preferred first."""
        return list(self._session.get_providers())

    def __call__(self, images: NDArray[Any]) -> Explanation:
        """Explain images.

        Args:
            images: float32 (B, 3, H, W), normalised, or pictures uint8 (B, H, W, 3) of any size. A file of fixed height
                and width wants the size of `preprocess`.

        Returns:
            Heat maps (B, H, W) in [0, 1], and each image's embedding, cluster, distance, typicality, anomaly and notes.

        Raises:
            DataError: If the images do not fit.
            NetworkError: If the file gives something else than its record says.
        """
        inputs = self.prepared(images)
        size = self.preprocess.input_size if self.record.uint8_input else (inputs.shape[2], inputs.shape[3])
        # onnxruntime cannot multiply nothing.
        given = inputs if len(inputs) else np.zeros((1, *inputs.shape[1:]), inputs.dtype)
        try:
            outputs = self._session.run(list(OUTPUTS), {INPUT: given})
        except (
            Exception
        ) as error:  # of a type of onnxruntime's own, such as for a side that ends before the last stride
            raise DataError(
                f"onnxruntime cannot explain images {given.shape}: {' '.join(str(error).split())}; "
                "make them with the explainer's preprocess"
            ) from error
        require_outputs(dict(zip(OUTPUTS, outputs, strict=True)), len(given), size, self.record)
        explained = Outputs(*(output[: len(inputs)] for output in outputs))
        if self.record.heatmap == "map":
            raw = place(explained.raw, self._geometry(explained.raw, size), size)
            explained = explained._replace(raw=raw, heatmap=normalize(raw))
        return Explanation.of_outputs(explained, self.preprocess)

    def labels_of(self, cluster: int) -> list[tuple[str, int]]:
        """List the commonest labels of a cluster.

        Args:
            cluster: Its index.

        Returns:
            (name, count), the commonest first; empty without labels.
        """
        return list(self.record.labels[cluster]) if self.record.labels else []

    def exemplar(self, index: int) -> tuple[str, str | None]:
        """Refuse to name a training image: the file holds none.

        Args:
            index: Of a training image.

        Raises:
            DatabaseError: Always.
        """
        raise DatabaseError(
            f"an ONNX explainer holds no training images, so there is no number {index}; "
            "explain with the network and its weight database"
        )

    def _geometry(self, maps: NDArray[np.float32], size: tuple[int, int]) -> Geometry:
        return self.record.geometry or Geometry.stretch((maps.shape[1], maps.shape[2]), size)

    def prepared(self, images: NDArray[Any]) -> NDArray[Any]:
        """Bring images into the form that the file takes.

        Args:
            images: As for a call.

        Returns:
            float32 (B, 3, H, W), or uint8 (B, H, W, 3) for a file that takes pictures.

        Raises:
            DataError: If the images do not fit.
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
            wanted, got = (" x ".join(map(str, size)) for size in (self.preprocess.input_size, images.shape[2:]))
            raise DataError(
                f"this ONNX explainer takes images of {wanted} pixels, got {got}; make them with its preprocess, or "
                "export with a dynamic size"
            )
        return images


def _read(path: Path) -> bytes:
    """Read a file after making sure that `embedcam export` wrote it and that it is whole."""
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
    known = onnxruntime.get_available_providers()
    wanted = list(providers or ["CPUExecutionProvider"])
    if missing := [name for name in wanted if name not in known]:
        raise NetworkError(f"onnxruntime has no execution provider {missing[0]!r} here; use one of {', '.join(known)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # what it warns of is the exporter's affair
    try:
        # Of its own accord it would print what failed, and try once more on the processor.
        return onnxruntime.InferenceSession(model, options, providers=wanted, enable_fallback=0)
    except Exception as error:  # onnxruntime has a type of its own for every kind of damage
        raise NetworkError(f"onnxruntime cannot run it: {' '.join(str(error).split())}") from error
