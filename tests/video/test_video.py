import logging
import re
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from embedcam.errors import DataError, OutputError  # noqa: E402
from embedcam.video.video import Video, is_video, newest, open_video, write_video  # noqa: E402

MS = Fraction(1, 1000)


def pictures(count, height=48, width=64):
    """A bright square that wanders over a dark ground."""
    frames = np.full((count, height, width, 3), 40, dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[10:26, number % 40 : number % 40 + 16] = (220, 120, 60)
    return frames


def make(path, frames, times=None, rotation=0, options=None):
    """Write a video with PyAV alone: times in ms."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(container.default_video_codec, rate=25, options={"crf": "5"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", MS
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


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(DataError, match="cannot open camera:97"), open_video("camera:97"):
        pass


def test_what_a_user_names_is_a_video_or_not():
    assert all(map(is_video, ["camera:0", "camera:Front Camera", "a.MP4", Path("b/c.mkv")]))
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


def test_times_that_a_broken_file_repeats_rise_again():
    class Repeating:
        """What `Video` reads of a container."""

        def decode(self, _stream):
            for pts in (5, 5, None, 3, 20):
                yield type("Decoded", (), {"pts": pts})()

    stream = type("Stream", (), {"time_base": MS, "average_rate": None, "frames": 0})()
    video = Video("made", Repeating(), stream, live=False)
    assert [frame.pts for frame in video.frames()] == [5, 6, 7, 8, 20]


def test_frames_too_large_for_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("embedcam.video.video.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(DataError, match=r"frames of .*a\.mp4 are larger than 3,071 pixels"):
        seen(make(tmp_path / "a.mp4", pictures(1)))
