"""The HTTP API and the web page."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response

from .._version import __version__
from ..errors import EmbedcamError
from ..show import colorize
from ..utils import progress
from ..utils.memory import keep_freed_memory
from .guard import STATIC, Guard, client_address, error_response
from .limits import Gate, Limits, RateLimit, Refused
from .routes import add_explanations, add_search
from .schemas import Colormap, Error, Info, base64_text
from .search import Search
from .service import Service
from .uploads import read_uploads, require_length

if TYPE_CHECKING:
    from ..explain import Explainer
    from ..gallery import Gallery
    from ..onnx import OnnxExplainer

logger = logging.getLogger("embedcam")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description}
    for status, description in {
        400: "The form cannot be read.",
        401: "The token is missing or wrong.",
        413: "The file is too large, or has too many pixels.",
        415: "The file is not a readable image.",
        422: "A parameter or file is missing or invalid, or this explainer does not support the request.",
        429: "Too many requests per minute; see Retry-After.",
        503: "Too many requests are waiting; see Retry-After.",
    }.items()
}


def create_app(
    explainer: Explainer | OnnxExplainer | None = None,
    *,
    gallery: Gallery | None = None,
    token: str | None = None,
    data: str | None = None,
    limits: Limits | None = None,
    hosts: Collection[str] | None = None,
    root_path: str = "",
) -> FastAPI:
    """Create the ASGI application.

    Args:
        explainer: The explainer, or None to search alone.
        gallery: The images that are searched, or None.
        token: Token that every request must have, or None.
        data: SPEC of the data set that the weight database was built from, to show training images. None names them.
        limits: Limits of the server.
        hosts: Allowed host names, in lower case; None allows any.
        root_path: Prefix of all paths behind a proxy, which may remove it, such as "/cam". A mounted application knows
            its prefix.

    Returns:
        The application.

    Raises:
        DataError: If the data set cannot be read, or has none of the exemplars.
        EmbedcamError: If the token is empty, or neither an explainer nor a gallery is given.
    """
    if explainer is None and gallery is None:
        raise EmbedcamError("nothing to serve; give an explainer, a gallery, or both")
    if token is not None and not token.strip():
        raise EmbedcamError("the token is empty; use one that is hard to guess, or None")
    limits = limits or Limits()
    gate, rate = Gate(limits), RateLimit(limits.rate)
    service = None if explainer is None else Service(explainer, limits, data, gallery)
    search = None if gallery is None else Search(gallery, limits)
    ramp = np.linspace(0, 1, 256)[None]
    server_info = Info(
        **(search.info() if search else {}) | (service.info() if service else {}),
        upload=limits.upload,
        pixels=limits.pixels,
        colormaps={name: base64_text(colorize(ramp, name).tobytes()) for name in get_args(Colormap)},
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        gate.close()
        if service is not None:
            service.close()

    app = FastAPIOffline(
        redoc_url=None,
        static_url="/static/docs",
        title="embedcam",
        version=__version__,
        description="Explains pictures and matches with an embedding network. No picture is stored.",
        responses=_ERRORS,
        lifespan=lifespan,
        # For the documentation only: `Guard` checks the token.
        dependencies=[Security(HTTPBearer(auto_error=False))] if token is not None else [],
    )
    prefix = f"/{root_path.strip('/')}".rstrip("/")
    app.add_middleware(Guard, token=token, hosts=hosts, rate=rate, root_path=prefix, open_policy={"/docs"})
    _add_error_handlers(app)

    async def respond(request: Request, fields: tuple[str, ...], work: Callable[..., Awaitable[Response]]) -> Response:
        rate.take(client_address(request))
        require_length(request, limits, len(fields))
        async with gate.entered():
            uploads = await read_uploads(request, limits, fields)
            if await request.is_disconnected():
                raise ClientDisconnect
            return await work(*uploads)

    if service is not None:
        add_explanations(app, service, respond, gate)
    if search is not None:
        add_search(app, search, respond, gate)

    @app.get("/info")
    async def info() -> Info:
        """Describe the explainer and the limits of the server."""
        return server_info

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def serve(
    explainer: Explainer | OnnxExplainer | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    gallery: Gallery | None = None,
    token: str | None = None,
    data: str | None = None,
    limits: Limits | None = None,
    root_path: str = "",
) -> None:
    """Serve the page and the API until interrupted.

    Args:
        explainer: As for `create_app`.
        host: Address or host name to listen on; by default only this machine can connect.
        port: TCP port; 0 picks a free one.
        gallery: As for `create_app`.
        token: Token that every request must have, or None.
        data: SPEC of the data set that the weight database was built from, to show training images. None names them.
        limits: Limits of the server.
        root_path: As for `create_app`.

    Raises:
        EmbedcamError: If the address is not available, or the token is empty.
        DataError: If the data set cannot be read, or has none of the exemplars.
    """
    keep_freed_memory()
    with _listen(host, port) as server_socket:
        address, port = server_socket.getsockname()[:2]
        loopback = ipaddress.ip_address(address).is_loopback
        if not loopback and token is None:
            logger.warning("anyone who can reach %s can use this server; set a --token", host)
        hosts = {"localhost", "127.0.0.1", "::1", address, host.lower()} if loopback else None
        app = create_app(
            explainer, gallery=gallery, token=token, data=data, limits=limits, hosts=hosts, root_path=root_path
        )
        url_host = f"[{host}]" if ":" in host else host
        progress.say(f"serving at http://{url_host}:{port} (API documentation at /docs); press Ctrl-C to stop")
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn re-raises it after shutdown
            uvicorn.Server(config).run([server_socket])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Not the port of `address`: getaddrinfo takes it modulo 65536.
        return socket.create_server((address[0], port), family=family)
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise EmbedcamError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host"
        ) from error


def _docs(request: Request) -> str:
    return f"{request.scope['root_path']}/docs"


def _add_error_handlers(app: FastAPI) -> None:

    @app.exception_handler(EmbedcamError)
    async def refused(_: Request, error: EmbedcamError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        target = f"{request.method} {request.url.path}"
        response = error_response(Refused(error.status_code, f"{target}: {error.detail}; see {_docs(request)}"))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}, got {item['input']!r}" for item in error.errors()
        )
        return error_response(Refused(422, f"{problems}; see {_docs(request)}"))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # never received

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> Response:
        return error_response(Refused(500, "internal error; see the server log"))
