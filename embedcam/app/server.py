"""The HTTP API, and the page that uses it."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection
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
from .answers import Channel, Compared, Explained, Info, Wanted, Wrong
from .guard import STATIC, Guard, address, refusal
from .limits import Gate, Limits, RateLimit, Refused
from .service import Service
from .uploads import Upload, read_uploads, require_length

if TYPE_CHECKING:
    from ..explain import Explainer, OnnxExplainer

logger = logging.getLogger("embedcam")

# Of the files that can be asked for: media type, and the end of the name.
_FILES = {
    "overlay": ("image/png", "overlay.png"),
    "heatmap": ("image/png", "heatmap.png"),
    "npz": ("application/octet-stream", "maps.npz"),
}
_BINARY = {"type": "string", "format": "binary"}
_WRONG: dict[int | str, dict[str, Any]] = {
    status: {"model": Wrong, "description": why}
    for status, why in {
        401: "The token is missing or wrong.",
        413: "The file is too long, or has too many pixels.",
        415: "This is no picture that can be read.",
        422: "A parameter or a file is missing or wrong, or this explainer cannot do it.",
        429: "Too many requests in a minute; see Retry-After.",
        503: "Too many requests at once; see Retry-After.",
    }.items()
}
_MAY_BE_A_FILE: dict[int | str, dict[str, Any]] = {
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
) -> FastAPI:
    """Make the application: an ASGI app for any server.

    Args:
        explainer: What explains.
        token: What every request must bear; None lets everyone in.
        data: SPEC of the data set that the weight database was built from, to show its images; None to name them.
        limits: How much it takes on.
        hosts: Names that it answers to; None for any.

    Returns:
        The application.

    Raises:
        DataError: If the data set cannot be read, or holds none of the training images.
        EmbedcamError: If the token is empty.
    """
    if token is not None and not token.strip():
        raise EmbedcamError("the token is empty; give one that is hard to guess, or none")
    limits = limits or Limits()
    service, gate, rate = Service(explainer, limits, data), Gate(limits), RateLimit(limits.rate)
    known = service.info()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        gate.close()

    app = FastAPIOffline(
        redoc_url=None,
        static_url="/static/docs",
        title="embedcam",
        version=__version__,
        description="Explains pictures with an embedding network: one forward pass each, nothing is kept of them.",
        responses=_WRONG,
        lifespan=lifespan,
        # It only tells the documentation about the token, which `Guard` looks at before anything else.
        dependencies=[Security(HTTPBearer(auto_error=False))] if token is not None else [],
    )
    app.add_middleware(Guard, token=token, hosts=hosts, rate=rate, open_policy={"/docs"})
    _answer_errors(app)

    async def answer(request: Request, fields: tuple[str, ...], work: Callable[..., Response]) -> Response:
        """Read the pictures when it is their turn, and work on them in a thread."""
        rate.take(address(request))
        require_length(request, limits, len(fields))
        async with gate.entered():
            uploads = await read_uploads(request, limits, fields)
            if await request.is_disconnected():
                raise ClientDisconnect
            return await gate.compute(partial(work, *uploads))

    @app.post("/explain", response_model=Explained, openapi_extra=_takes("image"), responses=_MAY_BE_A_FILE)
    async def explain(request: Request, wanted: Annotated[Wanted, Query()]) -> Response:
        """Explain one picture: where the network looks, and what it takes the picture for."""

        def work(upload: Upload) -> Response:
            found = service.explain(upload, wanted)
            return _json(found) if isinstance(found, BaseModel) else _file(found, upload.name, wanted.format)

        return await answer(request, ("image",), work)

    @app.post("/compare", response_model=Compared, openapi_extra=_takes("image", "other"))
    async def compare(request: Request) -> Response:
        """Say what two pictures share in the eyes of the network, and where they differ."""
        return await answer(request, ("image", "other"), lambda image, other: _json(service.compare(image, other)))

    @app.post("/channels", response_model=list[Channel], openapi_extra=_takes("image"))
    async def channels(request: Request) -> Response:
        """Show the strongest channels of a picture, each by itself."""

        def work(upload: Upload) -> Response:
            return Response(_CHANNELS.dump_json(service.channels(upload)), media_type="application/json")

        return await answer(request, ("image",), work)

    @app.get("/info")
    async def info() -> Info:
        """Say what is explained with, and what can be asked."""
        return known

    @app.get("/exemplars/{number}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def exemplar(number: int) -> Response:
        """Show a training image, small."""
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
) -> None:
    """Serve the page and the API until interrupted.

    Args:
        explainer: What explains.
        host: Address to listen at, or a name of it; by default that of this machine, which no other reaches.
        port: TCP port; any free one if 0.
        token: What every request must bear; None lets everyone in.
        data: SPEC of the data set that the weight database was built from, to show its images; None to name them.
        limits: How much it takes on.

    Raises:
        EmbedcamError: If the address cannot be listened at, or the token is empty.
        DataError: If the data set cannot be read, or holds none of the training images.
    """
    with _listening(host, port) as listening:
        own, port = listening.getsockname()[:2]
        alone = ipaddress.ip_address(own).is_loopback
        if not alone and token is None:
            logger.warning("everyone who reaches %s can use this server; give it a --token", host)
        hosts = {"localhost", "127.0.0.1", "::1", host} if alone else None
        app = create_app(explainer, token=token, data=data, limits=limits, hosts=hosts)
        where = f"[{host}]" if ":" in host else host
        progress.say(f"serving at http://{where}:{port} (the API is described at /docs); Ctrl-C ends it")
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has closed everything
            uvicorn.Server(config).run([listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Looking up a name takes the port modulo 65536.
        return socket.create_server((where[0], port), family=family)
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise EmbedcamError(
            f"cannot listen at {host}, port {port}: {reason}; choose another --port or --host"
        ) from error


def _takes(*fields: str) -> dict[str, Any]:
    """Document what a request's body is."""
    form = {"type": "object", "required": list(fields), "properties": dict.fromkeys(fields, _BINARY)}
    content: dict[str, dict[str, Any]] = {"multipart/form-data": {"schema": form}}
    if len(fields) == 1:
        content["image/*"] = {"schema": _BINARY}
    return {"requestBody": {"required": True, "content": content}}


def _json(found: BaseModel) -> Response:
    return Response(found.model_dump_json(by_alias=True), media_type="application/json")


def _file(content: bytes, name: str, kind: str) -> Response:
    media_type, end = _FILES[kind]
    named = quote(f"{PurePosixPath(name).stem}-{end}", safe="")
    return Response(
        content, media_type=media_type, headers={"Content-Disposition": f"inline; filename*=UTF-8''{named}"}
    )


def _answer_errors(app: FastAPI) -> None:
    """Make every error one line of JSON."""

    @app.exception_handler(EmbedcamError)
    async def refused(_: Request, error: EmbedcamError) -> Response:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path}"
        answer = refusal(Refused(error.status_code, f"{what}: {error.detail}; see /docs"))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = [
            f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}, got {item['input']!r}" for item in error.errors()
        ]
        return refusal(Refused(422, f"{'; '.join(found)}; see /docs"))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> Response:
        return refusal(Refused(500, "the server failed at this; its log says why"))
