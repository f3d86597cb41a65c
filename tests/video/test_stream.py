import contextlib
import itertools
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")

import embedcam  # noqa: E402
from embedcam.data.preprocess import Preprocess  # noqa: E402
from embedcam.errors import DataError, EmbedcamError, OutputError  # noqa: E402
from embedcam.explain.explanation import Explanation  # noqa: E402
from embedcam.show.boxes import draw_boxes  # noqa: E402
from embedcam.show.drawing import DrawOptions  # noqa: E402
from embedcam.show.frames import hottest_box, tint  # noqa: E402
from embedcam.video import stream, video  # noqa: E402
from embedcam.video.stream import explain_stream  # noqa: E402
from embedcam.video.writer import VideoWriter  # noqa: E402

MS = Fraction(1, 1000)
TIMES = [0, 40, 100, 110, 300, 301, 900]
CAPTION = 16  # rows


class Explained:
    """Heat where the picture is bright, for any explainer."""

    preprocess = Preprocess((16, 16), mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        raw = images.mean(axis=1)
        self.seen.append(raw[0])
        return Explanation.of(raw, clusters=np.zeros(1, np.int64), anomaly=np.array([self.anomaly], np.float32))

    anomaly = 0.5

    def labels_of(self, cluster):
        return [("square", 3)]


class Window:
    """A window in which given keys are pressed, one string a picture; showing a picture takes 0.125 s."""

    def __init__(self, *keys):
        self.keys, self.waits, self.pictures, self.now = list(keys), [], [], 0.0

    def show(self, picture, seconds=0.0):
        self.pictures.append(picture)
        self.waits.append(seconds)
        self.now += max(0.125, seconds)
        return self.keys.pop(0) if self.keys else ""


@pytest.fixture
def window(monkeypatch):
    """Let the display have a window in which these keys are pressed."""

    def put(*keys):
        made = Window(*keys)
        monkeypatch.setattr(stream, "open_window", lambda title: contextlib.nullcontext(made))
        return made

    return put


@pytest.fixture
def no_display(monkeypatch):
    monkeypatch.setattr(stream, "open_window", lambda title: contextlib.nullcontext())


@pytest.fixture
def file(tmp_path):
    """A bright square that jumps from frame to frame."""
    path = tmp_path / "in.mp4"
    with av.open(str(path), "w") as container:
        made = container.add_stream("mpeg4", rate=25)
        made.height, made.width, made.pix_fmt, made.codec_context.time_base = 64, 96, "yuv420p", MS
        for number, time in enumerate(TIMES):
            picture = np.full((64, 96, 3), 30, dtype=np.uint8)
            picture[20:52, 10 * number : 10 * number + 20] = (240, 220, 200)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, MS
            container.mux(made.encode(frame))
        container.mux(made.encode(None))
    return path


def frames_of(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.pts * frame.time_base for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to the encoder, before it loses anything."""
    pictures = []
    write = VideoWriter.write
    monkeypatch.setattr(
        VideoWriter, "write", lambda self, picture, pts: (pictures.append(picture), write(self, picture, pts))
    )
    return pictures


def test_every_frame_of_a_file_is_explained_and_written_at_its_time(file, tmp_path, drawn):
    explainer = Explained()
    report = explain_stream(explainer, file, tmp_path / "out.mp4", show=False)
    assert (report.frames, report.dropped, report.out) == (7, 0, tmp_path / "out.mp4")
    times, _ = frames_of(tmp_path / "out.mp4")
    assert times == [time * MS for time in TIMES]
    for picture, found in zip(frames_of(file)[1], drawn, strict=True):
        heatmap = explainer(explainer.preprocess(Image.fromarray(picture))[None]).heatmaps[0]
        np.testing.assert_array_equal(found[CAPTION:], np.asarray(tint(picture, heatmap))[CAPTION:])
        assert (found[:CAPTION] != np.asarray(tint(picture, heatmap))[:CAPTION]).any()


@pytest.mark.parametrize(("anomaly", "color"), [(0.5, "lime"), (1.5, "red")])
def test_box_mode_draws_the_box_of_the_hottest_part_red_where_unlike(file, tmp_path, drawn, anomaly, color):
    explainer = Explained()
    explainer.anomaly = anomaly
    explain_stream(explainer, file, tmp_path / "out.mp4", DrawOptions(boxes=True, threshold=0.9))
    for picture, raw, found in zip(frames_of(file)[1], explainer.seen, drawn, strict=True):
        expected = draw_boxes(picture, [hottest_box(picture, raw, 0.9)], color=color)
        np.testing.assert_array_equal(found[CAPTION:], expected[CAPTION:])


def test_the_line_of_text_tells_rate_cluster_and_anomaly(file, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(stream, "caption", lambda image, text: said.append(text))
    clock = itertools.count(0, 0.25)
    monkeypatch.setattr(stream, "_DRAW_THREADS", 1)
    explain_stream(Explained(), file, tmp_path / "out.mp4", clock=lambda: next(clock))
    assert said == ["square, anomaly 0.50", *["4 fps, square, anomaly 0.50"] * 6]


def test_smoothing_mixes_each_map_with_those_before(file, tmp_path, drawn):
    explainer = Explained()
    explain_stream(explainer, file, tmp_path / "out.mp4", smoothing=0.75)
    raws, mixed = explainer.seen, None
    for picture, raw, found in zip(frames_of(file)[1], raws, drawn, strict=True):
        mixed = raw if mixed is None else 0.75 * mixed + 0.25 * raw
        heatmap = (mixed - mixed.min()) / (mixed.max() - mixed.min())
        expected = np.asarray(tint(picture, heatmap)).astype(int)
        assert np.abs(found[CAPTION:] - expected[CAPTION:]).max() <= 1


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_its_range_is_refused(file, smoothing):
    with pytest.raises(EmbedcamError, match="smoothing must lie in"):
        explain_stream(Explained(), file, smoothing=smoothing)


def test_a_file_is_shown_at_the_times_of_its_frames(file, window):
    opened = window()
    ticks = itertools.count(0, 1e-6)  # no clock stands still
    report = explain_stream(Explained(), file, clock=lambda: opened.now + next(ticks))
    assert (report.frames, report.out) == (7, None)
    assert len(opened.pictures) == 7
    # Frames are late from the second on, and shown at once until the last.
    np.testing.assert_allclose(opened.waits, [0, -0.085, -0.15, -0.265, -0.2, -0.324, 0.15], atol=1e-3)
    assert report.fps == pytest.approx(7 / 0.9, rel=1e-3)


def test_s_switches_between_heat_map_and_box_and_q_ends(file, tmp_path, window, monkeypatch):
    monkeypatch.setattr(stream, "_DRAW_THREADS", 0)  # no frame is drawn before the key is pressed
    monkeypatch.setattr(stream, "caption", lambda image, text: None)
    opened = window("", "s", "ss", "sq")
    explainer = Explained()
    report = explain_stream(explainer, file, tmp_path / "out.mp4", show=True)
    assert report.frames == 4
    assert frames_of(tmp_path / "out.mp4")[0] == [time * MS for time in TIMES[:4]]
    changed = [(shown != picture).mean() for shown, picture in zip(opened.pictures, frames_of(file)[1], strict=False)]
    assert all(share > 0.9 for share in changed[:2])  # tinted all over
    assert all(share < 0.5 for share in changed[2:])  # a frame around the square


def test_without_a_display_something_must_be_written(file, no_display):
    with pytest.raises(OutputError, match=r"no display .* --out FILE\.mp4"):
        explain_stream(Explained(), file)


def test_a_window_that_is_asked_for_must_open(file, tmp_path, no_display):
    with pytest.raises(OutputError, match="no display"):
        explain_stream(Explained(), file, tmp_path / "out.mp4", show=True)
    assert not (tmp_path / "out.mp4").exists()


@pytest.fixture
def camera(monkeypatch):
    """A made camera without end."""
    monkeypatch.setattr(video, "_camera", lambda name: ("testsrc2=size=64x48:rate=100", "lavfi"))


def test_a_camera_gives_the_newest_frame_and_the_written_times_rise(camera, tmp_path, window):
    window("", "", "", "q")
    report = explain_stream(Explained(), "camera:0", tmp_path / "out.mp4")
    assert report.frames == 4
    times, _ = frames_of(tmp_path / "out.mp4")
    assert times[0] == 0
    steps = np.diff(times)
    assert (steps > 0).all()
    # They are a hundredth of a second apart where none was dropped.
    assert sum(steps) * 100 - 3 <= report.dropped


def test_an_interrupted_camera_leaves_the_video_so_far(camera, tmp_path, no_display):
    class Interrupted(Explained):
        def __call__(self, images):
            if len(self.seen) == 5:
                raise KeyboardInterrupt
            return super().__call__(images)

    report = explain_stream(Interrupted(), "camera:0", tmp_path / "out.mp4")
    assert 3 <= report.frames <= len(frames_of(tmp_path / "out.mp4")[0]) <= 5


def test_an_interrupted_file_leaves_nothing(file, tmp_path, monkeypatch):
    def interrupt(frames, *_):
        next(iter(frames))
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(stream, "_shown", interrupt)
    with pytest.raises(KeyboardInterrupt):
        explain_stream(Explained(), file, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_an_error_of_the_explainer_ends_it_and_leaves_nothing(file, tmp_path):
    class Broken(Explained):
        def __call__(self, images):
            raise DataError("the network is gone")

    with pytest.raises(DataError, match="network is gone"):
        explain_stream(Broken(), file, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_network_and_onnx_file_explain_a_video_alike(spread, exported, file, tmp_path, drawn):
    for each in (embedcam.Explainer(*spread), embedcam.OnnxExplainer(exported)):
        assert explain_stream(each, file, tmp_path / "out.mp4").frames == 7
    ours, theirs = np.stack(drawn[:7]), np.stack(drawn[7:])
    assert np.abs(ours[:, CAPTION:].astype(int) - theirs[:, CAPTION:]).max() <= 2
