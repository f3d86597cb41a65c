import numpy as np
import pytest
from PIL import Image

from embedcam.errors import DataError, EmbedcamError, OutputError
from embedcam.show import grid
from embedcam.show.grid import save_png

RED = np.full((50, 100, 3), (255, 0, 0), np.uint8)
BLUE = np.full((100, 50, 3), (0, 0, 255), np.uint8)


def extent(sheet, color):
    """(width, height) of what has exactly this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == color).all(axis=2))
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def test_pictures_keep_their_aspect_ratio():
    sheet = grid([[RED, BLUE]], picture_size=80)
    assert extent(sheet, (255, 0, 0)) == (80, 40)
    assert extent(sheet, (0, 0, 255)) == (40, 80)


def test_row_is_as_high_as_its_highest_picture():
    gap = 80 // 14
    assert grid([[RED]], picture_size=80).size == (80 + 2 * gap, 40 + 2 * gap)
    assert grid([[RED], [RED]], picture_size=80).size == (80 + 2 * gap, 2 * 40 + 3 * gap)


def test_mask_is_white_on_black_with_hard_edges():
    mask = np.zeros((10, 10), bool)
    mask[:, 5:] = True
    sheet = np.asarray(grid([[mask]], picture_size=80))
    assert set(np.unique(sheet)) == {0, 255}
    assert extent(sheet, (0, 0, 0)) == (40, 80)


def test_ground_is_white_and_empty_cells_stay_white():
    sheet = np.asarray(grid([[RED, None], [None, RED]], picture_size=80))
    assert (sheet[0] == 255).all() and (sheet[-1] == 255).all()
    quarter = sheet[: sheet.shape[0] // 2, sheet.shape[1] // 2 :]
    assert (quarter == 255).all()


def test_rows_may_differ_in_length_and_be_empty():
    assert grid([[RED, RED, RED], [RED], []], picture_size=64).mode == "RGB"


@pytest.mark.parametrize("caption", ["word " * 500, "x" * 5000, "a\nb\nc\nd", "蝶 \udcff", "<b>&amp;</b>"])
def test_caption_of_any_length_stays_in_its_cell(caption):
    gap, cell = 80 // 14, 80
    sheet = np.asarray(grid([[RED, None, RED]], [[None, caption, None]], picture_size=cell))
    text = (sheet != 255).any(axis=2)[gap + 40 :]
    columns = np.flatnonzero(text.any(axis=0))
    assert gap + cell + gap <= columns.min()
    assert columns.max() < gap + 2 * (cell + gap)
    # Two lines and no more: the sheet is as high as with a caption that needs exactly two.
    assert sheet.shape[0] <= grid([[RED]], [["two\nlines"]], picture_size=cell).height
    assert (sheet[-1] == 255).all()


def test_titles_take_room_beside_and_above_the_pictures():
    plain = grid([[RED], [BLUE]], picture_size=80)
    titled = grid([[RED], [BLUE]], None, ["a column"], ["first row", "a very long title of the second row " * 5], 80)
    assert titled.width > plain.width and titled.height > plain.height
    assert titled.width <= plain.width + 80 + 80 // 14
    assert extent(titled, (255, 0, 0)) == (80, 40)


def test_same_input_gives_the_same_pixels():
    sheets = [grid([[RED, BLUE]], [["one", "two"]], ["a", "b"], ["c"]).tobytes() for _ in range(2)]
    assert sheets[0] == sheets[1]


def test_wrong_arguments_are_refused():
    with pytest.raises(EmbedcamError, match="at least one picture"):
        grid([])
    with pytest.raises(EmbedcamError, match="at least one picture"):
        grid([[], []])
    with pytest.raises(EmbedcamError, match=r"captions .* expected \[2\], got \[1\]"):
        grid([[RED, RED]], [["one"]])
    with pytest.raises(EmbedcamError, match=r"column titles .* expected 2, got 1"):
        grid([[RED, RED]], column_titles=["one"])
    with pytest.raises(EmbedcamError, match=r"row titles .* expected 1, got 2"):
        grid([[RED, RED]], row_titles=["one", "two"])
    with pytest.raises(EmbedcamError, match="picture_size"):
        grid([[RED]], picture_size=8)
    with pytest.raises(DataError, match="picture"):
        grid([[np.zeros((4, 4))]])


def test_saved_png_holds_the_pixels(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    for number, image in enumerate((picture, Image.fromarray(picture))):
        path = tmp_path / "new folder" / f"{number}.png"
        save_png(image, path)
        with Image.open(path) as opened:
            assert opened.format == "PNG"
            np.testing.assert_array_equal(np.asarray(opened), picture)


def test_png_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save_png(RED, tmp_path / "file" / "a.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
