"""Reading frames from a video file or a camera, and writing a video file, by PyAV."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ..data.images import MAX_PIXELS
from ..errors import DataError, MissingDependencyError, OutputError
from ..utils.files import atomic_path, require_writable
from ..utils.locks import locked

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger("embedcam")

T = TypeVar("T")

EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp")
# What can be written: files that keep every frame's own time.
WRITTEN = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
_CAMERA = re.compile(r"camera:(.+)")
# Each encoder takes what it knows: x264 the first two, VP9 the others. A live picture must not wait for them.
_ENCODING = {"preset": "superfast", "crf": "20", "deadline": "realtime", "cpu-used": "8"}
_SD_COLORS = 6  # ITU-R BT.601, in which RGB is converted; said in the file, or players take large frames for BT.709


def is_video(source: str | Path) -> bool:
    """Tell videos from images, by name.

    Args:
        source: What a user named.

    Returns:
        True for "camera:0" and the like, and for video files.
    """
    return bool(_CAMERA.fullmatch(str(source))) or Path(source).suffix.lower() in EXTENSIONS


@dataclass(frozen=True)
class Frame:
    """One frame, converted only when it is looked at.

    Attributes:
        pts: Its time, in units of the video's time base.
    """

    pts: int
    _frame: av.VideoFrame = field(repr=False)

    def picture(self) -> NDArray[np.uint8]:
        """Give the frame upright.

        Returns:
            uint8 (H, W, 3) RGB.
        """
        pixels = np.asarray(self._frame.to_ndarray(format="rgb24"), dtype=np.uint8)
        # Phones record as the sensor lies and note how far, counter-clockwise, to turn it.
        return np.ascontiguousarray(np.rot90(pixels, round(self._frame.rotation / 90)))


class Video:
    """An open video file or camera; made by `open_video`.

    Attributes:
        name: The file, or "camera:0".
        live: Whether frames come when they come: then only the newest is given.
        time_base: Unit of the frames' times, in seconds.
        rate: Frames a second, on average, as the file says; 30 if it does not.
        total: Number of frames; 0 if unknown.
        dropped: Frames of a camera that came while an earlier one was worked on.
    """

    def __init__(self, name: str, container: InputContainer, stream: VideoStream, *, live: bool) -> None:
        self.name, self.live, self.dropped = name, live, 0
        self.time_base = stream.time_base or Fraction(1, 1000)
        self.rate = stream.average_rate or Fraction(30)
        self.total = stream.frames
        self._container, self._stream = container, stream

    def frames(self) -> Generator[Frame, None, None]:
        """Read the frames.

        Yields:
            Every frame of a file; of a camera the newest, from time 0 on. Their times rise.

        Raises:
            DataError: If there is none, or the video is damaged.
        """
        return self._newest() if self.live else self._decoded()

    def _newest(self) -> Generator[Frame, None, None]:
        first: int | None = None
        with contextlib.closing(newest(self._decoded(), self)) as frames:
            for frame in frames:
                first = frame.pts if first is None else first
                yield replace(frame, pts=frame.pts - first)

    def _decoded(self) -> Generator[Frame, None, None]:
        import av

        count, last = 0, -1
        try:
            for frame in self._container.decode(self._stream):
                # Raw streams know no times, and broken files repeat them; none can be written so.
                pts = last + 1 if frame.pts is None else frame.pts
                last = max(pts, last + 1) if count else pts
                count += 1
                yield Frame(last, frame)
        except av.FFmpegError as error:
            mend = "connect it again" if self.live else "make the video again, or cut off the rest"
            raise DataError(
                f"{self.name} is damaged after {count} frames ({float(last * self.time_base):.1f} s): "
                f"{error.strerror}; {mend}"
            ) from error
        if count == 0:
            raise DataError(f"{self.name} holds no frame; give another video")
        if count < self.total:
            logger.warning("%s ends after %d of its %d frames: the rest is missing", self.name, count, self.total)


@contextlib.contextmanager
def open_video(source: str | Path) -> Iterator[Video]:
    """Open a video file or a camera.

    Args:
        source: A file; or "camera:0" for the first camera, on Windows "camera:" and its name.

    Yields:
        The video.

    Raises:
        DataError: If there is no such file or camera, the file is damaged, or has no video track.
        MissingDependencyError: If PyAV is not installed.
    """
    try:
        import av
        from av.stream import Disposition
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            'videos and cameras need PyAV; install it with `pip install "embedcam[video]"`'
        ) from error
    name = str(source)
    camera = _CAMERA.fullmatch(name)
    url, device = _camera(camera[1]) if camera else (name, None)
    try:
        container = av.open(url, "r", format=device)
    except OSError as error:
        if camera:
            known = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
            hint = f"; the cameras here are {known}" if sys.platform == "linux" else "; check that it is connected"
            raise DataError(f"cannot open {name} ({url}): {error.strerror}{hint}") from error
        raise DataError(f"cannot read {name}: {error.strerror}; check the path") from error
    except av.FFmpegError as error:
        raise DataError(f"{name} is damaged or no video: {error.strerror}; give another file") from error
    with container:
        tracks = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not tracks:
            raise DataError(f"{name} has no video track; give a file with pictures")
        if tracks[0].width * tracks[0].height > MAX_PIXELS:
            raise DataError(f"the frames of {name} are larger than {MAX_PIXELS:,} pixels; shrink them")
        tracks[0].thread_type = "AUTO"
        yield Video(name, container, tracks[0], live=bool(camera))


def newest(items: Iterable[T], video: Video) -> Generator[T, None, None]:
    """Take items as they come, in a thread, and give away only the newest: the others are dropped, not delayed.

    Args:
        items: What comes at its own pace.
        video: Counts what is dropped.

    Yields:
        The newest item that was not given away yet. An error of `items` is raised here.
    """
    change, waiting = threading.Condition(), list[T]()
    ended: list[BaseException | None] = []
    leaving = threading.Event()

    def take() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                with change:
                    video.dropped += len(waiting)
                    waiting[:] = [item]
                    change.notify()
                if leaving.is_set():
                    break
        except BaseException as raised:  # raised again where it is seen
            error = raised
        with change:
            ended.append(error)
            change.notify()

    thread = threading.Thread(target=take, name="embedcam-camera", daemon=True)
    thread.start()
    try:
        while True:
            with change:
                change.wait_for(lambda: waiting or ended)
                item = waiting.pop() if waiting else None
            if item is not None:
                yield item
            elif ended[0] is not None:
                raise ended[0]
            else:
                return
    finally:
        leaving.set()
        thread.join()


class VideoWriter:
    """Writes frames into a video file; made by `write_video`."""

    def __init__(self, path: Path, container: OutputContainer, time_base: Fraction, rate: Fraction) -> None:
        self._path, self._container, self._time_base = path, container, time_base
        stream = container.add_stream(container.default_video_codec, rate=rate, options=_ENCODING)
        self._stream = cast("VideoStream", stream)
        self._stream.codec_context.time_base = time_base

    def write(self, picture: NDArray[np.uint8], pts: int) -> None:
        """Write one frame.

        Args:
            picture: uint8 (H, W, 3); all of one size.
            pts: Its time, later than that of the frame before.

        Raises:
            OutputError: If it cannot be written.
        """
        import av

        # The colours of two by two pixels are stored as one.
        even = np.pad(picture, [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)], mode="edge")
        context = self._stream.codec_context
        if not context.is_open:
            context.height, context.width = even.shape[:2]
            context.pix_fmt, context.colorspace, context.color_range = "yuv420p", _SD_COLORS, 1
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame.pts, frame.time_base = pts, self._time_base
        self._mux(frame)

    def finish(self) -> None:
        """Write what the encoder still holds.

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
                f"cannot write {self._path}: {error.strerror}; choose another place or free some space"
            ) from error


@contextlib.contextmanager
def write_video(path: str | Path, time_base: Fraction, rate: Fraction = Fraction(30)) -> Iterator[VideoWriter]:
    """Write a video file, whole or not at all: it gets its name when it is finished.

    Args:
        path: Where to; its suffix chooses the format.
        time_base: Unit of the frames' times, in seconds.
        rate: About how many frames a second there are.

    Yields:
        What to write frames with.

    Raises:
        OutputError: If the file cannot be written, is being written by another process, or is of no known format.
    """
    import av

    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise OutputError(f"cannot write {path}: no video format; name a file that ends in {', '.join(WRITTEN)}")
    require_writable(path)
    with locked(path), atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        writer = VideoWriter(path, container, time_base, rate)
        yield writer
        writer.finish()


def _camera(name: str) -> tuple[str, str]:
    """Name a camera as the operating system does, and the kind of device that it is."""
    if sys.platform == "win32":
        return f"video={name}", "dshow"
    if sys.platform == "darwin":
        return f"{name}:none", "avfoundation"
    return f"/dev/video{name}", "v4l2"
