"""The routes of the HTTP API: requests in, responses out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, TypeAdapter
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..explain.explanation import Explanation
from .limits import Gate
from .schemas import Channel, CompareResponse, ExplainOptions, ExplainResponse, MatchOptions, MatchResponse
from .search import Search
from .service import Prepared, Service
from .uploads import Upload

# Media type and end of the name of each file format.
_FILES = {
    "overlay": ("image/png", "overlay.png"),
    "heatmap": ("image/png", "heatmap.png"),
    "evidence": ("image/png", "evidence.png"),
    "npz": ("application/octet-stream", "maps.npz"),
}
_BINARY = {"type": "string", "format": "binary"}
_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"schema": _BINARY} for kind, _ in _FILES.values()}}
}
_CHANNELS = TypeAdapter(list[Channel])
# Reads the files of these fields, and computes the response from them.
Respond = Callable[[Request, tuple[str, ...], Callable[..., Awaitable[Response]]], Awaitable[Response]]


def add_explanations(app: FastAPI, service: Service, respond: Respond, gate: Gate) -> None:
    """Add the routes that explain pictures.

    Args:
        app: The application.
        service: What computes the responses.
        respond: Reads the files of a request, and computes the response from them.
        gate: What the other requests pass.
    """

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

    @app.get("/exemplars/{number}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def exemplar(number: int) -> Response:
        """Return a thumbnail of a training image."""
        return _jpeg(await gate.compute(partial(service.training_images.thumbnail, number)))


def add_search(app: FastAPI, search: Search, respond: Respond, gate: Gate) -> None:
    """Add the routes that search a gallery.

    Args:
        app: The application.
        search: What computes the responses.
        respond: As for `add_explanations`.
        gate: What the other requests pass.
    """

    @app.post("/match", response_model=MatchResponse, openapi_extra=_body("image"))
    async def match(request: Request, options: Annotated[MatchOptions, Query()]) -> Response:
        """Find the most similar images of the gallery, and explain why each of them matches."""

        async def work(upload: Upload) -> Response:
            return await gate.compute(lambda: _json(search.match(upload, options)))

        return await respond(request, ("image",), work)

    @app.get("/gallery/{row}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def gallery_picture(row: int) -> Response:
        """Return what the network saw of an image of the gallery."""
        return _jpeg(await gate.compute(partial(search.picture, row)))


def _body(*fields: str) -> dict[str, Any]:
    """OpenAPI description of a request body."""
    form = {"type": "object", "required": list(fields), "properties": dict.fromkeys(fields, _BINARY)}
    content: dict[str, dict[str, Any]] = {"multipart/form-data": {"schema": form}}
    if len(fields) == 1:
        content["image/*"] = {"schema": _BINARY}
    return {"requestBody": {"required": True, "content": content}}


def _json(result: BaseModel) -> Response:
    return Response(result.model_dump_json(by_alias=True), media_type="application/json")


def _jpeg(content: bytes) -> Response:
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})


def _file(content: bytes, name: str, kind: str) -> Response:
    media_type, suffix = _FILES[kind]
    filename = quote(f"{PurePosixPath(name).stem}-{suffix}", safe="")
    headers = {"Content-Disposition": f"inline; filename*=UTF-8''{filename}"}
    return Response(content, media_type=media_type, headers=headers)
