"""From the SPEC of a data set, as it is typed on the command line, to its pictures."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from .camvid import CAMVID_SPLITS, camvid
from .cub import cub
from .digits import digits
from .folder import folder
from .pets import pets
from .samples import Samples
from .splits import SPLITS
from .wds import wds

_READERS: dict[str, Callable[[str, str], Samples]] = {
    "folder": folder,
    "cub": cub,
    "cub-metric": functools.partial(cub, protocol="metric"),
    "pets": pets,
    "camvid": camvid,
    "wds": wds,
}

KINDS = ("digits", *_READERS)


def load(spec: str, split: str = "train") -> Samples:
    """Load a data set by its SPEC.

    Args:
        spec: `digits`, `folder:PATH`, `cub:PATH`, `cub-metric:PATH`, `pets:PATH`, `camvid:PATH` or `wds:PATTERN`; a
            trailing `@train`, `@test` or `@all` (and `@val` of camvid) overrides `split`.
        split: "train", "test" or "all"; "val" of camvid.

    Returns:
        The pictures of the split.

    Raises:
        DataError: If the SPEC is malformed or the data set cannot be read.
        MissingDependencyError: If the data set needs a library that is not installed.
    """
    kind, path, own = parse(spec)
    return _read(kind, path, own or split)


def load_gallery(spec: str) -> Samples | None:
    """Load the images among which the neighbours of a SPEC's test images are looked for: its training images.

    Args:
        spec: As `load` takes it.

    Returns:
        The pictures; None where the SPEC names another split than the test images.

    Raises:
        DataError: As `load`.
        MissingDependencyError: As `load`.
    """
    kind, path, own = parse(spec)
    return _read(kind, path, "train") if own in (None, "test") else None


def _read(kind: str, path: str, split: str) -> Samples:
    return digits(split) if kind == "digits" else _READERS[kind](path, split)


def parse(spec: str) -> tuple[str, str, str | None]:
    """Take a SPEC apart.

    Args:
        spec: As `load` takes it.

    Returns:
        (kind, path, split): the path is "" for a kind that has none, the split None where it is not given.

    Raises:
        DataError: If the kind is unknown, or a path is missing or not wanted.
    """
    rest, at, last = spec.rpartition("@")
    split = last if has_split(spec) else None
    body = spec if split is None else rest
    kind, colon, path = body.partition(":")
    if kind not in KINDS:
        raise DataError(_unknown(spec, body, kind))
    if kind == "digits" and colon:
        raise DataError(f"data set {spec!r}: digits is built in and takes no path; write 'digits'")
    if kind != "digits" and not path:
        raise DataError(f"data set {spec!r}: {kind} needs a path; write {_usage(kind)!r}")
    if split is None and at and last.isalpha() and _exists(path.rpartition("@")[0]) and not _exists(path):
        raise DataError(f"data set {spec!r}: unknown split {last!r}; choose one of {', '.join(_splits(spec))}")
    return kind, path, split


def has_split(spec: str) -> bool:
    """Tell whether a SPEC names its split itself.

    Args:
        spec: As `load` takes it.

    Returns:
        True for `digits@test`, False for `digits`.
    """
    return spec.rpartition("@")[0] != "" and spec.rpartition("@")[2] in _splits(spec)


def _splits(spec: str) -> tuple[str, ...]:
    return CAMVID_SPLITS if spec.startswith("camvid") else SPLITS


def _exists(path: str) -> bool:
    return Path(path).expanduser().exists()


def _unknown(spec: str, body: str, kind: str) -> str:
    if body and Path(body).expanduser().is_dir():
        return f"data set {spec!r} is a plain folder; write 'folder:{spec}'"
    name, at, split = kind.partition("@")
    if at and name in KINDS:
        return f"data set {spec!r}: unknown split {split!r}; choose one of {', '.join(_splits(spec))}"
    close = difflib.get_close_matches(kind.lower(), KINDS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown data set {spec!r}; {hint}the kinds are {', '.join(_usage(kind) for kind in KINDS)}"


def _usage(kind: str) -> str:
    return {"digits": kind, "wds": f"{kind}:PATTERN"}.get(kind, f"{kind}:PATH")
