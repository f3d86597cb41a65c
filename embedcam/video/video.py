"""Read frames from a video file or a camera, with PyAV."""

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
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..data.images import MAX_PIXELS
from ..errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger("embedcam")

T = TypeVar("T")

EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2"),
    *(".ogv", ".ogg", ".ogm", ".mpg", ".mpeg", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".dv", ".y4m"),
    *(".mjpg", ".mjpeg", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".nut", ".rm", ".rmvb"),
)
_CAMERA = re.compile(r"camera:(.+)")
# AVFMT_TS_DISCONT: the timestamps of a format may jump, as in MPEG-TS. A longer gap, in seconds, is such a jump.
_TS_DISCONT, _LONGEST_GAP = 0x0200, 10


def is_video(source: str | Path) -> bool:
    """Whether an input is a video or camera, judged by its name.

    Args:
        source: The input.

    Returns:
        True for cameras such as "camera:0" and for files with a video extension.
    """
    path = Path(source)
    return path.suffix.lower() in EXTENSIONS or bool(_CAMERA.fullmatch(str(source)) and not path.exists())


@dataclass(frozen=True)
class Frame:
    """A decoded frame, converted to RGB on request.

    Attributes:
        pts: Presentation timestamp, in units of the video's time base.
    """

    pts: int
    _frame: av.VideoFrame = field(repr=False)
    _aspect: Fraction = field(repr=False)

    def picture(self) -> NDArray[np.uint8]:
        """Convert the frame to an upright RGB picture with square pixels.

        Returns:
            uint8 (H, W, 3) RGB.
        """
        width, height = _square(self._frame.width, self._frame.height, self._aspect)
        pixels = np.asarray(self._frame.to_ndarray(format="rgb24", width=width, height=height), dtype=np.uint8)
        # Phones store frames in sensor orientation with a counter-clockwise rotation.
        return np.ascontiguousarray(np.rot90(pixels, round(self._frame.rotation / 90)))


class Timeline:
    """Maps the timestamps of a file to timestamps that start at 0 and increase strictly.

    Missing, repeated and jumping timestamps, as in joined transport streams, continue evenly.

    Args:
        step: Duration of a frame, in the unit of the timestamps.
        longest: Longest gap between two frames that is kept; None keeps all gaps.
    """

    def __init__(self, step: int, longest: int | None) -> None:
        self._step, self._longest, self._shift, self._gap = step, longest, 0, step
        self.last: int | None = None

    def __call__(self, pts: int | None) -> int:
        """Map the next timestamp.

        Args:
            pts: Timestamp in the file, or None if it has none.

        Returns:
            The new timestamp, in the same unit.
        """
        if self.last is None:
            self.last, self._shift = 0, -(pts or 0)
            return 0
        gap = self._step if pts is None else pts + self._shift - self.last
        if pts is not None and (gap < -self._step or (self._longest is not None and gap > self._longest)):
            gap = self._gap
            self._shift = self.last + gap - pts
        elif gap <= 0:
            gap = self._step
        else:
            self._gap = gap
        self.last += gap
        return self.last


class Video:
    """An open video file or camera; made by `open_video`.

    Attributes:
        name: The file, or "camera:0".
        live: Whether this is a camera; `frames` then yields only the newest frame.
        time_base: Unit of the timestamps, in seconds.
        rate: Average frames per second as the file says; 30 if it does not.
        total: Number of frames; 0 if unknown.
        dropped: Camera frames skipped because a newer one had arrived.
    """

    def __init__(self, name: str, container: InputContainer, stream: VideoStream, *, live: bool) -> None:
        self.name, self.live, self.dropped = name, live, 0
        self.time_base = stream.time_base or Fraction(1, 1000)
        self.rate = stream.average_rate or Fraction(30)
        self.total = stream.frames
        self._container, self._stream = container, stream
        self._aspect = stream.sample_aspect_ratio or Fraction(1)

    def frames(self) -> Generator[Frame, None, None]:
        """Read the frames.

        Yields:
            Every frame of a file, or the newest of a camera, starting at time 0. Timestamps increase strictly.

        Raises:
            DataError: If there is no frame, or the video is damaged.
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

        count = 0
        jumps = self._container.format.flags & _TS_DISCONT
        step = max(1, round(1 / (self.rate * self.time_base)))
        timeline = Timeline(step, round(_LONGEST_GAP / self.time_base) if jumps else None)
        try:
            for frame in self._container.decode(self._stream):
                count += 1
                yield Frame(timeline(frame.pts), frame, self._aspect)
        except av.FFmpegError as error:
            fix = "reconnect the camera" if self.live else "replace the file, or cut it before the damage"
            raise DataError(
                f"{self.name} is damaged after {count} frames ({float((timeline.last or 0) * self.time_base):.1f} s): "
                f"{error.strerror}; {fix}"
            ) from error
        if count == 0:
            raise DataError(f"{self.name} has no frames; use another video")
        if count < self.total:
            logger.warning("%s ends after %d of %d frames; the rest is missing", self.name, count, self.total)


@contextlib.contextmanager
def open_video(source: str | Path) -> Iterator[Video]:
    """Open a video file or a camera.

    Args:
        source: A file, or "camera:0" for the first camera ("camera:NAME" on Windows).

    Yields:
        The video.

    Raises:
        DataError: If the file or camera does not exist, or the file is damaged or has no video track.
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
    camera = None if Path(name).exists() else _CAMERA.fullmatch(name)
    url, device = _camera(camera[1]) if camera else (f"file:{name}", None)  # or 12:30.mp4 would be read by protocol 12
    try:
        container = av.open(url, "r", format=device, metadata_errors="replace")
    except OSError as error:
        if camera:
            devices = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
            hint = f"available cameras: {devices}" if sys.platform == "linux" else "check that it is connected"
            raise DataError(f"cannot open {name} ({url}): {error.strerror}; {hint}") from error
        raise DataError(f"cannot read {name}: {error.strerror}; check the path") from error
    except av.FFmpegError as error:
        raise DataError(f"{name} is damaged or not a video: {error.strerror}; use another file") from error
    with container:
        tracks = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not tracks:
            raise DataError(f"{name} has no video track; use another file")
        if tracks[0].codec_context is None:
            raise DataError(f"the codec of {name} is unknown; convert the video, for example to H.264")
        width, height = _square(tracks[0].width, tracks[0].height, tracks[0].sample_aspect_ratio or Fraction(1))
        if width * height > MAX_PIXELS:
            raise DataError(f"the frames of {name} are larger than {MAX_PIXELS:,} pixels; scale the video down")
        tracks[0].thread_type = "AUTO"
        yield Video(name, container, tracks[0], live=bool(camera))


def newest(items: Iterable[T], video: Video) -> Generator[T, None, None]:
    """Read items in a background thread and yield only the newest; older ones are dropped.

    Args:
        items: Items that arrive at their own pace.
        video: Its `dropped` counts the dropped items.

    Yields:
        The newest item that was not yielded yet. An error of `items` is raised here.
    """
    change, waiting = threading.Condition(), list[T]()
    ended: list[BaseException | None] = []
    stopped = threading.Event()

    def take() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                with change:
                    video.dropped += len(waiting)
                    waiting[:] = [item]
                    change.notify()
                if stopped.is_set():
                    break
        except BaseException as raised:  # re-raised in the consumer
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
        stopped.set()
        thread.join()


def _square(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Size in square pixels of a frame whose pixels are `aspect` times as wide as high."""
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _camera(name: str) -> tuple[str, str]:
    """URL and device format of a camera on this operating system."""
    if sys.platform == "win32":
        return f"video={name}", "dshow"
    if sys.platform == "darwin":
        return f"{name}:none", "avfoundation"
    return f"/dev/video{name}", "v4l2"
