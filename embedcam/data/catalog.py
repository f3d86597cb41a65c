"""Data sets by SPEC, as it is typed on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from ..errors import DataError
from ..registry import Registry
from ..utils.names import expand_user
from .samples import Samples
from .splits import SPLITS


@dataclass(frozen=True)
class Dataset:
    """A kind of data set, registered in `DATASETS` under the prefix of its SPEC.

    Attributes:
        read: Takes the SPEC without prefix and split, and the split; returns the images of the split.
        argument: What follows the prefix, for messages and help, such as "PATH"; "" if nothing does.
        splits: The splits that `read` accepts.
    """

    read: Callable[[str, str], Samples]
    argument: str = "PATH"
    splits: tuple[str, ...] = SPLITS


DATASETS: Registry[Dataset] = Registry("data set", "embedcam.datasets", DataError, home="embedcam.data.sets")


def load(spec: str, split: str = "train", *, mask_threshold: int | None = None) -> Samples:
    """Load a data set by its SPEC.

    Args:
        spec: The prefix of a registered data set, and its argument: `digits`, `folder:PATH`, `wds:PATTERN`; a trailing
            `@train`, `@test` or `@all` overrides `split`.
        split: "train", "test" or "all", or another split of this data set.
        mask_threshold: Brightness, 0 to 254, above which a pixel of a mask belongs to the object; 127 if None.

    Returns:
        The images of the split.

    Raises:
        DataError: If the SPEC is malformed or the data set cannot be read, or if the masks of the data set are not
            read by brightness and `mask_threshold` is given.
        MissingDependencyError: If the data set needs a library that is not installed.
    """
    name, argument, own_split = parse(spec)
    samples: Any = _read(spec, name, argument, own_split or split)
    if mask_threshold is not None:
        by_brightness = hasattr(samples, "mask_threshold") and getattr(samples, "mask_reader", None) is None
        if not (by_brightness and samples.has_masks):
            raise DataError(f"{spec} has no masks that are read by brightness; leave --mask-threshold out")
        samples = replace(samples, mask_threshold=mask_threshold)
    return cast(Samples, samples)


def load_queries(spec: str, *, mask_threshold: int | None = None) -> Samples:
    """Load the images of a SPEC that are evaluated.

    Args:
        spec: As for `load`.
        mask_threshold: Likewise.

    Returns:
        The images of the split that the SPEC names; otherwise the queries of a data set with queries and a gallery,
        and the test images of any other.

    Raises:
        DataError: As `load`.
        MissingDependencyError: As `load`.
    """
    return load(spec, "query" if has_queries(spec) else "test", mask_threshold=mask_threshold)


def load_gallery(spec: str) -> Samples | None:
    """Load the images of a SPEC among which the neighbours of its queries are searched.

    Args:
        spec: As for `load`.

    Returns:
        The gallery of a data set with queries and a gallery, the training images of any other; None if the SPEC names
        another split than the queries or the test images, which are then searched themselves.

    Raises:
        DataError: As `load`.
        MissingDependencyError: As `load`.
    """
    name, argument, own_split = parse(spec)
    queries, gallery = ("query", "gallery") if has_queries(spec) else ("test", "train")
    return _read(spec, name, argument, gallery) if own_split in (None, queries) else None


def load_all(spec: str, *, mask_threshold: int | None = None) -> Samples:
    """Load all images of the data set of a SPEC, whichever split it names.

    Args:
        spec: As for `load`.
        mask_threshold: Likewise.

    Returns:
        The images.

    Raises:
        DataError: As `load`.
        MissingDependencyError: As `load`.
    """
    whole = spec.rpartition("@")[0] if has_split(spec) else spec
    return load(whole, "all", mask_threshold=mask_threshold)


def _read(spec: str, name: str, argument: str, split: str) -> Samples:
    try:
        return DATASETS[name].read(argument, split)
    except OSError as error:
        raise DataError(f"data set {spec!r} cannot be read: {error}; check the path") from error


def parse(spec: str) -> tuple[str, str, str | None]:
    """Split a SPEC into its parts.

    Args:
        spec: As for `load`.

    Returns:
        (name, argument, split): the argument is "" for a data set that takes none, the split None if not given.

    Raises:
        DataError: If the data set is unknown, or its argument is missing or superfluous.
    """
    head, at, last = spec.rpartition("@")
    split = last if has_split(spec) else None
    body = spec if split is None else head
    name, colon, argument = body.partition(":")
    if body and name not in DATASETS and _exists(body):
        raise DataError(f"data set {spec!r} is a plain path; write 'folder:{spec}' if it is a folder of images")
    name, misspelt, other = name.partition("@")  # `digits@val`: what follows is no split
    expected = DATASETS[name].argument
    if misspelt:
        raise DataError(_unknown_split(spec, other))
    if colon and not expected:
        raise DataError(f"data set {spec!r}: {name} takes no argument; write {name!r}")
    if expected and not argument:
        raise DataError(f"data set {spec!r}: {name} needs {expected}; write {DATASETS.usage(name)!r}")
    if split is None and at and last.isalpha() and _exists(argument.rpartition("@")[0]) and not _exists(argument):
        raise DataError(_unknown_split(spec, last))
    return name, argument, split


def has_split(spec: str) -> bool:
    """Tell whether a SPEC names its split.

    Args:
        spec: As for `load`.

    Returns:
        True for `digits@test`, False for `digits`.
    """
    body, _, split = spec.rpartition("@")
    return body != "" and split in _splits(body)


def has_queries(spec: str) -> bool:
    """Tell whether a data set comes with queries and a gallery.

    Args:
        spec: As for `load`.

    Returns:
        True for `market1501:PATH`, False for `digits`.
    """
    return "query" in _splits(spec)


def _splits(spec: str) -> tuple[str, ...]:
    name = spec.partition(":")[0].partition("@")[0]
    return DATASETS[name].splits if name in DATASETS else SPLITS


def _unknown_split(spec: str, split: str) -> str:
    return f"data set {spec!r}: unknown split {split!r}; choose one of {', '.join(_splits(spec))}"


def _exists(path: str) -> bool:
    return expand_user(path).exists()
