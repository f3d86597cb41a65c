import contextlib
import io
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from embedcam.data import images
from embedcam.data.images import image_size, list_images, read_image, read_mask
from embedcam.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from embedcam.errors import DataError

# 4 wide, 2 high, every pixel another colour: any turn or swap shows.
PIXELS = np.array(
    [
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]],
        [[0, 255, 255], [255, 0, 255], [10, 20, 30], [200, 210, 220]],
    ],
    dtype=np.uint8,
)


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


def read(path):
    picture = read_image(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_rgb_is_read_as_it_is(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS))
    np.testing.assert_array_equal(read(path), PIXELS)
    assert image_size(path) == (4, 2)


def test_picture_outlives_its_file(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    picture = read_image(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(picture), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_becomes_three_equal_channels(tmp_path, mode):
    grey = Image.fromarray(np.array([[0, 255, 255, 0]], dtype=np.uint8)).convert(mode)
    expected = np.repeat([[[0], [255], [255], [0]]], 3, axis=2)
    np.testing.assert_array_equal(read(saved(tmp_path / "a.png", grey)), expected)


def test_transparent_pixels_become_white_and_half_transparent_ones_lighter(tmp_path):
    rgba = np.array([[[200, 0, 100, 255], [200, 0, 100, 0], [200, 0, 100, 128]]], dtype=np.uint8)
    got = read(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    np.testing.assert_array_equal(got[0, :2], [[200, 0, 100], [255, 255, 255]])
    np.testing.assert_allclose(got[0, 2], [227, 127, 177], atol=1)


def test_transparent_grey_becomes_white(tmp_path):
    la = Image.merge("LA", [Image.new("L", (2, 1), 80), Image.fromarray(np.array([[0, 255]], dtype=np.uint8))])
    np.testing.assert_array_equal(read(saved(tmp_path / "a.png", la)), [[[255] * 3, [80] * 3]])


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_transparent_palette_entry_becomes_white(tmp_path, transparency):
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = read(saved(tmp_path / "a.png", palette, transparency=transparency))
    np.testing.assert_array_equal(got, [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]])


def test_transparent_colour_of_a_grey_picture_becomes_white(tmp_path):
    grey = Image.fromarray(np.array([[10, 20, 30]], dtype=np.uint8))
    got = read(saved(tmp_path / "a.png", grey, transparency=20))
    np.testing.assert_array_equal(got[0, :, 0], [10, 255, 30])


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    assert read(saved(tmp_path / "a.tif", cmyk))[0, 0].tolist() == [255, 0, 0]
    red = read(saved(tmp_path / "a.jpg", cmyk, quality=95))[4, 4]
    assert red[0] > 245 and max(red[1:]) < 10


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="older versions of Pillow cannot read what they wrote"
)
def test_ycbcr_becomes_rgb(tmp_path):
    ycbcr = Image.new("RGB", (8, 8), (255, 0, 0)).convert("YCbCr")
    red = read(saved(tmp_path / "b.tif", ycbcr))[4, 4]
    assert red[0] > 245 and max(red[1:]) < 10


@pytest.mark.parametrize("dtype, suffix", [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
def test_16_bit_copy_of_a_picture_gives_the_same_picture(tmp_path, dtype, suffix):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(grey.astype(dtype) * 257))
    np.testing.assert_array_equal(read(path), np.repeat(grey[..., None], 3, axis=2))


def test_big_endian_16_bit_gives_the_same_picture(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 257 * 90, 65535]], dtype=">u2")))
    assert read(path)[0, :, 0].tolist() == [0, 90, 255]


def test_16_bits_are_scaled_by_their_depth_not_by_the_largest_value_of_the_picture(tmp_path):
    for largest in (4000, 4200, 65535):
        path = saved(tmp_path / "a.png", Image.fromarray(np.array([[0, 2570, largest]], dtype=np.uint16)))
        assert read(path)[0, :2, 0].tolist() == [0, 10]


def test_a_tiff_of_12_bits_is_white_at_4095(tmp_path):
    tags = {258: 12, 257: 1, 256: 2, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(header.ljust(122, b"\0") + bytes.fromhex("800fff"))  # 0x800 and 0xfff
    assert read(tmp_path / "a.tif")[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize(
    "values, expected",
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.1, np.nan, 0.2], [26, 0, 51]), ([-np.inf, np.inf, 0.5], [0, 255, 128])],
)
def test_floats_are_black_at_0_and_white_at_1(tmp_path, values, expected):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([values], dtype=np.float32)))
    assert read(path)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    "values, message",
    [
        (np.float32([0, 180]), r"floats must be in 0 to 1, found 0 to 180"),
        (np.float32([-1, 1]), r"floats must be in 0 to 1, found -1 to 1"),
        (np.int32([5, 70_000]), r"integers of more than 8 bits must be in 0 to 65535, found 5 to 70000"),
    ],
)
def test_a_range_that_no_type_declares_is_refused(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        read(saved(tmp_path / "a.tif", Image.fromarray(values[None])))


def test_48_bit_colours_keep_their_upper_8_bits(tmp_path):
    colors = np.array([[[255, 128, 0], [10, 20, 30]]], dtype=">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in colors)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "a.png").write_bytes(png)
    assert read(tmp_path / "a.png").tolist() == [[[255, 128, 0], [10, 20, 30]]]


@pytest.mark.parametrize("size", [(1, 1), (8000, 1), (1, 8000)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp"])
def test_pictures_of_one_pixel_and_strips_are_read_and_prepared(tmp_path, size, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", size, (200, 200, 200)))
    picture = read_image(path)
    assert picture.size == image_size(path) == size
    prepared = Preprocess((6, 8))(picture)
    expected = (np.float32([200] * 3) / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    np.testing.assert_allclose(prepared, np.broadcast_to(expected[:, None, None], (3, 6, 8)), atol=0.05)


def test_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for suffix in ("gif", "webp", "png", "tif"):
        options = {"lossless": True} if suffix == "webp" else {}
        path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
        assert read(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(tmp_path, orientation, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    picture = Image.fromarray(PIXELS)
    path = saved(tmp_path / f"a.{suffix}", picture, exif=exif(orientation), **options)
    picture.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(read(path), upright)
    assert image_size(path) == (upright.shape[1], upright.shape[0])


def test_jpeg_taken_on_its_side_stands_upright(tmp_path):
    wide = Image.fromarray(np.repeat(np.uint8([[255, 0]]), 8, axis=1).repeat(8, axis=0))  # left white, right black
    got = read(saved(tmp_path / "a.jpg", wide, exif=exif(6)))  # 6: turn by 90 degrees clockwise
    assert got.shape == (16, 8, 3)
    assert got[:6].min() > 200 and got[10:].max() < 55


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_make_a_picture_unreadable(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(read(path), PIXELS)
    assert image_size(path) == (4, 2)


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def in_file(content, read):
    """Read bytes as a file, where a fixture's folder would be shared by all examples."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").write_bytes(content)
        return read(Path(folder) / "a")


def encoded(pixels, form="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


@given(SIDES.flatmap(lambda side: arrays.arrays("u1", (*side, 3))), st.sampled_from(["png", "bmp", "ppm", "tiff"]))
@settings(max_examples=40)
def test_any_colours_come_back_as_they_were(pixels, form):
    content = encoded(pixels, form)
    np.testing.assert_array_equal(in_file(content, read_image), pixels)
    assert in_file(content, image_size) == pixels.shape[1::-1]


@given(SIDES.flatmap(lambda side: arrays.arrays("u1", (*side, 4))))
@settings(max_examples=40)
def test_any_transparency_is_laid_on_white(pixels):
    colour, alpha = pixels[..., :3].astype(float), pixels[..., 3:] / 255
    found = np.asarray(in_file(encoded(pixels), read_image), dtype=float)
    np.testing.assert_allclose(found, colour * alpha + 255 * (1 - alpha), atol=1.01)


@given(SIDES.flatmap(lambda side: arrays.arrays("u2", side)))
@settings(max_examples=40)
def test_any_16_bit_picture_keeps_its_order(pixels):
    found = np.asarray(in_file(encoded(pixels), read_image))
    assert (found[..., 0] == found[..., 2]).all()
    order = np.argsort(pixels.ravel(), kind="stable")
    assert (np.diff(found[..., 0].ravel()[order].astype(int)) >= 0).all()
    assert found[pixels == 0].max(initial=0) == 0


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0\x08\0\0\0"]),
)
@settings(max_examples=60)
def test_any_bytes_are_a_picture_or_an_error(content, start):
    for use in (read_image, image_size, lambda path: read_mask(path, (1, 1), value=1)):
        with contextlib.suppress(DataError):
            in_file(start + content, use)


@pytest.mark.parametrize("orientation", [0, 9, 14, 65535])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (8, 5)), exif=data)
    assert image_size(path) == read_image(path).size == (8, 5)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "I;16", "F", "P"])
def test_working_in_strips_changes_nothing(tmp_path, monkeypatch, mode):
    rng = np.random.default_rng(0)
    kinds = {"RGBA": (23, 17, 4), "LA": (23, 17, 2), "PA": (23, 17, 2)}
    values = rng.integers(0, 256, kinds.get(mode, (23, 17)), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * 200)
    elif mode == "F":
        picture = Image.fromarray(np.where(values > 9, values.astype(np.float32) / 255, np.nan))
    elif mode in ("P", "PA"):
        picture = Image.fromarray(values[..., 0] if mode == "PA" else values).convert("P")
    else:
        picture = Image.fromarray(values)
    options = {"transparency": 3} if mode in ("P", "PA") else {}
    path = saved(tmp_path / ("a.tif" if mode == "F" else "a.png"), picture, **options)
    whole, mask = read(path), read_mask(path, (17, 23), empty_ok=True)

    monkeypatch.setattr(images, "_STRIP", 40)  # 2 rows

    np.testing.assert_array_equal(read(path), whole)
    np.testing.assert_array_equal(read_mask(path, (17, 23), empty_ok=True), mask)


def test_a_mask_of_classes_has_one_number_a_pixel(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (4, 4), "white"))
    with pytest.raises(DataError, match=r"a\.png: a mask of classes has one value per pixel, this has R\+G\+B"):
        read_mask(path, (4, 4), value=255)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


def test_empty_file_is_named(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match=r"a\.jpg is empty \(0 bytes\)"):
        read_image(tmp_path / "a.jpg")


def test_text_file_named_jpg_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"a\.jpg is not an image in a supported format"):
        read_image(tmp_path / "a.jpg")


def test_folder_named_jpg_is_an_error(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*a\.jpg"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm"])
def test_truncated_file_is_an_error_wherever_it_ends(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise)).read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for length in range(1, len(data) * 3 // 4, max(1, len(data) // 40)):
        cut.write_bytes(data[:length])
        with pytest.raises(DataError, match=rf"cut\.{suffix}.*(replace|remove)"):
            read_image(cut)


def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    path.write_bytes(path.read_bytes()[:60])  # decoding it would fail otherwise
    monkeypatch.setattr(images, "MAX_PIXELS", 7)
    with pytest.raises(DataError, match=r"a\.png is larger than 7 pixels"):
        read_image(path)


@pytest.mark.parametrize("limit", [3, 7], ids=["pillow's error", "pillow's warning made an error"])
def test_decompression_bomb_is_an_error(tmp_path, monkeypatch, limit):
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="is larger than"):
            read_image(path)


def test_own_limit_is_not_above_the_one_pillow_warns_at():
    assert images.MAX_PIXELS <= Image.MAX_IMAGE_PIXELS


MASK = np.array([[0, 1, 0, 255], [0, 0, 7, 0]], dtype=np.uint8)


OBJECT = np.array([[0, 1, 0, 1], [0, 0, 1, 0]], dtype=bool)


def mask_pictures():
    white = np.where(OBJECT, 255, 0).astype(np.uint8)
    first_is_white = Image.frombytes("P", (4, 2), (~OBJECT).astype(np.uint8).tobytes())
    first_is_white.putpalette([255, 255, 255, 0, 0, 0])
    rgba = np.full((2, 4, 4), 255, dtype=np.uint8)
    rgba[..., 3] = white
    return {
        "1": Image.fromarray(OBJECT),
        "L": Image.fromarray(white),
        "L of 0 and 1": Image.fromarray(OBJECT.astype(np.uint8)),
        "P, white first": first_is_white,
        "P, quantised": Image.fromarray(white).convert("RGB").quantize(2),
        "I;16": Image.fromarray(white.astype(np.uint16) * 257),
        "I;16 of 0 and 255": Image.fromarray(white.astype(np.uint16)),
        "RGB": Image.fromarray(np.stack([white * 0, white * 0, white], axis=2)),
        "RGBA": Image.fromarray(rgba),
        "LA": Image.fromarray(rgba[..., 2:]),
    }


@pytest.mark.parametrize("mode", mask_pictures())
def test_a_mask_is_read_by_what_is_seen(tmp_path, mode, caplog):
    mask = read_mask(saved(tmp_path / "m.png", mask_pictures()[mode]), (4, 2))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, OBJECT)
    assert not caplog.messages


@pytest.mark.parametrize("kind", ["grey", "palette"])
def test_grey_pixels_of_a_mask_are_compared_with_the_threshold_and_named(tmp_path, kind, caplog):
    ramp = np.arange(0, 256, 51, dtype=np.uint8)[None]
    picture = Image.fromarray(ramp)
    if kind == "palette":
        picture = Image.frombytes("P", ramp.shape[::-1], bytes(range(6)))
        picture.putpalette(np.repeat(ramp[0], 3).tolist())
    path = saved(tmp_path / "m.png", picture)
    np.testing.assert_array_equal(read_mask(path, (6, 1)), ramp > 127)
    np.testing.assert_array_equal(read_mask(path, (6, 1), threshold=0), ramp > 0)
    np.testing.assert_array_equal(read_mask(path, (6, 1), threshold=204), ramp > 204)
    assert "m.png has 6 levels of brightness; the object is where it is above 127 of 255" in caplog.messages[0]


def test_a_mask_that_was_a_jpeg_does_not_grow(tmp_path, caplog):
    square = np.zeros((40, 40), dtype=np.uint8)
    square[9:25, 11:27] = 255
    saved(tmp_path / "m.jpg", Image.fromarray(square), quality=50)
    path = saved(tmp_path / "m.png", Image.open(tmp_path / "m.jpg"))
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    np.testing.assert_array_equal(read_mask(path, (40, 40)), square > 0)
    assert "levels of brightness" in caplog.text


def test_a_mask_of_classes_is_read_by_number(tmp_path, caplog):
    path = saved(tmp_path / "m.png", Image.fromarray(MASK))
    np.testing.assert_array_equal(read_mask(path, (4, 2), value=7), MASK == 7)
    assert not caplog.messages


@pytest.mark.parametrize("orientation", [2, 6])
def test_mask_is_turned_like_its_picture(tmp_path, orientation):
    picture = saved(tmp_path / "a.png", Image.fromarray(MASK), exif=exif(orientation))
    np.testing.assert_array_equal(read_mask(picture, image_size(picture)), read(picture)[..., 0] > 127)


def test_mask_of_another_size_names_both_sizes(tmp_path):
    path = saved(tmp_path / "m.png", Image.fromarray(MASK))
    with pytest.raises(DataError, match=r"m\.png is 4 x 2 pixels but its picture is 2 x 4"):
        read_mask(path, (2, 4))


def test_all_zero_mask_is_an_error_unless_allowed(tmp_path):
    path = saved(tmp_path / "m.png", Image.fromarray(np.zeros_like(MASK)))
    with pytest.raises(DataError, match=r"m\.png marks no pixel as object; mark .*\(the brightest pixel has 0\)"):
        read_mask(path, (4, 2))
    assert not read_mask(path, (4, 2), empty_ok=True).any()


def test_unreadable_mask_is_an_error(tmp_path):
    (tmp_path / "m.png").write_text("no")
    with pytest.raises(DataError, match=r"m\.png is not an image"):
        read_mask(tmp_path / "m.png", (4, 2))


def test_images_are_listed_by_extension_sorted_and_without_hidden_ones(tmp_path):
    for name in ("b.JPG", "a.png", ".c.png", "d.txt", "e.jpeg", "png", "Z.webp"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["Z.webp", "a.png", "b.JPG", "e.jpeg"]


def test_listing_a_missing_folder_names_it(tmp_path):
    with pytest.raises(DataError, match="gone"):
        list_images(tmp_path / "gone")
