"""Pictures out of requests: raw bytes or a form, never more than is allowed, never a path."""

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

# Of a form around its files: headers of the parts, and boundaries.
_FORM_BYTES = 65_536
_LONGEST_NAME = 200


class Upload(NamedTuple):
    """A picture's file as it was sent.

    Attributes:
        name: What the sender calls it, without folders: for messages and answers, never a path.
        content: Its bytes.
    """

    name: str
    content: bytes

    def picture(self, limits: Limits) -> Image.Image:
        """Decode it.

        Args:
            limits: How many pixels it may have, looked up before it is decoded.

        Returns:
            An RGB picture, upright.

        Raises:
            Refused: If it is no picture that can be read, or too large.
        """
        try:
            with _opened(self.name, self.content) as image:
                width, height = image.size
            if width * height <= limits.pixels:
                return read_image(self.name, self.content)
        except DataError as error:
            raise Refused(415, str(error)) from error
        raise Refused(413, f"{self.name} has {width} x {height} pixels, more than {limits.pixels:,}; shrink it")


async def read_uploads(request: Request, limits: Limits, fields: tuple[str, ...]) -> list[Upload]:
    """Read the pictures of a request.

    Args:
        request: A form with a file in each of the fields; or, for one field, the bytes of the picture alone.
        limits: How many bytes, how long.
        fields: Of the form.

    Returns:
        One a field.

    Raises:
        Refused: If more comes than is allowed, it takes too long, or lacks a picture.
    """
    form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"
    if not form and len(fields) > 1:
        raise Refused(415, f"expected a form (multipart/form-data) with the files {' and '.join(fields)}; send one")
    request = Request(request.scope, _capped(request.receive, _most(limits, len(fields)), limits))
    reading = _read_form(request, limits, fields) if form else _read_raw(request, limits)
    try:
        return await asyncio.wait_for(reading, limits.patience)
    except asyncio.TimeoutError as error:
        raise Refused(408, f"the picture did not arrive within {limits.patience:g} s; send a smaller one") from error


def require_length(request: Request, limits: Limits, files: int = 1) -> None:
    """Refuse a body that says itself that it is too long, before any of it is read.

    Args:
        request: The request.
        limits: How many bytes a file may have.
        files: How many there are.

    Raises:
        Refused: If it is too long.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > _most(limits, files):
        raise _too_large(limits)


def _most(limits: Limits, files: int) -> int:
    return files * limits.upload + _FORM_BYTES


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"a picture's file may have {limits.upload / 1e6:g} MB at most; shrink it")


def _capped(receive: Receive, most: int, limits: Limits) -> Receive:
    so_far = 0

    async def capped() -> Message:
        nonlocal so_far
        message = await receive()
        so_far += len(message.get("body", b""))
        if so_far > most:
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
                raise Refused(422, f'no file in the form\'s field "{field}"; send the picture there')
            if (file.size or 0) > limits.upload:
                raise _too_large(limits)
            uploads.append(Upload(_name(file.filename or ""), await file.read()))
    return uploads


def _name(given: str) -> str:
    last = PurePosixPath(given.replace("\\", "/")).name
    return "".join(character for character in last if character.isprintable())[:_LONGEST_NAME] or "picture"
