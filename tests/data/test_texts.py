"""Text files and tables in the forms that people have them in."""

import pytest

from embedcam.data.texts import read_lines, read_table
from embedcam.errors import DataError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_are_read_in_any_encoding_with_a_mark(tmp_path, encoding):
    (tmp_path / "a.txt").write_text(" one \nzwölf\n", encoding=encoding)
    assert read_lines(tmp_path / "a.txt") == ["one", "zwölf"]


def test_lines_of_a_missing_file_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*gone\.txt"):
        read_lines(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", ',path\r\n0,"a,b.jpg"\r\n1,c.jpg\r\n'),
        ("a.tsv", "\tpath\n0\ta,b.jpg\n\n1\tc.jpg"),
    ],
)
def test_a_table_has_rows_by_the_names_of_its_columns(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    columns, rows = read_table(tmp_path / name)
    assert columns == ["", "path"]
    assert rows == [{"": "0", "path": "a,b.jpg"}, {"": "1", "path": "c.jpg"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1\n", "row 2: expected 2 values"),
        ("a,b\n1,2\n1,2,3\n", "row 3: expected 2 values"),
        ("a,a\n1,2\n", "has two columns a"),
        ("a" * 200_000, "not a readable CSV file: field larger"),
        ("a\n" + "b" * 200_000, "not a readable CSV file: field larger"),
    ],
)
def test_a_table_that_is_not_understood_is_an_error(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "a.csv")


def test_an_empty_table_has_no_columns(tmp_path):
    (tmp_path / "a.csv").write_text("")
    assert read_table(tmp_path / "a.csv") == ([], [])
