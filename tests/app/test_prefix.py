"""The application under a prefix: mounted in another application, and behind a proxy."""

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from embedcam.app import create_app

TOKEN = "something-long"


def mounted(*explainer, **options):
    app = create_app(*explainer, **options)
    return Starlette(routes=[Mount("/cam", app)], lifespan=lambda _: app.router.lifespan_context(app))


def keeping(*explainer, **options):
    return create_app(*explainer, root_path="/cam/", **options)


def removing(*explainer, **options):
    app = create_app(*explainer, root_path="cam", **options)

    async def proxy(scope, receive, send):
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].removeprefix("/cam")}
        await app(scope, receive, send)

    return proxy


@pytest.fixture(params=[mounted, keeping, removing])
def prefixed(request, explainer, folder):
    app = request.param(explainer, token=TOKEN, data=f"folder:{folder}")
    with TestClient(app, base_url="http://testserver/cam/") as client:
        yield client


def test_a_visitor_logs_in_and_everything_answers(prefixed, file):
    page = {"Accept": "text/html"}
    assert prefixed.get("", headers=page).status_code == 401
    assert prefixed.get("static/style.css").status_code == 200
    answer = prefixed.post("login", data={"token": TOKEN}, headers=page)
    assert (answer.status_code, answer.url.path) == (200, "/cam/")
    assert "Path=/cam/" in answer.history[0].headers["set-cookie"]
    for path in ("info", "docs", "openapi.json", "static/page.js", "static/docs/swagger-ui.css", "exemplars/0"):
        assert prefixed.get(path).status_code == 200, path
    assert prefixed.post("explain", files={"image": ("a.png", file)}).status_code == 200
    assert prefixed.get("http://testserver/cam", headers=page).url.path == "/cam/"
    assert prefixed.get("none").json()["error"].endswith("see /cam/docs")


def test_the_documentation_runs_its_scripts_and_knows_the_prefix(prefixed):
    prefixed.headers["Authorization"] = f"Bearer {TOKEN}"
    docs = prefixed.get("docs")
    assert "'unsafe-inline'" in docs.headers["content-security-policy"]
    assert "/cam/static/docs/swagger-ui-bundle.js" in docs.text
    assert "unsafe" not in prefixed.get("").headers["content-security-policy"]
    assert {"url": "/cam"} in prefixed.get("openapi.json").json()["servers"]


def test_a_visitor_of_a_deeper_address_is_sent_to_the_login_page(prefixed):
    answer = prefixed.get("exemplars/0", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.url.path) == (401, "/cam/")


def test_cookies_of_an_application_above_do_not_log_out(explainer):
    client = TestClient(create_app(explainer, token=TOKEN))
    client.post("login", data={"token": TOKEN})
    right = client.cookies["embedcam"]
    for cookies in (f"embedcam={right}; embedcam=other", f"embedcam=other; embedcam={right}"):
        assert TestClient(client.app).get("info", headers={"Cookie": cookies}).status_code == 200
