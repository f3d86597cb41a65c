"""Many requests at once, and the server as a process."""

import base64
import contextlib
import http.client
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import pytest
from starlette.testclient import TestClient

from embedcam.app import create_app, serve
from embedcam.app.limits import _READ_AHEAD, Limits
from embedcam.errors import EmbedcamError


def send(address, content, path="/explain"):
    """Post a picture over a connection of its own; gives status, headers and body."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=600)
    connection.request("POST", path, content, {"Content-Type": "image/png"})
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return found


@pytest.mark.parametrize(("concurrency", "batch"), [(1, 1), (3, 1), (1, 4), (3, 4)])
def test_of_200_requests_at_once_none_is_lost(explainer, running, encoded, picture, concurrency, batch):
    """With several threads, forward passes of a torch network must still not meet: their maps would be mixed up."""
    files = [encoded(picture(seed=seed)) for seed in range(10)]
    limits = Limits(concurrency=concurrency, batch=batch)
    with running(create_app(explainer, limits=limits)) as address, ThreadPoolExecutor(200) as many:
        alone = [send(address, file, "/explain?include=levels") for file in files]
        assert {status for status, _, _ in alone} == {200}
        assert len({body for _, _, body in alone}) == 10
        found = list(many.map(lambda n: send(address, files[n % 10], "/explain?include=levels"), range(200)))
    assert {status for status, _, _ in found} == {200}
    for number, (_, _, body) in enumerate(found):
        expected = alone[number % 10][2]
        if batch == 1:
            assert body == expected
        else:
            assert_close(json.loads(body), json.loads(expected))


def assert_close(found, expected):
    """Compare two responses: numbers within 1e-5, levels within one."""
    levels = [
        np.frombuffer(base64.b64decode(each["levels"].pop("values")), np.uint8).astype(int)
        for each in (found, expected)
    ]
    assert np.abs(levels[0] - levels[1]).max() <= 1
    for each in (found, expected):
        del each["boxes_at"]  # of boxes at a threshold that a pixel may just reach
    assert flat(found) == pytest.approx(flat(expected), abs=1e-5)


def flat(value, name=""):
    """The leaves of nested lists and dictionaries, by their path."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for key, each in items for path, leaf in flat(each, f"{name}/{key}").items()}


def test_beyond_the_queue_requests_are_sent_away_and_the_rest_is_answered(explainer, running, file, monkeypatch):
    serving = running(create_app(explainer, limits=Limits(queue=5)))
    with serving as address, ThreadPoolExecutor(8) as many, held(explainer, monkeypatch) as go_on:
        sent = [many.submit(send, address, file) for _ in range(8)]
        done = [future.result() for future in itertools.islice(as_completed(sent), 3)]
        assert [status for status, _, _ in done] == [503] * 3
        assert all(headers["retry-after"] == "2" for _, headers, _ in done)
        assert json.loads(done[0][2]) == {"error": "5 requests are already waiting; try again in a few seconds"}
        go_on.set()
        assert sorted(future.result()[0] for future in sent) == [200] * 5 + [503] * 3


@contextlib.contextmanager
def held(explainer, monkeypatch):
    """Explain nothing until the event that this gives is set."""
    go_on, explain = threading.Event(), type(explainer).__call__
    with monkeypatch.context() as patch:
        patch.setattr(type(explainer), "__call__", lambda self, images: (go_on.wait(), explain(self, images))[1])
        try:
            yield go_on
        finally:
            go_on.set()


def test_who_goes_away_before_the_turn_is_not_computed_for(explainer, running, file, monkeypatch):
    begun = threading.Semaphore(0)
    preprocess = type(explainer.preprocess).__call__

    def counted(self, image):
        begun.release()
        return preprocess(self, image)

    with running(create_app(explainer, limits=Limits(batch=1))) as address, ThreadPoolExecutor(1) as one:
        monkeypatch.setattr(type(explainer.preprocess), "__call__", counted)
        with held(explainer, monkeypatch):
            sent = one.submit(send, address, file)
            begun.acquire()
            host, port = address.removeprefix("http://").split(":")
            for _ in range(10):  # more than are read ahead
                with socket.create_connection((host, int(port))) as gone:
                    gone.sendall(b"POST /explain HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(file) + file)
            for _ in range(3):  # the server works through what came before
                urllib.request.urlopen(f"{address}/info").close()
        assert sent.result()[0] == 200
        assert send(address, file)[0] == 200
    computed = 0
    while begun.acquire(blocking=False):
        computed += 1
    assert computed <= 1 + 1 + _READ_AHEAD  # the last one, and those whose bodies were read already


def test_the_server_starts_says_where_and_ends_when_it_is_interrupted(onnx_file):
    code = (
        "import sys\n"
        "from embedcam.utils import progress\n"
        "from embedcam.app import serve\n"
        "from embedcam.onnx import OnnxExplainer\n"
        "progress.show()\n"
        "serve(OnnxExplainer(sys.argv[1]), port=0)\n"
        "print('ended')"
    )
    command = [sys.executable, "-c", code, str(onnx_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.readline()
        assert said.startswith("serving at http://127.0.0.1:")
        with urllib.request.urlopen(said.split()[2] + "/info") as answer:
            assert json.load(answer)["about"] == "tiny, 4 clusters of 18 training images"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=600) == ("ended\n", "")
    assert process.returncode == 0


def test_an_address_that_is_taken_or_not_there_is_an_error(explainer):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbedcamError, match=rf"cannot listen on 127.0.0.1, port {port}: .*; choose another --port"):
            serve(explainer, port=port)
    with pytest.raises(EmbedcamError, match=r"cannot listen on no.such.host.invalid, port 7860"):
        serve(explainer, "no.such.host.invalid")
    with pytest.raises(EmbedcamError, match=r"cannot listen on 127.0.0.1, port 70000"):
        serve(explainer, port=70000)


@pytest.mark.parametrize(
    ("host", "token", "warned"), [("0.0.0.0", None, True), ("0.0.0.0", "t", False), ("127.0.0.1", None, False)]
)
def test_a_server_open_to_everyone_is_warned_of(explainer, monkeypatch, caplog, host, token, warned):
    apps = []
    monkeypatch.setattr("embedcam.app.server.uvicorn.Server.run", lambda self, _: apps.append(self.config.app))
    serve(explainer, host, 0, token=token)
    assert ("anyone who can reach" in caplog.text) is warned
    assert len(apps) == 1


@pytest.mark.parametrize("host", ["LOCALHOST", "127.0.1.1"])
def test_the_name_and_address_that_a_server_listens_on_are_allowed(explainer, monkeypatch, host):
    apps = []
    monkeypatch.setattr("embedcam.app.server.uvicorn.Server.run", lambda self, _: apps.append(self.config.app))
    serve(explainer, host, 0)
    with TestClient(apps[0]) as client:
        assert client.get("info", headers={"Host": f"{host}:7860"}).status_code == 200
        assert client.get("info", headers={"Host": "evil.example"}).status_code == 421


def test_a_missing_library_is_named():
    code = (
        "import sys\n"
        "sys.modules['fastapi_offline'] = None\n"
        "import embedcam\n"
        "try: import embedcam.app\n"
        "except embedcam.EmbedcamError as error: assert 'fastapi_offline' in str(error) and 'embedcam[app]' in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_onnx_file_is_served_without_torch(onnx_file, file):
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'faiss', 'safetensors', 'matplotlib', 'sklearn'): sys.modules[name] = None\n"
        "from starlette.testclient import TestClient\n"
        "from embedcam import OnnxExplainer\n"
        "from embedcam.app import create_app\n"
        "with TestClient(create_app(OnnxExplainer(sys.argv[1]))) as client:\n"
        "    answer = client.post('explain', content=sys.stdin.buffer.read(), params={'include': 'overlay'})\n"
        "assert answer.status_code == 200, answer.text\n"
        "assert not [name for name in sys.modules if name.startswith(('embedcam.train', 'embedcam.gradient'))]"
    )
    subprocess.run([sys.executable, "-c", code, str(onnx_file)], input=file, check=True)
