import numpy as np
import pytest
from PIL import Image

from embedcam.data import load, load_gallery, load_queries
from embedcam.errors import DataError

HEADER = "label,path,split,is_query,is_gallery,category,x_1,x_2,y_1,y_2,sequence"
ROWS = [
    "0,images/0.png,train,,,shoe,1,4,2,6,a",
    "1,images/1.png,validation,True,False,shoe,0,6,0,8,b",
    "1,images/2.png,validation,False,True,shoe,0,3,0,4,b",
    '"two, three",images/3.png,validation,True,True,hat,0,6,0,8,c',
    "1,images/4.png,test,0,1,hat,0,6,0,8,d",
]


@pytest.fixture
def table(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.new("RGB", (6, 8)).save(tmp_path / "images" / f"{number}.png")

    def write(*rows, header=HEADER):
        (tmp_path / "data.csv").write_text("".join(f"{line}\n" for line in (header, *rows)))
        return f"table:{tmp_path / 'data.csv'}"

    return write


def numbers(samples):
    return [int(file.stem) for file in samples.files]


def test_columns_of_open_metric_learning_are_read(table):
    spec = table(*ROWS)
    assert numbers(load(spec)) == [0]
    assert numbers(load_queries(spec)) == [1, 3]
    assert numbers(load_gallery(spec)) == [2, 3, 4]
    assert numbers(load(spec, "test")) == [1, 2, 3, 4]
    samples = load(f"{spec}@all")
    assert samples.ids[0] == "images/0.png"
    assert [samples.names[label] for label in samples.labels] == ["0", "1", "1", "two, three", "1"]
    assert samples.cameras.tolist() == [0, 1, 1, 2, 3]
    assert samples.image(4).size == (6, 8)
    assert samples.mask_kind == "box"
    assert np.argwhere(samples.mask(0)).tolist() == [[y, x] for y in range(2, 6) for x in range(1, 4)]


def test_only_three_columns_are_needed(table):
    spec = table("images/0.png,a,train", "images/1.png,b,test", "images/2.png,b,val", header="path,label,split")
    assert numbers(load_queries(spec)) == numbers(load_gallery(spec)) == [1, 2]
    samples = load(spec)
    assert samples.cameras is None
    assert not samples.has_masks


def test_absolute_paths_are_read(table, tmp_path):
    spec = table(f"{tmp_path}/images/0.png,a,train", header="path,label,split")
    samples = load(spec)
    assert samples.files == (tmp_path / "images" / "0.png",)
    assert not samples.ids[0].startswith("/")
    spec = table(f"{tmp_path}/images/0.png,a,train", "images/1.png,a,train", header="path,label,split")
    with pytest.raises(DataError, match="absolute and relative paths"):
        load(spec)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,images/0.png,train", "row 2: expected 11 values"),
        ("0,images/0.png,train,,,shoe,1,4,2,6,a,b", "row 2: expected 11 values"),
        ("0,images/0.png,probe,,,shoe,1,4,2,6,a", "row 2: unknown split 'probe'; use one of train, test"),
        (
            "0,images/0.png,test,yes,,shoe,1,4,2,6,a",
            "row 2: is_query and is_gallery must be true or false, found 'yes'",
        ),
        ("0,images/0.png,train,,,shoe,4,1,2,6,a", r"row 2: expected a box .* found 4, 2, 1, 6"),
        ("0,images/0.png,train,,,shoe,1,,2,6,a", "row 2: expected a box"),
        ("0,images/0.png,train,,,shoe,1,inf,2,6,a", "row 2: expected a box"),
        ("0,images/0.png,train,,,shoe,1,4,2,6,", "row 2: sequence is empty"),
        (",images/0.png,train,,,shoe,1,4,2,6,a", "row 2: label is empty"),
        ("0,,train,,,shoe,1,4,2,6,a", "row 2: path is empty"),
        ("0,../0.png,train,,,shoe,1,4,2,6,a", "no path inside the data set"),
    ],
)
def test_a_row_that_is_not_understood_is_refused_by_number(table, row, message):
    with pytest.raises(DataError, match=message):
        load(table(row))


def test_missing_and_contradicting_columns_are_refused(table, tmp_path):
    with pytest.raises(DataError, match="has no column split"):
        load(table("x,y", header="path,label"))
    with pytest.raises(DataError, match="camera and sequence"):
        load(table("x,y,train,1,2", header="path,label,split,camera,sequence"))
    with pytest.raises(DataError, match="cannot read .*none.csv"):
        load(f"table:{tmp_path / 'none.csv'}")
    with pytest.raises(DataError, match="the train split .* is empty"):
        load(table())
