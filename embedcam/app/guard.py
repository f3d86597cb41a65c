"""Who may use the server: the token, the names it answers to, and what its pages may load."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import EmbedcamError
from .limits import RateLimit, Refused

STATIC = Path(__file__).parent / "static"
_COOKIE, _STYLE = "embedcam", "/static/style.css"
_LONGEST_FORM = 4096
# All that the page loads is the server's own; pictures are the visitor's files, shown without being sent anywhere else.
_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def refusal(error: EmbedcamError) -> Response:
    """Answer with an error.

    Args:
        error: Of any kind; `Refused` has a status of its own.

    Returns:
        `{"error": ...}`, one line.
    """
    status, headers = (error.status, error.headers) if isinstance(error, Refused) else (422, {})
    return JSONResponse({"error": " ".join(str(error).split())}, status, headers)


class Guard:
    """Stands before the whole application.

    Args:
        app: The application.
        token: What a request must bear, or None to let everyone in: as `Authorization: Bearer TOKEN`, or as the cookie
            that a visitor gets who types it into the page.
        hosts: Names that the server answers to, or None for any. A server on this machine alone must not answer to
            another: a web page elsewhere can give this machine's address to a name of its own.
        rate: Counts wrong tokens.
        open_policy: Paths of pages of others, whose scripts stand in the page.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Collection[str] | None,
        rate: RateLimit,
        open_policy: Collection[str] = (),
    ) -> None:
        self._app, self._hosts, self._rate, self._open_policy = app, hosts, rate, open_policy
        self._token = None if token is None else token.strip().encode()
        # Whoever reads the cookie does not learn the token.
        self._pass = hashlib.sha256(b"embedcam " + (self._token or b"")).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                if scope["path"] in self._open_policy:
                    headers["Content-Security-Policy"] = (
                        f"{_POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
                    )
            await send(message)

        try:
            answer = await self._answer(Request(scope, receive))
        except Refused as error:
            answer = refusal(error)
        await (answer or self._app)(scope, receive, send_with_headers)

    async def _answer(self, request: Request) -> Response | None:
        """Give what is answered here; None for what may pass."""
        if self._hosts is not None and _host(request) not in self._hosts:
            raise Refused(
                421,
                f"this server answers to {' and '.join(sorted(self._hosts))} alone; use one, or bind it with --host",
            )
        if request.method == "POST" and request.headers.get("sec-fetch-site") == "cross-site":
            raise Refused(403, "a page of another site sent this; use the server's own page, or the API from a program")
        if self._token is None or request.url.path == _STYLE:  # which the page that asks for the token needs
            return None
        if request.method == "POST" and request.url.path == "/login":
            return await self._login(request)
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.encode("latin-1")):
            return None
        if secrets.compare_digest(request.cookies.get(_COOKIE, "").encode(), self._pass.encode()):
            return None
        self._rate.take(address(request))
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return FileResponse(STATIC / "login.html", 401)
        answer = refusal(
            Refused(401, "this server wants its token; send it as the header `Authorization: Bearer TOKEN`")
        )
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    async def _login(self, request: Request) -> Response:
        self._rate.take(address(request))
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_FORM:
                raise Refused(413, "this is longer than any token; send the token alone")
        given = parse_qs(body.decode(errors="replace")).get("token", [""])[0]
        if not self._is_token(given.encode()):
            page = (STATIC / "login.html").read_text()
            return HTMLResponse(page.replace(" hidden>", ">"), 401)  # it says that this was wrong
        answer = RedirectResponse("./", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(_COOKIE, self._pass, httponly=True, samesite="strict", secure=secure)
        return answer

    def _is_token(self, given: bytes) -> bool:
        assert self._token is not None
        return secrets.compare_digest(given.strip(), self._token)


def address(request: Request) -> str:
    """Say where a request comes from.

    Args:
        request: The request.

    Returns:
        An IP address; "" where there is none, as on a socket of this machine.
    """
    return request.client.host if request.client else ""


def _host(request: Request) -> str | None:
    """The server's name as the visitor has it."""
    try:
        return request.url.hostname
    except ValueError:  # a name that cannot be taken apart
        return None
