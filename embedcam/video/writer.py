"""Write a video file, with PyAV."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import OutputError
from ..utils.files import atomic_path, require_writable
from ..utils.locks import locked

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer
    from av.video.stream import VideoStream

# Formats that can be written: they store a timestamp per frame.
WRITTEN = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
# x264 uses the first two, VP9 the others; each ignores the rest. Chosen for speed, for live video.
_ENCODING = {"preset": "superfast", "crf": "20", "deadline": "realtime", "cpu-used": "8"}
_BT601 = 6  # the matrix that RGB is converted with; players assume BT.709 for large frames if the file does not say


class VideoWriter:
    """Writes frames to a video file; made by `write_video`."""

    def __init__(self, path: Path, container: OutputContainer, time_base: Fraction, rate: Fraction) -> None:
        self._path, self._container, self._time_base = path, container, time_base
        stream = container.add_stream(container.default_video_codec, rate=rate, options=_ENCODING)
        self._stream = cast("VideoStream", stream)
        self._stream.codec_context.time_base = time_base

    def write(self, picture: NDArray[np.uint8], pts: int) -> None:
        """Write one frame.

        Args:
            picture: uint8 (H, W, 3); padded to the aspect and scaled to the size of the first one.
            pts: Timestamp, greater than that of the previous frame.

        Raises:
            OutputError: If it cannot be written.
        """
        import av

        # yuv420p stores one colour per 2 x 2 pixels, so sides must be even.
        even = np.pad(picture, [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)], mode="edge")
        context = self._stream.codec_context
        if context.is_open and even.shape[:2] != (context.height, context.width):
            even = np.asarray(ImageOps.pad(Image.fromarray(picture), (context.width, context.height)))
        if not context.is_open:
            context.height, context.width = even.shape[:2]
            context.pix_fmt, context.colorspace, context.color_range = "yuv420p", _BT601, 1
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame.pts, frame.time_base = pts, self._time_base
        self._mux(frame)

    def finish(self) -> None:
        """Flush the encoder.

        Raises:
            OutputError: If it cannot be written.
        """
        self._mux(None)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        import av

        try:
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; choose another path or free some space"
            ) from error


@contextlib.contextmanager
def write_video(path: str | Path, time_base: Fraction, rate: Fraction = Fraction(30)) -> Iterator[VideoWriter]:
    """Write a video file atomically: it appears under its name once it is complete.

    Args:
        path: Output file; its suffix selects the format.
        time_base: Unit of the timestamps, in seconds.
        rate: Approximate frames per second.

    Yields:
        The writer.

    Raises:
        OutputError: If the format is unknown, the file cannot be written, or another process is writing it.
    """
    import av

    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise OutputError(f"cannot write {path}: unknown video format; use one of {', '.join(WRITTEN)}")
    require_writable(path)
    with locked(path), atomic_path(path) as temporary, av.open(f"file:{temporary}", "w") as container:
        writer = VideoWriter(path, container, time_base, rate)
        yield writer
        writer.finish()
