"""The HTTP API and the web page."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response

from .._version import __version__
from ..errors import EmbedcamError
from ..utils import progress
from ..utils.memory import keep_freed_memory
from .guard import STATIC, Guard, client_address, error_response
from .limits import Gate, Limits, RateLimit, Refused
from .schemas import Channel, CompareResponse, Error, ExplainOptions, ExplainResponse, Info
from .service import Prepared, Service
from .uploads import Upload, read_uploads, require_length

if TYPE_CHECKING:
    from ..explain import Explainer
    from ..explain.explanation import Explanation
    from ..onnx import OnnxExplainer

logger = logging.getLogger("embedcam")

# Media type and end of the name of each file format.
_FILES = {
    "overlay": ("image/png", "overlay.png"),
    "heatmap": ("image/png", "heatmap.png"),
    "evidence": ("image/png", "evidence.png"),
    "npz": ("application/octet-stream", "maps.npz"),
}
_BINARY = {"type": "string", "format": "binary"}
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
_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"schema": _BINARY} for kind, _ in _FILES.values()}}
}
_CHANNELS = TypeAdapter(list[Channel])


def create_app(
    explainer: Explainer | OnnxExplainer,
    *,
    token: str | None = None,
    data: str | None = None,
    limits: Limits | None = None,
    hosts: Collection[str] | None = None,
    root_path: str = "",
) -> FastAPI:
    """Create the ASGI application.

    Args:
        explainer: The explainer.
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
        EmbedcamError: If the token is empty.
    """
    if token is not None and not token.strip():
        raise EmbedcamError("the token is empty; use one that is hard to guess, or None")
    limits = limits or Limits()
    service, gate, rate = Service(explainer, limits, data), Gate(limits), RateLimit(limits.rate)
    server_info = service.info()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        gate.close()
        service.close()

    app = FastAPIOffline(
        redoc_url=None,
        static_url="/static/docs",
        title="embedcam",
        version=__version__,
        description="Explains pictures with an embedding network. No picture is stored.",
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

    @app.post("/explain", response_model=ExplainResponse, openapi_extra=_body("image"), responses=_FILE_RESPONSES)
    async def explain(request: Request, options: Annotated[ExplainOptions, Query()]) -> Response:
        """Explain one picture: its cluster, and the heat map of the regions that put it there."""

        def drawn(prepared: Prepared, explanation: Explanation) -> Response:
            result = service.respond(prepared, explanation, options)
            return _json(result) if isinstance(result, BaseModel) else _file(result, prepared.name, options.format)

        async def work(upload: Upload) -> Response:
            prepared = await gate.compute(partial(service.prepare, upload, options))
            if await request.is_disconnected():
                raise ClientDisconnect
            explanation = await asyncio.wrap_future(service.explain(prepared))
            return await gate.compute(partial(drawn, prepared, explanation))

        return await respond(request, ("image",), work)

    @app.post("/compare", response_model=CompareResponse, openapi_extra=_body("image", "other"))
    async def compare(request: Request) -> Response:
        """Compare two pictures: what they share, and where they differ."""

        async def work(image: Upload, other: Upload) -> Response:
            return await gate.compute(lambda: _json(service.compare(image, other)))

        return await respond(request, ("image", "other"), work)

    @app.post("/channels", response_model=list[Channel], openapi_extra=_body("image"))
    async def channels(request: Request) -> Response:
        """List the strongest channels of a picture."""

        async def work(upload: Upload) -> Response:
            found = await gate.compute(partial(service.channels, upload))
            return Response(_CHANNELS.dump_json(found), media_type="application/json")

        return await respond(request, ("image",), work)

    @app.get("/info")
    async def info() -> Info:
        """Describe the explainer and the limits of the server."""
        return server_info

    @app.get("/exemplars/{number}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def exemplar(number: int) -> Response:
        """Return a thumbnail of a training image."""
        content = await gate.compute(partial(service.training_images.thumbnail, number))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def serve(
    explainer: Explainer | OnnxExplainer,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    token: str | None = None,
    data: str | None = None,
    limits: Limits | None = None,
    root_path: str = "",
) -> None:
    """Serve the page and the API until interrupted.

    Args:
        explainer: The explainer.
        host: Address or host name to listen on; by default only this machine can connect.
        port: TCP port; 0 picks a free one.
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
        app = create_app(explainer, token=token, data=data, limits=limits, hosts=hosts, root_path=root_path)
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


def _body(*fields: str) -> dict[str, Any]:
    """OpenAPI description of a request body."""
    form = {"type": "object", "required": list(fields), "properties": dict.fromkeys(fields, _BINARY)}
    content: dict[str, dict[str, Any]] = {"multipart/form-data": {"schema": form}}
    if len(fields) == 1:
        content["image/*"] = {"schema": _BINARY}
    return {"requestBody": {"required": True, "content": content}}


def _json(result: BaseModel) -> Response:
    return Response(result.model_dump_json(by_alias=True), media_type="application/json")


def _file(content: bytes, name: str, kind: str) -> Response:
    media_type, suffix = _FILES[kind]
    filename = quote(f"{PurePosixPath(name).stem}-{suffix}", safe="")
    headers = {"Content-Disposition": f"inline; filename*=UTF-8''{filename}"}
    return Response(content, media_type=media_type, headers=headers)


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
