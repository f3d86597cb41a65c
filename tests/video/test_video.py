import logging
import re
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")

from embedcam.errors import DataError, OutputError  # noqa: E402
from embedcam.video.video import Timeline, is_video, newest, open_video  # noqa: E402
from embedcam.video.writer import write_video  # noqa: E402

MS = Fraction(1, 1000)


def pictures(count, height=48, width=64):
    """A bright square that wanders over a dark ground."""
    frames = np.full((count, height, width, 3), 40, dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[10:26, number % 40 : number % 40 + 16] = (220, 120, 60)
    return frames


def make(path, frames, times=None, rotation=0, options=None, aspect=None, title=""):
    """Write a video with PyAV alone: times in ms."""
    with av.open(str(path), "w", options=options or {}) as container:
        codec = "h264" if path.suffix == ".ts" else container.default_video_codec
        stream = container.add_stream(codec, rate=25, options={"crf": "5"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", MS
        container.metadata["title"] = title
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write a rotation")
            stream.set_display_rotation(rotation)
        for pts, picture in zip(times or range(0, 40 * len(frames), 40), frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = pts, MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.pts * frame.time_base for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


def seen(path):
    with open_video(path) as video:
        return [(frame.pts * video.time_base, frame.picture()) for frame in video.frames()]


def test_every_frame_of_a_file_comes_in_order_at_its_time(tmp_path):
    times, frames = [0, 40, 100, 110, 300, 301, 900], pictures(7)
    found = seen(make(tmp_path / "a.mp4", frames, times))
    assert [time for time, _ in found] == [time * MS for time in times]
    for picture, (_, other) in zip(frames, found, strict=True):
        assert picture.shape == other.shape
        assert np.abs(picture.astype(int) - other).mean() < 4


def test_a_video_that_a_phone_recorded_lying_is_upright(tmp_path):
    upright = pictures(2)
    found = seen(make(tmp_path / "a.mp4", [np.rot90(frame, -1) for frame in upright], rotation=90))
    assert found[0][1].shape == upright[0].shape
    assert np.abs(found[0][1].astype(int) - upright[0]).mean() < 4


def test_a_damaged_video_says_after_how_many_frames(tmp_path):
    data = bytearray(make(tmp_path / "a.mp4", pictures(50)).read_bytes())
    first, last = data.find(b"mdat") + 8, data.find(b"moov") - 8
    data[(first + last) // 2 : last] = bytes(255 - byte for byte in data[(first + last) // 2 : last])
    (tmp_path / "b.mp4").write_bytes(data)
    with pytest.raises(DataError, match=r"b\.mp4 is damaged after \d+ frames \(\d\.\d s\)"):
        seen(tmp_path / "b.mp4")


@pytest.mark.parametrize(("name", "content"), [("empty.mp4", b""), ("text.mp4", b"a letter" * 99)])
def test_a_file_that_is_no_video_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is damaged or not a video"):
        seen(tmp_path / name)


def test_a_file_without_its_index_is_refused(tmp_path):
    data = make(tmp_path / "a.mp4", pictures(50)).read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="damaged or not a video"):
        seen(tmp_path / "b.mp4")


def test_a_file_whose_end_is_missing_is_noted(tmp_path, caplog):
    data = make(tmp_path / "a.mp4", pictures(50), options={"movflags": "faststart"}).read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")
    (tmp_path / "b.mp4").write_bytes(data[: len(data) * 3 // 4])
    with caplog.at_level(logging.WARNING, "embedcam"):
        try:
            found = seen(tmp_path / "b.mp4")
        except DataError as error:  # older versions of FFmpeg stop at a frame that is cut through
            assert re.search(r"b\.mp4 is damaged after \d+ frames", str(error))
            return
    assert 0 < len(found) < 50
    assert f"b.mp4 ends after {len(found)} of 50 frames" in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.mp4: No such file"):
        seen(tmp_path / "none.mp4")


def test_sound_alone_has_no_video_track(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(DataError, match="no video track"):
        seen(tmp_path / "a.mkv")


def test_a_title_that_is_not_utf8_is_no_obstacle(tmp_path):
    data = make(tmp_path / "a.mkv", pictures(1), title="Fuessen").read_bytes()
    (tmp_path / "b.mkv").write_bytes(data.replace(b"Fuessen", b"F\xfc\xdfen.."))
    assert len(seen(tmp_path / "b.mkv")) == 1


def test_an_unknown_codec_is_named(tmp_path):
    data = make(tmp_path / "a.mkv", pictures(1)).read_bytes()
    (tmp_path / "b.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/AVC"))
    with pytest.raises(DataError, match=r"the codec of .*b\.mkv is unknown"):
        seen(tmp_path / "b.mkv")


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(DataError, match="cannot open camera:97"), open_video("camera:97"):
        pass


def test_what_a_user_names_is_a_video_or_not():
    assert all(map(is_video, ["camera:0", "camera:Front Camera", "a.MP4", "a.ogv", "a.m2ts", Path("b/c.mkv")]))
    assert not any(map(is_video, ["camera.jpg", "a.png", "folder", "mp4", Path("camera")]))


class Counter:
    dropped = 0


def test_the_newest_is_given_and_what_came_meanwhile_is_dropped():
    took, ready, counter = threading.Event(), threading.Event(), Counter()

    def camera():
        yield 1
        took.wait()
        yield from (2, 3, 4)
        ready.set()

    items = newest(camera(), counter)
    assert next(items) == 1
    took.set()
    ready.wait()
    assert next(items) == 4
    assert counter.dropped == 2
    with pytest.raises(StopIteration):
        next(items)


def test_an_error_of_the_camera_is_raised_where_it_is_seen():
    def camera():
        yield 1
        raise DataError("the plug was pulled")

    items = newest(camera(), Counter())
    with pytest.raises(DataError, match="plug"):
        list(items)


def test_no_thread_is_left_when_the_watcher_goes():
    def camera():
        while True:
            yield 1

    items = newest(camera(), Counter())
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "embedcam-camera"]


def written(path, frames, times):
    with write_video(path, MS) as writer:
        for picture, time in zip(frames, times, strict=True):
            writer.write(picture, time)
    return read(path)


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "b.mov", "b.webm"])
def test_a_written_video_has_the_times_and_pictures_that_were_given(tmp_path, name):
    given, frames = [0, 40, 100, 110, 300, 301, 900], pictures(7)
    times, found = written(tmp_path / name, frames, given)
    assert times == [time * MS for time in given]
    assert np.abs(np.stack(found).astype(int) - frames).mean() < 4


def test_a_picture_of_odd_size_is_written_whole(tmp_path):
    frames = pictures(2, height=47, width=63)
    _, found = written(tmp_path / "b.mp4", frames, [0, 40])
    assert found[0].shape == (48, 64, 3)
    assert np.abs(found[0][:47, :63].astype(int) - frames[0]).mean() < 4


def test_colours_of_large_frames_are_kept(tmp_path):
    frames = np.empty((2, 720, 1280, 3), dtype=np.uint8)
    frames[:] = (30, 200, 60)
    _, found = written(tmp_path / "b.mp4", frames, [0, 40])
    assert np.abs(found[1].astype(int) - frames[1]).max() <= 4


def test_a_format_that_keeps_no_times_is_refused():
    with pytest.raises(OutputError, match=r"unknown video format; .*\.mp4"), write_video("a.gif", MS):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/b\.mp4"), write_video(tmp_path / "file" / "b.mp4", MS):
        pass


def test_a_video_that_is_not_finished_leaves_the_old_one(tmp_path):
    (tmp_path / "b.mp4").write_text("the old one")
    with pytest.raises(DataError), write_video(tmp_path / "b.mp4", MS) as writer:
        writer.write(pictures(1)[0], 0)
        raise DataError("damaged")
    assert (tmp_path / "b.mp4").read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["b.mp4"]


@pytest.mark.parametrize(
    ("read", "times"),
    [
        ([36_000, 36_040, 36_100], [0, 40, 100]),  # starts late
        ([0, 40, 80, 0, 40], [0, 40, 80, 120, 160]),  # a segment that starts at 0 again
        ([0, 30, 60, 60_000, 60_030], [0, 30, 60, 90, 120]),  # and one that starts later
        ([0, 40, 40, 100], [0, 40, 80, 100]),  # repeated once
        ([5, 5, 5, 5], [0, 40, 80, 120]),  # and always
        ([None, None, None], [0, 40, 80]),  # a raw stream
        ([0, 10, 9_000], [0, 10, 9_000]),  # a pause
    ],
)
def test_times_start_at_0_and_go_on_evenly_at_jumps(read, times):
    assert list(map(Timeline(step=40, longest=10_000), read)) == times


def test_a_pause_of_any_length_is_kept_where_times_do_not_jump(tmp_path):
    times = [7_000, 7_040, 100_000]
    assert [time for time, _ in seen(make(tmp_path / "a.mkv", pictures(3), times))] == [0, 40 * MS, 93_000 * MS]


def test_joined_transport_streams_go_on_evenly(tmp_path):
    starts = [0, 36_000_000, 1_000]  # ms
    for start in starts:
        make(tmp_path / f"{start}.ts", pictures(5), range(start, start + 200, 40))
    (tmp_path / "a.ts").write_bytes(b"".join((tmp_path / f"{start}.ts").read_bytes() for start in starts))
    found = [time for time, _ in seen(tmp_path / "a.ts")]
    assert (found[0], len(found)) == (0, 15)
    np.testing.assert_allclose(np.diff(np.array(found, float)), 0.04, atol=0.01)


@pytest.mark.parametrize(("aspect", "size"), [((16, 9), (48, 114)), ((1, 2), (96, 64))])
def test_pixels_that_are_not_square_keep_their_aspect(tmp_path, aspect, size):
    path = make(tmp_path / "a.mp4", pictures(2), aspect=Fraction(*aspect))
    picture = seen(path)[0][1]
    assert picture.shape == (*size, 3)
    expected = Image.fromarray(pictures(1)[0]).resize(size[::-1], Image.Resampling.BICUBIC)
    assert np.abs(picture.astype(int) - np.asarray(expected)).mean() < 6


def test_pixels_that_would_be_too_wide_for_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("embedcam.video.video.MAX_PIXELS", 10 * 64 * 48)
    with pytest.raises(DataError, match="larger than"):
        seen(make(tmp_path / "a.mp4", pictures(1), aspect=Fraction(11)))


def test_frames_of_another_size_keep_their_aspect(tmp_path):
    bright = np.full((64, 48, 3), 200, np.uint8)
    _, found = written(tmp_path / "b.mp4", [pictures(1)[0], bright], [0, 40])
    assert found[1].shape == (48, 64, 3)
    assert np.abs(found[1][:, 16:48].astype(int) - 200).mean() < 4
    assert found[1][:, :12].mean() < 8


def test_frames_too_large_for_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("embedcam.video.video.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(DataError, match=r"frames of .*a\.mp4 are larger than 3,071 pixels"):
        seen(make(tmp_path / "a.mp4", pictures(1)))


def test_a_file_whose_name_begins_like_a_protocol_or_a_camera_is_a_file(tmp_path, monkeypatch):
    if sys.platform == "win32":
        pytest.skip("Windows allows no colon in a name")
    monkeypatch.chdir(tmp_path)
    for name in ("2024-05-01T12:30:05.mp4", "camera:0.mp4"):
        with write_video(name, MS) as writer:
            for pts, picture in enumerate(pictures(2)):
                writer.write(picture, pts * 40)
        assert is_video(name)
        assert [time for time, _ in seen(name)] == [0, Fraction(1, 25)]
        assert [time for time, _ in seen(Path(f"./{name}"))] == [0, Fraction(1, 25)]
