import hashlib
import io
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from embedcam.data.sets.cub import cub


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; ends the connection early as often as `server.breaks` says."""

    def do_GET(self):
        data = self.server.files[self.path.split("?")[0]]
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if asked and self.server.ranges and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if asked and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if self.server.breaks:
            body = body[: self.server.breaks.pop(0)]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.breaks, server.ranges = {}, [], [], True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def tgz(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def encoded(mode, color, suffix):
    stream = io.BytesIO()
    Image.new(mode, (6, 4), color).save(stream, suffix)
    return stream.getvalue()


@pytest.fixture
def archives(script, server, monkeypatch):
    """Two small archives on the server in place of the official ones."""
    birds = {
        "attributes.txt": b"outside the wanted folder",
        "CUB_200_2011/images.txt": b"1 001.Auk/a.jpg\n2 002.Owl/b.jpg\n",
        "CUB_200_2011/classes.txt": b"1 001.Auk\n2 002.Owl\n",
        "CUB_200_2011/image_class_labels.txt": b"1 1\n2 2\n",
        "CUB_200_2011/train_test_split.txt": b"1 1\n2 0\n",
        "CUB_200_2011/images/001.Auk/a.jpg": encoded("RGB", "red", "jpeg"),
        "CUB_200_2011/images/002.Owl/b.jpg": encoded("RGB", "blue", "jpeg"),
    }
    masks = {f"segmentations/{name}.png": encoded("L", 255, "png") for name in ("001.Auk/a", "002.Owl/b")}
    server.files = {"/CUB_200_2011.tgz": tgz(birds), "/segmentations.tgz": tgz(masks)}
    made = tuple(
        script.Archive(
            f"http://127.0.0.1:{server.server_port}{path}?download=1",
            hashlib.md5(data).hexdigest(),
            path[1:-4],
        )
        for path, data in server.files.items()
    )
    monkeypatch.setattr(script, "ARCHIVES", made)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_both_archives_are_fetched_into_the_layout_that_cub_reads(script, archives, tmp_path, capsys):
    assert script.main([str(tmp_path / "new" / "cub")]) == 0
    samples = cub(tmp_path / "new" / "cub", "all")
    assert samples.ids == ("001.Auk/a.jpg", "002.Owl/b.jpg") and samples.mask(1).all()
    assert names(tmp_path / "new" / "cub") == ["CUB_200_2011", "segmentations"]
    printed = capsys.readouterr().out
    assert "CUB_200_2011.tgz: 100 % of" in printed and "cub-metric:" in printed


def test_what_is_there_is_not_fetched_again(script, archives, server, tmp_path, capsys):
    script.main([str(tmp_path)])
    asked = len(server.asked)
    assert script.main([str(tmp_path)]) == 0
    assert len(server.asked) == asked
    assert "segmentations: already exists" in capsys.readouterr().out


def test_broken_download_goes_on_where_it_broke(script, archives, server, tmp_path, capsys):
    server.breaks = [100, 50]
    assert script.main([str(tmp_path)]) == 0
    assert server.asked[:3] == [None, "bytes=100-", "bytes=150-"]
    assert "connection lost (received 100 of" in capsys.readouterr().out
    assert len(cub(tmp_path, "all")) == 2


def test_later_run_goes_on_with_the_part_of_an_earlier_one(script, archives, server, tmp_path, capsys):
    server.breaks = [100, 0]
    assert script.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot download http://") and error.count("\n") == 1
    assert names(tmp_path) == ["CUB_200_2011.tgz.part"]
    assert script.main([str(tmp_path)]) == 0
    assert server.asked[2] == "bytes=100-"


def test_server_without_ranges_starts_over(script, archives, server, tmp_path):
    server.ranges = False
    server.breaks = [100]
    assert script.main([str(tmp_path)]) == 0
    assert server.asked[1] == "bytes=100-"
    assert len(cub(tmp_path, "all")) == 2


def test_server_without_ranges_that_always_breaks_is_given_up(script, archives, server, tmp_path, capsys):
    server.ranges = False
    server.breaks = [100] * 9
    assert script.main([str(tmp_path)]) == 1
    assert len(server.asked) == 2
    assert "100 of" in capsys.readouterr().err


def test_part_that_is_already_whole_is_used(script, archives, server, tmp_path):
    (tmp_path / "CUB_200_2011.tgz.part").write_bytes(server.files["/CUB_200_2011.tgz"])
    assert script.main([str(tmp_path)]) == 0
    assert len(cub(tmp_path, "all")) == 2


def test_wrong_md5_is_an_error_and_nothing_is_unpacked(script, archives, server, tmp_path, capsys):
    good = server.files["/CUB_200_2011.tgz"]
    server.files["/CUB_200_2011.tgz"] = good[:-1] + b"?"
    assert script.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"instead of {archives[0].md5} and was removed" in error and error.count("\n") == 1
    assert names(tmp_path) == []
    server.files["/CUB_200_2011.tgz"] = good
    assert script.main([str(tmp_path)]) == 0


def test_archive_that_leads_out_of_its_folder_is_refused(script, server, tmp_path, capsys, monkeypatch):
    data = tgz({"CUB_200_2011/images.txt": b"", "../outside.txt": b"no"})
    server.files = {"/evil.tgz": data}
    url = f"http://127.0.0.1:{server.server_port}/evil.tgz"
    evil = script.Archive(url, hashlib.md5(data).hexdigest(), "CUB_200_2011")
    monkeypatch.setattr(script, "ARCHIVES", (evil,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert script.main([str(tmp_path / "cub")]) == 1
    assert "cannot unpack" in capsys.readouterr().err
    assert names(tmp_path) == ["cub"] and names(tmp_path / "cub") == ["evil.tgz"]


def test_offline_is_one_clear_line(script, archives, server, tmp_path, capsys, monkeypatch):
    with socket.socket() as silent:  # has a port, and does not listen
        silent.bind(("127.0.0.1", 0))
        nobody = script.Archive(f"http://127.0.0.1:{silent.getsockname()[1]}/x.tgz", "0" * 32, "CUB_200_2011")
        monkeypatch.setattr(script, "ARCHIVES", (nobody,))
        assert script.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "check the connection" in error and error.count("\n") == 1


def test_folder_that_cannot_be_made_is_one_clear_line(script, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert script.main([str(tmp_path / "file" / "cub")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_ctrl_c_leaves_the_part_for_the_next_run(script, archives, server, tmp_path, capsys, monkeypatch):
    def interrupt(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "md5_of", interrupt)
        assert script.main([str(tmp_path)]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert script.main([str(tmp_path)]) == 0
    assert server.asked == [None, None]  # nothing was fetched twice


def test_official_addresses_and_md5_sums_are_named(script):
    first, second = script.ARCHIVES
    assert (first.name, second.name) == ("CUB_200_2011.tgz", "segmentations.tgz")
    assert all(len(archive.md5) == 32 and archive.url.endswith("?download=1") for archive in script.ARCHIVES)
