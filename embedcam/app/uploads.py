"""Read pictures from requests: raw bytes or a form, within the limits."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive

from ..data.images import _opened, read_image
from ..errors import DataError
from .limits import Limits, Refused

_FORM_OVERHEAD = 65_536  # bytes of part headers and boundaries
_MAX_NAME_LENGTH = 200


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
        request: A form with a file per field, or for a single field also the bytes of the picture.
        limits: Limits of the server.
        fields: Field names of the form.

    Returns:
        One upload per field.

    Raises:
        Refused: If a picture is missing, is too large, or does not arrive in time.
    """
    form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"
    if not form and len(fields) > 1:
        raise Refused(415, f"expected a form (multipart/form-data) with the files {' and '.join(fields)}; send one")
    request = Request(request.scope, _capped(request.receive, _max_bytes(limits, len(fields)), limits))
    reading = _read_form(request, limits, fields) if form else _read_raw(request, limits)
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


async def _read_raw(request: Request, limits: Limits) -> list[Upload]:
    content = await request.body()
    if len(content) > limits.upload:
        raise _too_large(limits)
    return [Upload("picture", content)]


async def _read_form(request: Request, limits: Limits, fields: tuple[str, ...]) -> list[Upload]:
    uploads = []
    async with request.form(max_files=len(fields), max_fields=0) as form:
        for field in fields:
            file = form.get(field)
            if not isinstance(file, UploadFile):
                raise Refused(422, f'the form has no file in the field "{field}"; send the picture there')
            if (file.size or 0) > limits.upload:
                raise _too_large(limits)
            uploads.append(Upload(_base_name(file.filename or ""), await file.read()))
    return uploads


def _base_name(filename: str) -> str:
    name = PurePosixPath(filename.replace("\\", "/")).name
    return "".join(character for character in name if character.isprintable())[:_MAX_NAME_LENGTH] or "picture"
