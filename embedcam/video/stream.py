"""Explain a video file or a camera frame by frame."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.loading import in_order
from ..errors import DataError, EmbedcamError, OutputError
from ..explain.explanation import AnyExplainer
from ..explain.maps import normalize
from ..show.boxes import draw_boxes
from ..show.drawing import DrawOptions
from ..show.frames import caption, hottest_box, tint
from ..utils import progress
from ..utils.files import require_writable
from .video import Frame, Video, open_video
from .window import Window, open_window
from .writer import VideoWriter, write_video

T = TypeVar("T")
TimedPicture = tuple[NDArray[np.uint8], int]  # a drawn frame and its pts

_HEAT_MAP = DrawOptions()
_QUEUE_SIZE, _DRAW_THREADS = 4, 2
_FPS_WINDOW = 30  # frames that the displayed frame rate is averaged over


@dataclass(frozen=True)
class StreamReport:
    """Summary of an explained video.

    Attributes:
        frames: Number of explained frames.
        dropped: Camera frames skipped because a newer one had arrived; 0 for a file.
        fps: Explained frames per second, on average.
        out: The video file that was written, or None.
    """

    frames: int
    dropped: int
    fps: float
    out: Path | None


@dataclass(frozen=True)
class _ExplainedFrame:
    picture: NDArray[np.uint8]
    pts: int
    heatmap: NDArray[np.float32]
    raw: NDArray[np.float32]
    anomaly: float
    text: str


def explain_stream(
    explainer: AnyExplainer,
    source: str | Path,
    out: str | Path | None = None,
    draw: DrawOptions = _HEAT_MAP,
    *,
    smoothing: float = 0.0,
    show: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> StreamReport:
    """Explain a video, and show or write the result.

    Each frame shows its heat map, or one box around the hottest region, and a line with the frame rate, the most common
    label of its cluster and its anomaly score (above 1: unlike the training images). In the window, `s` switches
    between heat map and box, and `q` quits. Every frame of a file is explained. For a camera, always the newest frame
    is explained and the frames in between are dropped. Reading, explaining, drawing and writing run concurrently.

    Args:
        explainer: The explainer.
        source: A video file or a camera such as "camera:0", see `open_video`.
        out: Video file to write, with the timestamps of the source and without sound. None writes no file.
        draw: Drawing options; `threshold` is the fraction of the maximum above which a pixel belongs to the box.
        smoothing: Weight of the previous frames in an exponential moving average of the maps, in [0, 1). 0 disables it.
        show: Open a window. By default, for a camera if there is a display, and for a file if `out` is None.
        clock: Returns the time in seconds.

    Returns:
        The number of frames and the frame rate.

    Raises:
        DataError: If the source cannot be opened, is damaged, or has no frame.
        OutputError: If there is no display and `out` is None, or the video file cannot be written.
        MissingDependencyError: If PyAV is not installed.
    """
    if not 0 <= smoothing < 1:
        raise EmbedcamError(f"smoothing must lie in [0, 1), got {smoothing}; 0 disables it, 0.8 is strong")
    if out is not None:
        require_writable(out, [source])
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(open_video(source))
        with_window = (video.live or out is None) if show is None else show
        title = f"{source} - s: heat map or box, q: quit"
        window = stack.enter_context(open_window(title)) if with_window else None
        if window is None and (out is None or show):
            raise OutputError(f"there is no display to show {source} on; write it to a file with --out FILE.mp4")
        writer = None if out is None else stack.enter_context(write_video(out, video.time_base, video.rate))
        start = clock()
        frames = _run(explainer, video, window, writer, _Painter(draw), smoothing, clock)
        seconds = clock() - start
        if frames == 0:
            raise DataError(f"no frame of {source} was explained; let it run longer")
    return StreamReport(frames, video.dropped, frames / seconds, None if out is None else Path(out))


def _run(
    explainer: AnyExplainer,
    video: Video,
    window: Window | None,
    writer: VideoWriter | None,
    painter: _Painter,
    smoothing: float,
    clock: Callable[[], float],
) -> int:
    explain, write = functools.partial(_explain, explainer), functools.partial(_write, writer)
    count = 0
    with contextlib.ExitStack() as stack:

        def stage(items: Generator[T, None, None]) -> Generator[T, None, None]:
            return stack.enter_context(contextlib.closing(items))

        # A camera frame is explained and drawn in this thread: in a queue it would wait for the next frame to come.
        explain_threads, draw_threads, ahead = (0, 0, 1) if video.live else (1, _DRAW_THREADS, _QUEUE_SIZE)
        explained = stage(in_order(explain, stage(video.frames()), explain_threads, ahead, "explain"))
        drawn = stage(in_order(painter, _timed(_smoothed(explained, smoothing), clock), draw_threads, ahead, "draw"))
        shown = _shown(drawn, window, painter, video, clock)
        written = stage(in_order(write, shown, 0 if writer is None else 1, ahead, "write"))
        try:
            for _ in progress.track(written, "explaining", video.total) if video.total else written:
                count += 1
        except KeyboardInterrupt:
            if not video.live:  # without a window, Ctrl-C is the only way to end a camera
                raise
    return count


def _explain(explainer: AnyExplainer, frame: Frame) -> _ExplainedFrame:
    picture = frame.picture()
    explanation = explainer(explainer.preprocess(Image.fromarray(picture))[None]).on_picture(picture.shape[:2])
    assert explanation.clusters is not None
    assert explanation.anomaly is not None
    cluster, anomaly = int(explanation.clusters[0]), float(explanation.anomaly[0])
    labels = explainer.labels_of(cluster)
    text = f"{labels[0][0] if labels else f'cluster {cluster}'}, anomaly {anomaly:.2f}"
    return _ExplainedFrame(picture, frame.pts, explanation.heatmaps[0], explanation.raw[0], anomaly, text)


def _smoothed(frames: Iterable[_ExplainedFrame], smoothing: float) -> Iterator[_ExplainedFrame]:
    average: NDArray[np.float32] | None = None
    for frame in frames:
        if smoothing:
            average = frame.raw if average is None else smoothing * average + (1 - smoothing) * frame.raw
            frame = replace(frame, raw=average, heatmap=normalize(average[None])[0])
        yield frame


def _timed(frames: Iterable[_ExplainedFrame], clock: Callable[[], float]) -> Iterator[_ExplainedFrame]:
    times: deque[float] = deque(maxlen=_FPS_WINDOW + 1)
    for frame in frames:
        times.append(clock())
        if len(times) > 1:
            frame = replace(frame, text=f"{(len(times) - 1) / (times[-1] - times[0]):.0f} fps, {frame.text}")
        yield frame


class _Painter:
    """Draws frames; `boxes` may change between frames."""

    def __init__(self, draw: DrawOptions) -> None:
        self._draw, self.boxes = draw, draw.boxes

    def __call__(self, frame: _ExplainedFrame) -> TimedPicture:
        if self.boxes:
            box = hottest_box(frame.picture, frame.raw, self._draw.threshold)
            color = "red" if frame.anomaly > 1 else "lime"
            drawn = Image.fromarray(draw_boxes(frame.picture, [] if box is None else [box], color=color))
        else:
            drawn = tint(frame.picture, frame.heatmap, self._draw.alpha, self._draw.colormap)
        caption(drawn, frame.text)
        return np.asarray(drawn), frame.pts


def _shown(
    frames: Iterable[TimedPicture],
    window: Window | None,
    painter: _Painter,
    video: Video,
    clock: Callable[[], float],
) -> Iterator[TimedPicture]:
    """Show frames in the window, those of a file at their timestamps, and handle the pressed keys."""
    start: float | None = None
    for picture, pts in frames:
        keys = ""
        if window is not None:
            due = float(pts * video.time_base)
            start = clock() - due if start is None else start
            keys = window.show(picture, 0.0 if video.live else start + due - clock())
        if keys.count("s") % 2:
            painter.boxes = not painter.boxes
        yield picture, pts
        if "q" in keys:
            return


def _write(writer: VideoWriter | None, frame: TimedPicture) -> None:
    if writer is not None:
        writer.write(*frame)
