"""The checks are of the default, the published method and rivals, with databases of their own."""

import numpy as np
import pytest
import torch

from embedcam.data import load
from embedcam.evaluate.checks import Check
from embedcam.evaluate.rivals import first_component
from embedcam.explain import Explainer
from embedcam.explain.maps import place


@pytest.fixture
def check(spread, folder):
    return Check(*spread, load(f"folder:{folder}", "test"), load(f"folder:{folder}", "train"), {"batch_size": 4})


def test_randomisation_builds_databases_again_and_shows_the_stale_one(check):
    result = check.run("randomisation")
    rows = {row["method"]: [stage["spearman"] for stage in row["stages"]] for row in result["rows"]}
    assert list(rows) == ["embedcam", "cluster transfer (paper)", "EigenCAM", "embedcam, stale database"]
    # The database of the unchanged network is the same when it is built again.
    assert [correlations[0] for correlations in rows.values()] == pytest.approx([1] * 4, abs=0.01)
    # EigenCAM does not use the head.
    assert rows["EigenCAM"][1] == pytest.approx(1)
    assert rows["embedcam"][1] < 0.99
    assert rows["embedcam"][1] != rows["embedcam, stale database"][1]


def test_without_training_images_there_is_only_the_stale_database(check):
    alone = Check(check.net, check.db, check.test, None, check.reading)
    (row,) = alone.run("randomisation")["rows"]
    assert row["method"] == "embedcam, stale database"


def test_faithfulness_compares_rivals_with_the_default(check):
    rows = {row["method"]: row for row in check.run("faithfulness")["rows"]}
    assert next(iter(rows)) == "embedcam"
    assert {"cluster transfer (paper)", "EigenCAM", "Gaussian in the centre", "random order"} <= set(rows)
    assert rows["embedcam"]["deletion"]["difference"] == 0


def test_rivals_have_the_network_s_own_cells_where_the_default_has_denser_ones(fused, folder):
    net, db = fused
    assert Explainer(net, db).net.density != (1, 1)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = first_component(net.activations(images).maps)
    expected = place(maps, db.geometry, (64, 64)).numpy()
    found = Check(net, db, load(f"folder:{folder}", "test")).methods(net, db)["EigenCAM"](images)
    np.testing.assert_allclose(found.raw, expected, atol=1e-5)
