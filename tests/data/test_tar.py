"""The scanner of tar headers against Python's tarfile, and on archives that are damaged or hostile."""

import io
import tarfile

import numpy as np
import pytest

from embedcam.data.tar import members, read
from embedcam.errors import DataError

LONG = "folder/" * 30 + "name.txt"


def write(path, files, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def found(path):
    with path.open("rb") as file:
        return {member.name: read(file, member.offset, member.length) for member in members(file)}


def header(name=b"a.txt", size=b"00000000000\0", kind=b"0"):
    """A header by hand, with the checksum that it needs."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content):
    return content + bytes(-len(content) % 512)


END = bytes(1024)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_of_every_format_are_found_with_their_content(tmp_path, form):
    files = {
        "a.txt": b"",
        "b/c.txt": b"x" * 511,
        "b/d.txt": b"y" * 512,
        "b/e.txt": b"z" * 513,
        "f" * 90 + "/" + "g" * 60: b"in two parts",
        "ä/ö.txt": b"not ASCII",
    }
    if form != tarfile.USTAR_FORMAT:
        files |= {LONG: b"a long name", "after.txt": b"the name of the one before is gone"}
    assert found(write(tmp_path / "a.tar", files, format=form)) == files


def test_only_regular_files_count(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"content")
    (tmp_path / "in" / "hard").hardlink_to(tmp_path / "in" / "file")
    (tmp_path / "in" / "soft").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "in", ".")  # folders, as "tar -cf a.tar ." gives them
        device = tarfile.TarInfo("device")
        device.type, device.size = tarfile.CHRTYPE, 700  # no content follows, whatever is said
        archive.addfile(device)
        archive.addfile(tarfile.TarInfo("last"))
    with tarfile.open(tmp_path / "a.tar") as archive:
        regular = [member.name.removeprefix("./") for member in archive if member.isreg()]
    assert list(found(tmp_path / "a.tar")) == regular
    assert "soft" not in regular and "last" in regular and "device" not in regular


def test_sizes_in_gnu_s_base_256_and_in_pax_headers_count(tmp_path):
    binary = b"\x80" + (7).to_bytes(11, "big")
    record = b"10 size=3\n"
    (tmp_path / "a.tar").write_bytes(
        header(b"a", binary)
        + padded(b"seven..")
        + header(b"x", b"%011o\0" % len(record), b"x")
        + padded(record)
        + header(b"b", b"00000000777\0")
        + padded(b"3..")
        + END
    )
    assert found(tmp_path / "a.tar") == {"a": b"seven..", "b": b"3.."}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it is empty"),
        (header(), "its end is missing"),
        (header() + bytes(100), "its end is missing"),
        (header(size=b"00000002000\0") + padded(b"few"), "1024 bytes, of which 512 are there"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "bytes, of which"),
        (header(size=b"\xff" * 12) + END, "a header has the number"),
        (header(size=b"-0000000001\0") + END, "a header has the number"),
        (header(size=b"0o000000017\0") + END, "a header has the number"),
        (bytes(range(256)) * 4, "not a header of a tar archive \\(decompress a compressed one first\\)"),
        (header() + b"damage" + bytes(506) + END, "not a header of a tar archive.*at byte 512"),
        (header(kind=b"S") + END, "a sparse file"),
        (header(name=b"\xff") + END, "codec can't decode"),
        (header(size=b"00004000000\0", kind=b"L") + bytes(2**20) + END, "a name of 1048576 bytes"),
        *(
            (header(size=b"%011o\0" % len(record), kind=b"x") + padded(record) + header() + END, message)
            for record, message in [
                (b"0 path=a\n", "a damaged pax header"),
                (b"9999 path=a\n", "a damaged pax header"),
                (b"-9 path=a\n", "a damaged pax header"),
                (b"x path=a\n", "invalid literal"),
                (b"11 size=-1\n", "a header has the number"),
                (b"12 path=\xff\xff\n" + b"9 a=bcde\n", "a damaged pax header"),
                (b"29 size=99999999999999999999\n", "a header has the number"),
            ]
        ),
    ],
)
def test_damage_is_one_clear_error(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=f"a.tar is not a complete tar archive: .*{message}"):
        found(tmp_path / "a.tar")


def test_every_truncation_is_noticed(tmp_path):
    whole = write(tmp_path / "whole.tar", {"a": b"1" * 600, LONG: b"2"}).read_bytes()
    used = max(range(len(whole)), key=lambda i: (whole[i] != 0) * i) // 512 * 512 + 512
    for length in range(0, used, 100):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match="is not a complete tar archive"):
            found(tmp_path / "a.tar")


def test_whatever_is_changed_gives_files_or_one_clear_error(tmp_path):
    whole = write(tmp_path / "whole.tar", {"a": b"1" * 600, LONG: b"2", "ä": b"3"}, format=tarfile.PAX_FORMAT)
    content, rng = whole.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, 5 * 1024, rng.integers(1, 5)):
            changed[place] = rng.integers(256)
        for start in range(0, len(changed), 512):  # so that more than the checksum is tried
            block = changed[start : start + 512]
            if block[257:262] == b"ustar":
                block[148:156] = b" " * 8
                changed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
        (tmp_path / "a.tar").write_bytes(changed)
        try:
            assert all(len(part) < len(content) for part in found(tmp_path / "a.tar").values())
        except DataError:
            refused += 1
    assert 0 < refused < 300
