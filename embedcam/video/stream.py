"""Explain a video file or a camera frame by frame: heat maps or boxes, in a window, in a video file, or both."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
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
from .video import Frame, Video, VideoWriter, open_video, write_video
from .window import Window, open_window

T = TypeVar("T")

# A box holds all that is hotter than 0.8 of the maximum, as in Faster-Grad-CAM.
VIDEO_DRAW = DrawOptions(threshold=0.8)

# Frames that may wait for a thread, and threads that draw them.
_AHEAD, _DRAWERS = 4, 2
_COUNTED = 30  # frames that the shown frames a second are counted over


@dataclass(frozen=True)
class StreamReport:
    """What was explained.

    Attributes:
        frames: Number of them.
        dropped: Frames of a camera that came while an earlier one was worked on; 0 for a file.
        fps: Frames explained a second, on average.
        out: The video file that was written, or None.
    """

    frames: int
    dropped: int
    fps: float
    out: Path | None


@dataclass(frozen=True)
class _Seen:
    """A frame and what the explainer says of it."""

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
    draw: DrawOptions = VIDEO_DRAW,
    *,
    smoothing: float = 0.0,
    show: bool | None = None,
) -> StreamReport:
    """Explain a video.

    Each frame shows the frames explained a second, what its cluster mostly holds, its anomaly score (above 1, it is
    unlike the training images), and its heat map or one box around the hottest part. In the window, `s` switches
    between these two and `q` ends. No frame of a file is left out; of a camera always the newest is explained, and what
    came meanwhile is dropped. Reading, explaining, drawing and writing go on side by side.

    Args:
        explainer: What explains.
        source: A video file; or "camera:0", see `open_video`.
        out: Video file to write, with the times of the source's frames and without sound; None to only show it.
        draw: How frames look; `threshold` is the share of the maximum above which a pixel belongs to the box.
        smoothing: Share of the frames before in a frame's map, in [0, 1): 0 for none; with 0.8, a map follows the
            frames within about five of them.
        show: Open a window. By default, for a camera if there is a display, for a file if nothing is written.

    Returns:
        How many frames were explained, and how quickly.

    Raises:
        DataError: If the file or camera cannot be opened, is damaged, or has no frame.
        OutputError: If there is no display and nothing to write, or the video file cannot be written.
        MissingDependencyError: If PyAV is not installed.
    """
    if not 0 <= smoothing < 1:
        raise EmbedcamError(f"smoothing must lie in [0, 1), got {smoothing}; 0 is none, 0.8 is much")
    with contextlib.ExitStack() as opened:
        video = opened.enter_context(open_video(source))
        wanted = (video.live or out is None) if show is None else show
        title = f"{source} - s: heat map or box, q: quit"
        window = opened.enter_context(open_window(title)) if wanted else None
        if window is None and (out is None or show):
            raise OutputError(f"there is no display to show {source} on; write it to a file with --out FILE.mp4")
        writer = None if out is None else opened.enter_context(write_video(out, video.time_base, video.rate))
        start = time.perf_counter()
        frames = _run(explainer, video, window, writer, _Painter(draw), smoothing)
        seconds = time.perf_counter() - start
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
) -> int:
    """Let all frames go through the stages, each in threads of its own; return how many there were."""
    explain, write = functools.partial(_explain, explainer), functools.partial(_write, writer)
    count = 0
    with contextlib.ExitStack() as stages:

        def stage(items: Generator[T, None, None]) -> Generator[T, None, None]:
            return stages.enter_context(contextlib.closing(items))

        # What a camera sees is explained and drawn at once: a thread would keep it until the next frame comes.
        explainers, drawers, ahead = (0, 0, 1) if video.live else (1, _DRAWERS, _AHEAD)
        seen = stage(in_order(explain, stage(video.frames()), explainers, ahead, "explain"))
        drawn = stage(in_order(painter, _timed(_smoothed(seen, smoothing)), drawers, ahead, "draw"))
        shown = _shown(drawn, window, painter, video)
        written = stage(in_order(write, shown, 0 if writer is None else 1, ahead, "write"))
        try:
            for _ in progress.track(written, "explaining", video.total) if video.total else written:
                count += 1
        except KeyboardInterrupt:
            if not video.live:  # without a window, a camera's pictures have no other end
                raise
    return count


def _explain(explainer: AnyExplainer, frame: Frame) -> _Seen:
    picture = frame.picture()
    explanation = explainer(explainer.preprocess(Image.fromarray(picture))[None])
    assert explanation.clusters is not None
    assert explanation.anomaly is not None
    cluster, anomaly = int(explanation.clusters[0]), float(explanation.anomaly[0])
    labels = explainer.labels_of(cluster)
    text = f"{labels[0][0] if labels else f'cluster {cluster}'}, anomaly {anomaly:.2f}"
    return _Seen(picture, frame.pts, explanation.heatmaps[0], explanation.raw[0], anomaly, text)


def _smoothed(frames: Iterable[_Seen], smoothing: float) -> Iterator[_Seen]:
    """Mix each map before normalising with those before it: exponential smoothing."""
    mixed: NDArray[np.float32] | None = None
    for seen in frames:
        if smoothing:
            mixed = seen.raw if mixed is None else smoothing * mixed + (1 - smoothing) * seen.raw
            seen = replace(seen, raw=mixed, heatmap=normalize(mixed[None])[0])
        yield seen


def _timed(frames: Iterable[_Seen]) -> Iterator[_Seen]:
    """Add how many frames come a second."""
    times: deque[float] = deque(maxlen=_COUNTED + 1)
    for seen in frames:
        times.append(time.perf_counter())
        if len(times) > 1:
            seen = replace(seen, text=f"{(len(times) - 1) / (times[-1] - times[0]):.0f} fps, {seen.text}")
        yield seen


class _Painter:
    """Draws frames, in the mode that is wanted now."""

    def __init__(self, draw: DrawOptions) -> None:
        self._draw, self.boxes = draw, draw.boxes

    def __call__(self, seen: _Seen) -> tuple[NDArray[np.uint8], int]:
        if self.boxes:
            box = hottest_box(seen.picture, seen.raw, self._draw.threshold)
            color = "red" if seen.anomaly > 1 else "lime"
            drawn = Image.fromarray(draw_boxes(seen.picture, [] if box is None else [box], color=color))
        else:
            drawn = tint(seen.picture, seen.heatmap, self._draw.alpha, self._draw.colormap)
        caption(drawn, seen.text)
        return np.asarray(drawn), seen.pts


def _shown(
    frames: Iterable[tuple[NDArray[np.uint8], int]], window: Window | None, painter: _Painter, video: Video
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Show frames in the window, those of a file at their times, and do what is asked for there."""
    start: float | None = None
    for picture, pts in frames:
        keys = ""
        if window is not None:
            due = float(pts * video.time_base)
            start = time.monotonic() - due if start is None else start
            keys = window.show(picture, 0.0 if video.live else start + due - time.monotonic())
        if keys.count("s") % 2:
            painter.boxes = not painter.boxes
        yield picture, pts
        if "q" in keys:
            return


def _write(writer: VideoWriter | None, frame: tuple[NDArray[np.uint8], int]) -> None:
    if writer is not None:
        writer.write(*frame)
