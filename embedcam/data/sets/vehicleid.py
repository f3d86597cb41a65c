"""PKU VehicleID in its published layout."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from ..catalog import DATASETS, Dataset
from ..lists import QUERY_SPLITS, Entry, listed, read_fields, root_of
from ..samples import FileSamples
from ..splits import seeded_hash


def vehicleid(path: str | Path, split: str = "train", vehicles: int = 800) -> FileSamples:
    """Read VehicleID from `train_test_split/train_list.txt` and `test_list_<vehicles>.txt`.

    A line has the numbers of a picture and of its vehicle. The published protocol draws one picture of each vehicle for
    the gallery and takes the others as queries; here, a seeded hash draws it.

    Args:
        path: The folder `VehicleID_V1.0`, or the one that contains it.
        split: "train", "query", "gallery", "test" for both of these, or "all".
        vehicles: Which test list: 800, 1600 or 2400 vehicles.

    Returns:
        The pictures of the split, in the order of the lists.

    Raises:
        DataError: If the data set is missing, or a list is not as published.

    Source:
        Liu et al. 2016, Deep Relative Distance Learning: Tell the Difference Between Similar Vehicles.
    """
    root = root_of(path, "train_test_split", "VehicleID", "VehicleID_V1.0", "VehicleID")
    form = "<picture> <vehicle>"
    train, test = (
        [(f"{picture}.jpg", vehicle) for picture, vehicle in read_fields(root / "train_test_split" / name, form)]
        for name in ("train_list.txt", f"test_list_{vehicles}.txt")
    )
    drawn: dict[str, str] = {}
    for picture, vehicle in test:
        drawn[vehicle] = min(drawn.get(vehicle, picture), picture, key=seeded_hash)

    def entries() -> Iterator[Entry]:
        for picture, vehicle in train:
            yield Entry(picture, vehicle, ("train",))
        for picture, vehicle in test:
            yield Entry(picture, vehicle, ("gallery" if drawn[vehicle] == picture else "query",))

    return listed(root, root / "image", entries(), split)


DATASETS.register("vehicleid")(Dataset(vehicleid, splits=QUERY_SPLITS))
for _vehicles in (1600, 2400):
    DATASETS.register(f"vehicleid-{_vehicles}")(
        Dataset(functools.partial(vehicleid, vehicles=_vehicles), splits=QUERY_SPLITS)
    )
