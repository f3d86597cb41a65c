"""Read pictures from requests: raw bytes or a form, within the limits."""

from __future__ import annotations

import asyncio
import sys
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Message, Receive

from ..data.images import _opened, read_image
from ..errors import DataError
from .limits import Limits, Refused

_FORM_OVERHEAD = 65_536  # bytes of part headers and boundaries
_MAX_NAME_LENGTH = 200
_MAX_PARTS = 100  # of a form, further fields are ignored


class Upload(NamedTuple):
    """An uploaded image file.

    Attributes:
        name: File name without folders, for messages and responses; never used as a path.
        content: Bytes of the file.
    """

    name: str
    content: bytes

    def picture(self, limits: Limits) -> Image.Image:
        """Decode the picture, after a check of its size.

        Args:
            limits: Limits of the server.

        Returns:
            An upright RGB picture.

        Raises:
            Refused: If it cannot be read, or has too many pixels.
        """
        try:
            with _opened(self.name, self.content) as image:
                width, height = image.size
            if width * height <= limits.pixels:
                return read_image(self.name, self.content)
        except DataError as error:
            raise Refused(415, str(error)) from error
        raise Refused(413, f"{self.name} has {width} x {height} pixels, more than {limits.pixels:,}; scale it down")


async def read_uploads(request: Request, limits: Limits, fields: tuple[str, ...]) -> list[Upload]:
    """Read the pictures of a request.

    Args:
        request: A form with a file per field and any others, or for a single field also the bytes of the picture.
        limits: Limits of the server.
        fields: Field names of the form.

    Returns:
        One upload per field.

    Raises:
        Refused: If a picture is missing, is too large, or does not arrive in time.
    """
    form = _content_type(request) == "multipart/form-data"
    if not form and len(fields) > 1:
        raise Refused(415, f"expected a form (multipart/form-data) with the files {' and '.join(fields)}; send one")
    request = Request(request.scope, _capped(request.receive, _max_bytes(limits, len(fields)), limits))
    reading = _read_form(request, limits, fields) if form else _read_raw(request, limits, fields[0])
    try:
        return await asyncio.wait_for(reading, limits.timeout)
    except asyncio.TimeoutError as error:
        raise Refused(408, f"the picture did not arrive within {limits.timeout:g} s; send a smaller one") from error


def require_length(request: Request, limits: Limits, files: int = 1) -> None:
    """Check the Content-Length before reading the body.

    Args:
        request: The request.
        limits: Limits of the server.
        files: Number of files in the request.

    Raises:
        Refused: If the body is too long.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > _max_bytes(limits, files):
        raise _too_large(limits)


def _max_bytes(limits: Limits, files: int) -> int:
    return files * limits.upload + _FORM_OVERHEAD


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"an image file may have at most {limits.upload / 1e6:g} MB; send a smaller one")


def _capped(receive: Receive, max_bytes: int, limits: Limits) -> Receive:
    received = 0

    async def capped() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _too_large(limits)
        return message

    return capped


async def _read_raw(request: Request, limits: Limits, field: str) -> list[Upload]:
    kind = _content_type(request)
    if kind.startswith("multipart/") or kind.endswith("json"):
        raise Refused(415, f'got {kind}; send the bytes of the picture, or a form with the file in the field "{field}"')
    content = await request.body()
    if len(content) > limits.upload:
        raise _too_large(limits)
    if kind == "application/x-www-form-urlencoded" and content.startswith(f"{field}=".encode()):  # curl --data
        raise Refused(415, f"a URL-encoded form holds no file; with curl, write --form {field}=@FILE")
    return [Upload("picture", content)]


class _MemoryParser(MultiPartParser):
    """Keeps files in memory, where the size of the body is limited: a server may have no temporary folder."""

    spool_max_size = max_file_size = sys.maxsize  # the second in older versions of starlette


async def _read_form(request: Request, limits: Limits, fields: tuple[str, ...]) -> list[Upload]:
    parser = _MemoryParser(request.headers, request.stream(), max_files=_MAX_PARTS, max_fields=_MAX_PARTS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, f"cannot read the form: {error.message.rstrip('.')}; send each picture as a file") from error
    uploads = []
    for field in fields:
        found = form.getlist(field)
        if len(found) != 1:
            number = f"{len(found)} files" if found else "no file"
            raise Refused(422, f'the form has {number} in the field "{field}"; send one picture there')
        file = found[0]
        if isinstance(file, str):
            text = f"the text {file[:40]!r}" if file else "no text"
            raise Refused(422, f'the field "{field}" has {text} and no file; with curl, write --form {field}=@FILE')
        if (file.size or 0) > limits.upload:
            raise _too_large(limits)
        uploads.append(Upload(_base_name(file.filename or ""), await file.read()))
    return uploads


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _base_name(filename: str) -> str:
    name = PurePosixPath(filename.replace("\\", "/")).name
    return "".join(character for character in name if character.isprintable())[:_MAX_NAME_LENGTH] or "picture"
