"""Access control: the token, allowed host names, and security headers."""

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
_MAX_FORM_BYTES = 4096
# The page loads nothing from other hosts; blob: and data: are for pictures that the browser shows locally.
_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def error_response(error: EmbedcamError) -> Response:
    """Turn an error into a response.

    Args:
        error: The error. `Refused` sets its own status, others have status 422.

    Returns:
        JSON with the one-line message as `error`.
    """
    status, headers = (error.status, error.headers) if isinstance(error, Refused) else (422, {})
    return JSONResponse({"error": " ".join(str(error).split())}, status, headers)


class Guard:
    """Middleware that authorises every request and sets security headers.

    Args:
        app: The application.
        token: Token that a request must have, as `Authorization: Bearer TOKEN` or as the cookie that the login page
            sets. None disables it.
        hosts: Allowed host names, in lower case, or None for any. They protect a server on the loopback address from
            DNS rebinding by other web pages.
        rate: Rate limit of failed attempts.
        root_path: Prefix that a proxy serves the application under, which it may remove. By default, the one that the
            application is mounted under.
        open_policy: Paths, below the prefix of the application, of third-party pages that need inline scripts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Collection[str] | None,
        rate: RateLimit,
        root_path: str = "",
        open_policy: Collection[str] = (),
    ) -> None:
        self._app, self._hosts, self._rate = app, hosts, rate
        self._root_path, self._open_policy = root_path, open_policy
        self._token = None if token is None else token.strip().encode()
        # A hash, so that the cookie does not reveal the token.
        self._cookie = hashlib.sha256(b"embedcam " + (self._token or b"")).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root, path = self._root_path or scope.get("root_path", ""), scope["path"]
        if path != root and not path.startswith(f"{root}/"):  # the proxy removed the prefix
            path = root + path
        head = scope["method"] == "HEAD"
        scope = {**scope, "root_path": root, "path": path, "method": "GET" if head else scope["method"]}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                if _route(scope) in self._open_policy:
                    headers["Content-Security-Policy"] = (
                        f"{_POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
                    )
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            response = await self._check(Request(scope, receive))
        except Refused as error:
            response = error_response(error)
        await (response or self._app)(scope, receive, send_with_headers)

    async def _check(self, request: Request) -> Response | None:
        """The response to a login or an unauthorised request; None for a request that may pass."""
        if self._hosts is not None and _hostname(request) not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            raise Refused(421, f"this server only accepts the host names {names}; use one, or set another with --host")
        if request.method == "POST" and request.headers.get("sec-fetch-site") == "cross-site":
            raise Refused(403, "cross-site request; use the server's own page, or call the API from a program")
        route = _route(request.scope)
        if not route:  # the addresses in the page are relative to the slash
            return RedirectResponse(f"{request.scope['path']}/")
        if self._token is None or route == _STYLE:  # the login page needs the style sheet
            return None
        if request.method == "POST" and route == "/login":
            return await self._login(request)
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(credentials.encode("latin-1")):
            return None
        if self._has_cookie(request):
            return None
        self._rate.take(client_address(request))
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            depth = route.count("/") - 1  # the login page's addresses are relative to the root
            return RedirectResponse("../" * depth, 303) if depth else FileResponse(STATIC / "login.html", 401)
        response = error_response(Refused(401, "token missing or wrong; send the header `Authorization: Bearer TOKEN`"))
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _login(self, request: Request) -> Response:
        self._rate.take(client_address(request))
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_FORM_BYTES:
                raise Refused(413, f"the form has more than {_MAX_FORM_BYTES} bytes; send only the token")
        token = parse_qs(body.decode(errors="replace")).get("token", [""])[0]
        if not self._is_token(token.encode()):
            page = (STATIC / "login.html").read_text(encoding="utf-8")
            return HTMLResponse(page.replace(" hidden>", ">"), 401)  # shows the error message
        response = RedirectResponse("./", 303)
        secure = request.url.scheme == "https"
        path = f"{request.scope['root_path']}/"
        response.set_cookie(_COOKIE, self._cookie, path=path, httponly=True, samesite="strict", secure=secure)
        return response

    def _has_cookie(self, request: Request) -> bool:
        """Whether one of the cookies is right: those of applications above this one have the same name."""
        wanted = f"{_COOKIE}={self._cookie}".encode()
        cookies = request.headers.get("cookie", "").split(";")
        return any(secrets.compare_digest(cookie.strip().encode(), wanted) for cookie in cookies)

    def _is_token(self, text: bytes) -> bool:
        assert self._token is not None
        return secrets.compare_digest(text.strip(), self._token)


def _route(scope: Scope) -> str:
    """Path of a request below the prefix that the application is mounted under."""
    path: str = scope["path"]
    return path.removeprefix(scope["root_path"])


def client_address(request: Request) -> str:
    """Return the address of the client.

    Args:
        request: The request.

    Returns:
        An IP address, or "" for a Unix socket.
    """
    return request.client.host if request.client else ""


def _hostname(request: Request) -> str | None:
    try:
        return request.url.hostname
    except ValueError:  # malformed Host header
        return None
