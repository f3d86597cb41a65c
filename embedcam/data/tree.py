"""Find the pictures below a folder, and count what is left out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .images import EXTENSIONS

logger = logging.getLogger("embedcam")

# Folders of thumbnails and deleted files that network storage and operating systems create, in lower case.
_SYSTEM = frozenset(
    ("@eadir", "@recycle", "@__thumb", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "__macosx")
)
# Files that nobody expects to be read as pictures.
_COMPANIONS = frozenset(
    (
        *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".html", ".htm", ".yaml", ".yml", ".toml", ".ini"),
        *(".cfg", ".log", ".db", ".lnk", ".py", ".ipynb", ".npy", ".npz", ".h5", ".hdf5", ".pt", ".pth", ".onnx"),
        *(".safetensors", ".f32"),
    )
)
# What embedcam writes, by a file that is beside it.
_OUTPUTS = {
    "explanations.jsonl": ("overlays", "maps", "contact_sheet.png"),
    "explanations.jsonl.parts": ("overlays", "maps", "contact_sheet.png"),
    "pairs.jsonl": ("pairs",),
    "scores.json": ("gallery.png",),
}
_CLASSMAP = ("boxes", "classes")


@dataclass
class Tree:
    """The pictures below a folder.

    Attributes:
        root: The folder.
        folders: Names of the pictures in each folder, sorted; a folder is given by the parts of its relative path.
        problems: Messages about folders that cannot be listed.
        left_out: Number of files and folders that are left out, by kind.
    """

    root: Path
    folders: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def ids(self) -> list[str]:
        """List the "/"-separated relative paths of all pictures, folder by folder."""
        return ["/".join((*parts, name)) for parts, names in self.folders.items() for name in names]

    def warn(self) -> None:
        """Log a warning per folder that cannot be listed, and one that counts everything left out."""
        for problem in self.problems:
            logger.warning("%s", problem)
        if self.left_out:
            count = self.left_out.total()
            logger.warning("%d files or folders left out of %s: %s", count, self.root, describe(self.left_out))


def describe(left_out: Counter[str]) -> str:
    """Describe what is left out in a few words.

    Args:
        left_out: Number of files by kind.

    Returns:
        Such as ".heic 20, broken links 10".
    """
    kinds = [f"{kind} {count}" for kind, count in left_out.most_common(6)]
    more = [f"{len(left_out) - 6} other kinds"] if len(left_out) > 6 else []
    return ", ".join(kinds + more)


def find_pictures(root: Path, out: Path | None = None) -> Tree:
    """Find the pictures below a folder by extension, also behind symbolic links.

    Hidden files and folders, and folders that storage systems create, such as `@eaDir`, are not searched. Every folder
    is listed once, however many links lead to it. What embedcam wrote in an earlier run is left out.

    Args:
        root: The folder.
        out: Folder that the run writes to, in which everything that embedcam writes is left out.

    Returns:
        The pictures.

    Raises:
        DataError: If `root` is missing or cannot be listed.
    """
    tree = Tree(root)
    written = None if out is None or not out.exists() else _identity(out)
    seen = {_identity(parent) for parent in root.resolve().parents}  # a link to one of them is a loop
    waiting: list[tuple[str, ...]] = [()]
    linked: list[tuple[str, ...]] = []  # searched last: a folder belongs to its own place, not to that of a link
    while waiting or linked:
        parts = waiting.pop() if waiting else linked.pop(0)
        folder = root.joinpath(*parts)
        try:
            if (identity := _identity(folder)) in seen:
                tree.left_out["links to listed folders"] += 1
                continue
            seen.add(identity)
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            problem = f"cannot list {folder}: {error.strerror or error}; pass a readable folder"
            if not parts:
                raise DataError(problem) from error
            tree.problems.append(problem)
            tree.left_out["folders that cannot be listed"] += 1
            continue
        present = {entry.name for entry in found}
        own = _own_output(present, _OUTPUTS if identity == written else present)
        tree.folders[parts] = names = []
        for entry in found:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                continue
            if entry.name in own:
                tree.left_out["embedcam's own output"] += 1
            elif _is(entry, "dir"):
                (linked if entry.is_symlink() else waiting).append((*parts, entry.name))
            elif entry.name.lower().endswith(EXTENSIONS) and _is(entry, "file"):
                names.append(entry.name)
            elif entry.is_symlink() and not _is(entry, "file"):
                tree.left_out["broken links"] += 1
            elif (suffix := Path(entry.name).suffix.lower()) not in _COMPANIONS:
                tree.left_out[suffix or "without extension"] += 1
    tree.folders = dict(sorted(tree.folders.items()))
    return tree


def _own_output(present: set[str], marks: Iterable[str]) -> set[str]:
    """Select what embedcam itself wrote into a folder, by the names that are present and the marks beside them."""
    own = {name for mark in marks for name in _OUTPUTS.get(mark, ())}
    own |= {f"{Path(name).stem}.png" for name in present if name.endswith(".safetensors")}  # the training curve
    mapped = {name.removesuffix("_boxes.png") for name in present if name.endswith("_boxes.png")}  # by classmap
    return own | {f"{name}_{kind}.png" for name in mapped if f"{name}_classes.png" in present for kind in _CLASSMAP}


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:  # a link to itself
        return False
