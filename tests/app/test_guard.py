"""Who gets in."""

import pytest
from starlette.testclient import TestClient

from embedcam.app import create_app
from embedcam.app.limits import Limits

TOKEN = "geheim wörtlich"  # spaces and letters that are not ASCII are allowed
PATHS = ("", "info", "docs", "openapi.json", "static/page.js", "static/docs/swagger-ui.css", "exemplars/0", "nowhere")


@pytest.fixture
def files(file):
    return {"image": ("a.png", file)}


@pytest.fixture
def locked(explainer, folder):
    with TestClient(create_app(explainer, token=TOKEN, data=f"folder:{folder}")) as client:
        yield client


def bearer(token):
    return {"Authorization": f"Bearer {token}".encode()}


def test_nothing_is_given_without_the_token(locked, files):
    for headers in ({}, bearer("wrong"), bearer(""), {"Authorization": TOKEN.encode()}, {"Cookie": "embedcam=wrong"}):
        for path in PATHS:
            answer = locked.get(path, headers=headers)
            assert (answer.status_code, list(answer.json())) == (401, ["error"])
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("explain", "compare", "channels"):
            assert locked.post(path, files=files, headers=headers).status_code == 401


def test_the_token_opens_everything(locked, files):
    for path in PATHS[:-1]:
        assert locked.get(path, headers=bearer(TOKEN)).status_code == 200
    assert locked.post("explain", files=files, headers=bearer(TOKEN)).status_code == 200


def test_a_visitor_types_the_token_and_gets_a_cookie_that_is_not_the_token(locked, files):
    page = {"Accept": "text/html"}
    asked = locked.get("", headers=page)
    assert asked.status_code == 401
    assert 'action="login"' in asked.text
    assert locked.get("static/style.css").status_code == 200

    wrong = locked.post("login", data={"token": "geheim"})
    assert (wrong.status_code, 'role="alert">' in wrong.text, 'role="alert">' in asked.text) == (401, True, False)
    assert locked.get("info").status_code == 401

    right = locked.post("login", data={"token": TOKEN}, follow_redirects=False)
    assert (right.status_code, right.headers["location"]) == (303, "./")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "geheim" not in cookie
    assert locked.get("", headers=page).status_code == 200
    assert locked.post("explain", files=files).status_code == 200
    assert locked.post("login", data={"token": "x" * 5000}).status_code == 413


def test_tokens_are_compared_in_constant_time(locked, monkeypatch):
    compared = []
    monkeypatch.setattr("embedcam.app.guard.secrets.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    locked.get("info", headers=bearer("geheim"))
    assert (b"geheim", TOKEN.encode()) in compared
    assert len(compared) == 2  # and the cookie


def test_tokens_cannot_be_tried_out_quickly(explainer):
    with TestClient(create_app(explainer, token=TOKEN, limits=Limits(rate=20))) as client:
        tried = [client.get("info", headers=bearer(str(n))).status_code for n in range(20)]
        tried += [client.post("login", data={"token": str(n)}).status_code for n in range(3)]
    assert tried == [401] * 20 + [429] * 3


def test_a_name_that_is_not_the_servers_own_is_refused(explainer):
    """A page elsewhere may give this machine's address to a name of its own, and read what that name answers."""
    with TestClient(create_app(explainer, hosts={"localhost", "127.0.0.1", "::1"})) as client:
        for host in ("localhost", "localhost:7860", "127.0.0.1:80", "[::1]:7860", "LOCALHOST"):
            assert client.get("info", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "evil.example:7860"):
            answer = client.get("info", headers={"Host": host})
            assert (answer.status_code, "localhost" in answer.json()["error"]) == (421, True), host


def test_pages_of_other_sites_cannot_send_pictures(client, files):
    assert client.post("explain", files=files, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    for site in ("same-origin", "none"):
        assert client.post("explain", files=files, headers={"Sec-Fetch-Site": site}).status_code == 200


def test_pages_may_load_from_here_alone(client):
    for path in ("", "info", "nowhere", "static/page.js"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
    assert client.get("info").headers["cache-control"] == "no-store"
