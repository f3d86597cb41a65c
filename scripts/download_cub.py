"""Download CUB-200-2011 and its segmentations in the layout of `cub:PATH`.

    python scripts/download_cub.py data/cub

Downloads about 1.2 GB, and needs as much again to unpack. An interrupted download is resumed. Needs only the standard
library.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

CHUNK = 1 << 18  # bytes
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A .tgz file on a server, its MD5 checksum, and the folder to extract."""

    url: str
    md5: str
    member: str

    @property
    def name(self) -> str:
        """File name."""
        return Path(urlsplit(self.url).path).name


ARCHIVES = (
    Archive(
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
        "97eceeb196236b17998738112f37df78",
        "CUB_200_2011",
    ),
    Archive(
        "https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz?download=1",
        "4d47ba1228eae64f2fa547c47bc65255",
        "segmentations",
    ),
)


class DownloadError(Exception):
    """A failed download, in one line."""


class Progress:
    """Progress in one line on a terminal, and in ten lines elsewhere."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.step = name, total, -1

    def show(self, done: int) -> None:
        """Show the number of received bytes."""
        terminal = sys.stdout.isatty()
        steps = 100 if terminal else 10
        step = done * steps // self.total if self.total else (done >> 20) * steps // 1000
        if step == self.step:
            return
        self.step = step
        share = f"{100 * done // self.total:3d} % of {self.total / 1e6:,.1f} MB" if self.total else ""
        line = f"{self.name}: {share or f'{done / 1e6:,.1f} MB'}"
        print(f"\r{line}" if terminal else line, end="" if terminal else "\n", flush=True)

    def end(self) -> None:
        """End the line."""
        if sys.stdout.isatty():
            print(flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Download CUB-200-2011 and its segmentations for cub:PATH.")
    parser.add_argument("path", type=Path, help="folder for CUB_200_2011 and segmentations, such as data/cub")
    path = parser.parse_args(arguments).path
    try:
        if not hasattr(tarfile, "data_filter"):
            raise DownloadError("this Python version cannot unpack safely; use 3.10.12, 3.11.4 or newer")
        path.mkdir(parents=True, exist_ok=True)
        for archive in ARCHIVES:
            install(archive, path)
    except (DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to resume", file=sys.stderr)
        return 130
    print(f"done: use it as cub:{path} or cub-metric:{path}")
    return 0


def install(archive: Archive, path: Path) -> None:
    """Download and unpack one archive, unless its folder exists."""
    if (path / archive.member).exists():
        print(f"{archive.member}: already exists")
        return
    file = path / archive.name
    if not file.exists():
        part = path / f"{archive.name}.part"
        fetch(archive.url, part)
        part.replace(file)
    md5 = md5_of(file)
    if md5 != archive.md5:
        file.unlink()
        raise DownloadError(
            f"{file} has MD5 {md5} instead of {archive.md5} and was removed; run the same command again"
        )
    print(f"{archive.name}: unpacking", flush=True)
    unpack(file, archive.member, path)
    file.unlink()


def fetch(url: str, part: Path) -> None:
    """Download to `part`, and retry for as long as every attempt makes progress."""
    while True:
        before = _size(part)
        try:
            return _receive(url, part)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if type(error) is urllib.error.URLError else error
            if _size(part) <= before:
                raise DownloadError(
                    f"cannot download {url}: {reason}; check the connection, then run the same command again"
                ) from error
            print(f"{part.name}: connection lost ({reason}); resuming", flush=True)


def _receive(url: str, part: Path) -> None:
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # the file is complete; its MD5 is checked later
            return
        raise
    with response:
        if response.status != 206:  # the server does not resume, and sends the whole file
            start = 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        progress = Progress(part.stem, total)
        try:
            with part.open("ab" if start else "wb") as file:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    progress.show(file.tell())
        finally:
            progress.end()
    if total is not None and _size(part) < total:
        raise ConnectionError(f"received {_size(part):,} of {total:,} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def md5_of(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def unpack(file: Path, member: str, path: Path) -> None:
    """Unpack next to the target and rename, so that an existing folder is always complete."""
    staging = path / f".{member}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with tarfile.open(file) as tar:
            tar.extractall(staging, filter="data")
        (staging / member).rename(path / member)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DownloadError(f"cannot unpack {file}: {error}; free some space or remove the file") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
