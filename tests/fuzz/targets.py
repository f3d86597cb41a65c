"""The kinds of files to corrupt, and how they are used."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        seeds: Returns valid files.
        spoils: Mutations.
        use: Uses a file as embedcam does.
        suffix: Extension of the file.
        seal: Appends a valid checksum to a corrupt file.
    """

    seeds: Callable[[], list[bytes]]
    spoils: tuple[mutations.Spoil, ...]
    use: Callable[[Path], Any]
    suffix: str
    seal: Callable[[bytes], bytes] = bytes

    def input(self, rng: np.random.Generator) -> bytes:
        """Create one corrupt file."""
        content = mutations.pick(rng, self.spoils)(rng, mutations.pick(rng, self.seeds()))
        # One in eight has no valid checksum.
        return self.seal(content) if rng.integers(8) else content


@functools.cache
def golden(name: str, checksum: int = 0) -> list[bytes]:
    content = (GOLDEN / name).read_bytes()
    return [content[: len(content) - checksum]]


def use_database(path: Path) -> None:
    import embedcam
    from embedcam.database.verify import verify

    verify(path)
    db = embedcam.WeightDatabase.load(path)
    db.facts()
    db.typicality(np.zeros(db.clusters, int), np.linspace(0, 2, db.clusters).astype(np.float32))
    db.anomaly(np.ones(1, np.float32))
    for cluster in range(min(db.clusters, 10)):
        db.labels_of(cluster)
    transfers = ["soft-contrast", *(["neighbors"] if db.exemplars is not None else [])]
    for transfer in transfers:
        explanation = embedcam.Explainer(_network(), db, transfer=transfer)(_picture((32, 32)))
        assert np.isfinite(explanation.heatmaps).all()


def use_network(path: Path) -> None:
    import torch

    import embedcam

    net = embedcam.EmbeddingNet.load(path)
    with torch.inference_mode():
        net.activations(torch.from_numpy(_picture((32, 32))))
    net.sha256()


def use_onnx(path: Path) -> None:
    import embedcam

    explainer = embedcam.OnnxExplainer(path, threads=1)
    size = tuple(min(side, 256) for side in explainer.preprocess.input_size)
    explanation = explainer(_picture(size))
    assert 0 <= explanation.heatmaps.min() <= explanation.heatmaps.max() <= 1
    for cluster in explanation.clusters:
        explainer.labels_of(int(cluster))


def use_image(path: Path) -> None:
    from embedcam.data.images import image_size, read_image, read_mask
    from embedcam.errors import DataError

    size = image_size(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == size
    for options in ({}, {"threshold": 99}, {"value": 3}):
        with contextlib.suppress(DataError):  # a mask of several numbers a pixel has no value
            read_mask(path, size, empty_ok=True, **options)


def use_video(path: Path) -> None:
    from embedcam.video.video import open_video

    last = -1
    with open_video(path) as video:
        for frame in video.frames():
            assert frame.pts > last
            last = frame.pts
            assert frame.picture().ndim == 3


def use_request(path: Path) -> None:
    """Read a form as the server does; the file is its body."""
    from starlette.requests import Request

    from embedcam.app.limits import Limits
    from embedcam.app.uploads import read_uploads

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": path.read_bytes()}

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    for upload in asyncio.run(read_uploads(request, Limits(), ("image",))):
        assert upload.picture(Limits()).mode == "RGB"


def use_list(path: Path) -> None:
    """Use the file as the list of the training images of a folder."""
    from embedcam.data import load

    root = path.parent / "data"
    for name in LISTED:
        image = root / "images" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            image.write_bytes(pictures("PNG")[0])
    (root / "test.txt").write_text(f"{LISTED[-1]}\n")
    (root / "train.txt").write_bytes(path.read_bytes())
    samples = load(f"folder:{root}", "train")
    assert set(samples.ids) <= set(LISTED)
    samples.image(0)


@functools.cache
def _network() -> Any:
    import embedcam

    return embedcam.EmbeddingNet.load(GOLDEN / "net-1.safetensors")


def _picture(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)


def _encoded(form: str, *modes: str, **options: Any) -> list[bytes]:
    """Small pictures of several modes, with an orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    pixels[5:15, 4:12] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for mode in modes:
        wide = mode in ("I;16", "I", "F")
        grey = pixels[..., 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 200 if wide else None
        picture = Image.fromarray(grey) if wide else Image.fromarray(pixels).convert(mode)
        buffer = io.BytesIO()
        picture.save(buffer, form, **options, **({} if form in ("GIF", "BMP", "PPM") else {"exif": exif}))
        files.append(buffer.getvalue())
    return files


@functools.cache
def pictures(form: str) -> list[bytes]:
    few = [Image.new("P", (24, 20), color) for color in range(3)]
    match form:
        case "PNG":
            return [*_encoded("PNG", "RGB", "RGBA", "LA", "P", "1", "I;16"), *_encoded("PNG", "RGB", save_all=True)]
        case "JPEG":
            return [*_encoded("JPEG", "RGB", "L", "CMYK"), *_encoded("JPEG", "RGB", progressive=True)]
        case "GIF":
            return [*_encoded("GIF", "P", "L"), *_encoded("GIF", "P", save_all=True, append_images=few)]
        case "TIFF":
            packed = [_encoded("TIFF", "RGB", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_deflate")]
            return sum(packed, _encoded("TIFF", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "F"))
        case "WEBP":
            return [*_encoded("WEBP", "RGB", "RGBA"), *_encoded("WEBP", "RGB", lossless=True)]
        case _:
            return [*_encoded("BMP", "RGB", "P"), *_encoded("PPM", "RGB", "L")]


@functools.cache
def videos() -> list[bytes]:
    """Short videos, one with timestamps that jump, and one with pixels that are not square."""
    import av

    files = []
    for form, codec, aspect in (
        ("mp4", "h264", 1),
        ("matroska", "h264", 2),
        ("mpegts", "h264", 1),
        ("avi", "mjpeg", 1),
    ):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=form) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            for shade in range(0, 250, 50):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        files.append(buffer.getvalue() * (2 if form == "mpegts" else 1))
    return files


@functools.cache
def forms() -> list[bytes]:
    """Bodies with a picture, and with a text before it."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    text = b'--x\r\nContent-Disposition: form-data; name="comment"\r\n\r\nhello\r\n'
    body = head + pictures("PNG")[0] + b"\r\n--x--\r\n"
    return [body, text + body]


def lists() -> list[bytes]:
    text = "".join(f"{name}\n" for name in LISTED[:-1])
    return [text.encode(), text.replace("\n", "\r\n").encode("utf-8-sig")]


def _seal_database(content: bytes) -> bytes:
    from embedcam.database.store import seal

    return seal(content)


def _seal_onnx(content: bytes) -> bytes:
    from embedcam.onnx.explainer import with_checksum

    return with_checksum(content)


def _image(form: str, *more: mutations.Spoil) -> Target:
    return Target(lambda: pictures(form), (mutations.spoil_bytes, *more), use_image, f".{form.lower()}")


LISTED = ("a/0.png", "a/1.png", "b/é 2.png", "b/3.png")
TRAILER = len("\nembedcam-sha256:") + 64
ONNX_TRAILER = 2 + 2 + 15 + 2 + 64
TARGETS = {
    "database": Target(
        lambda: golden("weights-1.0.0.h5", TRAILER),
        (mutations.spoil_bytes, mutations.spoil_hdf5, mutations.spoil_hdf5, mutations.spoil_bomb),
        use_database,
        ".h5",
        _seal_database,
    ),
    "network": Target(
        lambda: golden("net-1.safetensors"),
        (mutations.spoil_bytes, mutations.spoil_safetensors),
        use_network,
        ".safetensors",
    ),
    "onnx": Target(
        lambda: golden("explainer-1.onnx", ONNX_TRAILER),
        (mutations.spoil_bytes, mutations.spoil_onnx, mutations.spoil_onnx),
        use_onnx,
        ".onnx",
        _seal_onnx,
    ),
    "png": _image("PNG", mutations.spoil_png, mutations.spoil_png),
    "jpeg": _image("JPEG"),
    "gif": _image("GIF"),
    "tiff": _image("TIFF"),
    "webp": _image("WEBP"),
    "bmp, ppm": _image("other"),
    "video": Target(videos, (mutations.spoil_bytes,), use_video, ".mkv"),
    "request": Target(forms, (mutations.spoil_bytes,), use_request, ".form"),
    "list": Target(lists, (mutations.spoil_bytes,), use_list, ".txt"),
}
