"""Names of files: how they are compared, shortened and expanded."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path

from ..errors import DataError

LONGEST_NAME = 255
"""Most bytes of a file name on common file systems."""


def bounded_name(name: str, suffix: str = "") -> str:
    """Append a suffix to a file name, and shorten the name to what file systems accept.

    Args:
        name: A file name, or "/"-separated names of folders and a file; only the last is shortened.
        suffix: What is appended to it, such as ".png".

    Returns:
        `name` + `suffix` if that has at most 255 bytes; otherwise the beginning of the name, a dash and 8 digits that
        depend on the whole name, and the suffix.
    """
    folder, slash, last = name.rpartition("/")
    if len(os.fsencode(last + suffix)) > LONGEST_NAME:
        suffix = f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{suffix}"
        last = shortened(last, LONGEST_NAME - len(os.fsencode(suffix)))
    return f"{folder}{slash}{last}{suffix}"


def normal_name(name: str) -> str:
    """Convert a name to the form in which names are compared.

    Args:
        name: Name of a file, folder or class. macOS may decompose letters with accents.

    Returns:
        The name in Unicode's composed normal form (NFC).
    """
    return unicodedata.normalize("NFC", name)


def expand_user(path: str | Path) -> Path:
    """Replace a leading ~ or ~user by the home folder.

    Args:
        path: The path.

    Returns:
        The path, without ~.

    Raises:
        DataError: If there is no such user, or the home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"the home folder of {Path(path).parts[0]} is unknown; write the whole path of {path}"
        ) from error


def shortened(name: str, size: int) -> str:
    """Cut a name between letters.

    Args:
        name: The name.
        size: Most bytes to keep.

    Returns:
        Its beginning.
    """
    while len(os.fsencode(name)) > size:
        name = name[:-1]
    return name
