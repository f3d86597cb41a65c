"""Small trees in the layouts of the published data sets for retrieval and re-identification."""

import shutil

import pytest
from PIL import Image

from embedcam.data import load, load_all, load_gallery, load_queries
from embedcam.errors import DataError


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 8), (200, 0, 0)).save(file)


def write(file, *lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def sop(root):
    header = "image_id class_id super_class_id path"
    write(root / "Ebay_train.txt", header, "1 1 1 bicycle_final/1_0.JPG", "2 1 1 bicycle_final/1_1.JPG")
    write(root / "Ebay_test.txt", header, "3 11319 2 mug_final/7_0.JPG", "4 11320 2 mug_final/8_0.JPG")
    for name in ("bicycle_final/1_0.JPG", "bicycle_final/1_1.JPG", "mug_final/7_0.JPG", "mug_final/8_0.JPG"):
        picture(root / name)
    return {"train": ["1", "1"], "test": ["11319", "11320"]}, None


def inshop(root):
    rows = [
        ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("img/WOMEN/Tees/id_00000003/02_1_front.jpg", "id_00000003", "query"),
        ("img/WOMEN/Tees/id_00000003/02_2_side.jpg", "id_00000003", "gallery"),
        ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "gallery"),
    ]
    lines = [f"{name}   {item} {part}" for name, item, part in rows]
    write(root / "Eval" / "list_eval_partition.txt", len(rows), "image_name item_id evaluation_status", *lines)
    for name, _, _ in rows:
        picture(root / "Img" / name)
    return {"train": ["id_00000002"], "query": ["id_00000003"], "gallery": ["id_00000003", "id_00000080"]}, None


def market1501(root):
    for folder, names in {
        "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0007_c3s3_077419_03.jpg"],
        "query": ["0001_c1s1_001051_00.jpg"],
        "bounding_box_test": ["-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "0001_c2s1_000301_00.jpg"],
    }.items():
        for name in names:
            picture(root / folder / name)
        (root / folder / "Thumbs.db").write_bytes(b"")
    return {"train": ["0002", "0007"], "query": ["0001"], "gallery": ["0000", "0001"]}, {
        "query": [1],
        "gallery": [1, 2],
    }


def msmt17(root, folders=("train", "test")):
    lists = {
        "train": ["0000/0000_000_01_0303morning_0015_0.jpg 0"],
        "val": ["0000/0000_001_14_0303noon_0020_1.jpg 0"],
        "query": ["0000/0000_002_04_0302afternoon_0010_2.jpg 0"],
        "gallery": ["0000/0000_003_05_0302afternoon_0010_0.jpg 0", "0001/0001_000_04_0303morning_0011_0.jpg 1"],
    }
    for name, lines in lists.items():
        write(root / f"list_{name}.txt", *lines)
        for line in lines:
            picture(root / folders[name in ("query", "gallery")] / line.split()[0])
    expected = {"train": ["train/0"] * 2, "query": ["test/0"], "gallery": ["test/0", "test/1"]}
    return expected, {"train": [1, 14], "query": [4], "gallery": [5, 4]}


def msmt17_v2(root):
    return msmt17(root, ("mask_train_v2", "mask_test_v2"))


def vehicleid(root):
    train, test = ["0000001 7", "0000002 8"], ["0000003 1", "0000004 1", "0000005 1", "0000006 2"]
    write(root / "train_test_split" / "train_list.txt", *train)
    write(root / "train_test_split" / "test_list_800.txt", *test)
    for line in train + test:
        picture(root / "image" / f"{line.split()[0]}.jpg")
    return {"train": ["7", "8"], "query": ["1", "1"], "gallery": ["1", "2"]}, None


def veri(root):
    lists = {
        "train": ["0001_c001_00016450_0.jpg"],
        "query": ["0002_c002_00030600_0.jpg"],
        "test": ["0002_c002_00030600_0.jpg", "0002_c003_00084280_0.jpg", "0005_c003_00077625_0.jpg"],
    }
    for name, lines in lists.items():
        write(root / f"name_{name}.txt", *lines)
        for line in lines:
            picture(root / f"image_{name}" / line)
    return {"train": ["0001"], "query": ["0002"], "gallery": ["0002", "0002", "0005"]}, {
        "train": [1],
        "query": [2],
        "gallery": [2, 3, 3],
    }


TREES = {
    "sop": (sop, "Stanford_Online_Products"),
    "inshop": (inshop, ""),
    "market1501": (market1501, "Market-1501-v15.09.15"),
    "msmt17": (msmt17, "MSMT17_V1"),
    "msmt17 v2": (msmt17_v2, "MSMT17_V2"),
    "vehicleid": (vehicleid, "VehicleID_V1.0"),
    "veri": (veri, "VeRi"),
}


@pytest.fixture(params=TREES, name="tree")
def _tree(request, tmp_path):
    make, inner = TREES[request.param]
    return request.param.split()[0], tmp_path, tmp_path / inner, *make(tmp_path / inner)


def labels_of(samples):
    return [samples.names[label] for label in samples.labels]


def test_splits_labels_and_cameras_are_those_of_the_lists(tree):
    kind, outer, inner, labels, cameras = tree
    everything = load(f"{kind}:{outer}@all")
    for split, expected in labels.items():
        samples = load(f"{kind}:{inner}@{split}")
        assert labels_of(samples) == expected
        assert samples.ids == load(f"{kind}:{outer}@{split}").ids
        assert samples.names == everything.names
        assert [samples.image(row).size for row in range(len(samples))] == [(6, 8)] * len(expected)
        if cameras is None:
            assert samples.cameras is None
        elif split in cameras:
            numbers = sorted({number for some in cameras.values() for number in some})
            assert samples.cameras.tolist() == [numbers.index(number) for number in cameras[split]]
    assert len(everything) == sum(map(len, labels.values()))


def test_queries_are_searched_in_the_gallery(tree):
    kind, outer, _, labels, _ = tree
    spec = f"{kind}:{outer}"
    if "query" not in labels:
        assert load_queries(spec).ids == load(f"{spec}@test").ids
        return
    assert labels_of(load_queries(spec)) == labels["query"]
    assert load_gallery(spec).ids == load_gallery(f"{spec}@query").ids == load(f"{spec}@gallery").ids
    assert {*load(f"{spec}@test").ids} == {*load(f"{spec}@query").ids, *load(f"{spec}@gallery").ids}
    assert load_gallery(f"{spec}@test") is None  # each of them is a query, and all others are searched
    assert load_all(f"{spec}@query").ids == load(f"{spec}@all").ids


def test_the_list_of_vehicles_is_chosen_by_name(tmp_path):
    vehicleid(tmp_path)
    write(tmp_path / "train_test_split" / "test_list_1600.txt", "0000006 2")
    assert len(load(f"vehicleid-1600:{tmp_path}@test")) == 1
    with pytest.raises(DataError, match=r"cannot read .*test_list_2400\.txt"):
        load(f"vehicleid-2400:{tmp_path}@test")


def test_a_missing_data_set_says_what_to_give(tmp_path):
    for kind, marker in {
        "sop": "Ebay_train.txt",
        "inshop": "list_eval_partition.txt",
        "market1501": "bounding_box_train",
        "msmt17": "list_train.txt",
        "vehicleid": "train_test_split",
        "veri": "name_train.txt",
    }.items():
        with pytest.raises(DataError, match=rf"with {marker} in {tmp_path}; give the folder that was unpacked"):
            load(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(
    ("make", "file", "content", "message"),
    [
        (sop, "Ebay_test.txt", "1 2 3 x.jpg\n", r"line 1: expected 'image_id class_id super_class_id path \.\.\.'"),
        (sop, "Ebay_test.txt", "image_id class_id super_class_id path\n1 2 x.jpg\n", "line 2: expected '<image id>"),
        (sop, "Ebay_test.txt", "", "line 1: expected"),
        (sop, "Ebay_test.txt", "image_id class_id super_class_id path\n1 2 3 ../x.jpg\n", "no path inside"),
        (sop, "Ebay_test.txt", "image_id class_id super_class_id path\n1 1 1 bicycle_final/1_0.JPG\n", "_0.JPG twice"),
        (sop, "Ebay_test.txt", "image_id class_id super_class_id path\n", "the test split of .* is empty"),
        (inshop, "Eval/list_eval_partition.txt", "1\nimage_name x\nimg/a.jpg b probe\n", "img/a.jpg is in 'probe'"),
        (market1501, "query/0001_front.jpg", "", "the name of .*0001_front.jpg is not understood"),
        (msmt17, "list_query.txt", "0000/front.jpg 0\n", "'0000/front.jpg 0' is not understood"),
        (veri, "name_query.txt", "front.jpg\n", "'front.jpg' is no name such as 0002_c002"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, make, file, content, message):
    make(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load(f"{make.__name__}:{tmp_path}@test")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_folders_of_no_published_version_are_refused(tmp_path):
    msmt17(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(DataError, match="no folders train and test or mask_train_v2 and mask_test_v2"):
        load(f"msmt17:{tmp_path}")


def test_an_unknown_split_of_a_list_names_the_splits(tmp_path):
    market1501(tmp_path)
    with pytest.raises(DataError, match="choose one of train, test, query, gallery, all"):
        load(f"market1501:{tmp_path}@probe")
