import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torchvision.models import mobilenet_v2  # noqa: E402

from embedcam.errors import DataError  # noqa: E402
from embedcam.nets import EmbeddingNet  # noqa: E402


def street(folder, count):
    """Made houses: the redder the wall, the dearer, from $50,000 to $1,000,000 in even steps of the log price."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    prices = np.geomspace(5e4, 1e6, count).round()
    for house, red in enumerate(np.linspace(0, 255, count)):
        pixels = random.integers(0, 60, (24, 36, 3))
        pixels[8:20, 6:30, 0] = red
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{house}_frontal.jpg", quality=95)
    lines = ["house,bedrooms,price_usd", *(f"{house},3,{price:.0f}" for house, price in enumerate(prices))]
    (folder / "houses.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return street(tmp_path_factory.mktemp("made") / "houses", 40)


def network(hidden):
    torch.manual_seed(0)
    return EmbeddingNet("tiny", 8, hidden=hidden, metric="euclidean", image_size=32), nn.Linear(8, 1)


def tensors(net, samples):
    return torch.from_numpy(np.stack([net.preprocess(samples.image(index)) for index in range(len(samples))]))


def test_split_holds_a_fifth_out_by_seed(script, data):
    houses = script.read(data)
    train, test = script.split(houses, 3)
    assert (len(train.prices), len(test.prices)) == (32, 8)
    assert sorted([*train.samples.ids, *test.samples.ids]) == sorted(houses.samples.ids)
    by_id = dict(zip(houses.samples.ids, houses.prices, strict=True))
    assert [by_id[name] for name in test.samples.ids] == test.prices.tolist()
    assert script.split(houses, 3)[1].samples.ids == test.samples.ids
    assert script.split(houses, 4)[1].samples.ids != test.samples.ids


def test_scores_match_values_worked_by_hand(script):
    prices, predicted = np.array([100.0, 200.0, 600.0]), np.array([100.0, 300.0, 500.0])
    scores = script.score(prices, predicted, training_prices=np.array([100.0, 300.0, 900.0]))
    assert scores["mae_usd"] == pytest.approx(200 / 3)
    assert scores["mae_usd_of_median"] == pytest.approx((200 + 100 + 300) / 3)
    assert scores["r2_price"] == pytest.approx(1 - 20_000 / 140_000)  # around the mean 300
    logs = np.log(prices)
    expected = 1 - (np.log(1.5) ** 2 + np.log(1.2) ** 2) / ((logs - logs.mean()) ** 2).sum()
    assert scores["r2_log_price"] == pytest.approx(expected)


def test_training_learns_the_log_price_and_leaves_early_layers_alone(script, data):
    train, test = script.split(script.read(data), 0)
    net, price = network(hidden=16)
    for module in net.modules():  # the script never trains batch norms, so fit those of random weights first
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(tensors(net, train.samples))
    early = net.backbone.features[0].weight.clone()
    script.fit(net, price, train, epochs=40, seed=0, after="features.5")
    scores = script.score(test.prices, script.predict(net, price, test.samples), train.prices)
    assert scores["r2_log_price"] > 0.9
    assert torch.equal(net.backbone.features[0].weight, early)


def test_with_a_linear_head_transferred_weights_give_the_map_of_the_gradient(script, data):
    houses = script.read(data)
    net, price = network(hidden=None)
    images = tensors(net, houses.samples)[:6]
    gradient = script.by_gradient(net, price, images)
    transfer = script.by_transfer(net, script.signed_weights(net, price, houses.samples, seed=0), images)
    for side in ("raises", "lowers"):
        np.testing.assert_allclose(getattr(transfer, side), getattr(gradient, side), rtol=1e-3, atol=1e-6)
    same = script.correlations(gradient, transfer)
    assert {round(value, 4) for value in same.values() if not np.isnan(value)} == {1.0}


def test_what_raises_the_price_lowers_its_negative(script, data):
    net, price = network(hidden=16)
    images = tensors(net, script.read(data).samples)[:4]
    maps = script.by_gradient(net, price, images)
    with torch.no_grad():
        price.weight.neg_()
    negated = script.by_gradient(net, price, images)
    np.testing.assert_allclose(negated.raises, maps.lowers, atol=1e-7)
    np.testing.assert_allclose(negated.lowers, maps.raises, atol=1e-7)


def test_flat_maps_do_not_count_in_the_correlation(script):
    ramp, flat = np.arange(9.0).reshape(1, 3, 3), np.zeros((1, 3, 3))
    one = script.SignedMaps(np.concatenate([ramp, ramp]), np.concatenate([flat, flat]))
    other = script.SignedMaps(np.concatenate([-ramp, flat]), np.concatenate([ramp, ramp]))
    found = script.correlations(one, other)
    assert found["raises"] == pytest.approx(-1)
    assert np.isnan(found["lowers"])


def test_script_draws_the_comparison_and_writes_its_scores(script, data, tmp_path, capsys):
    torch.manual_seed(0)
    save_file(mobilenet_v2().state_dict(), tmp_path / "weights.safetensors")
    small = street(tmp_path / "houses", 10)
    out = tmp_path / "out"
    arguments = ["--data", str(small), "--weights", str(tmp_path / "weights.safetensors"), "--out", str(out)]
    assert script.main([*arguments, "--epochs", "1"]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["houses_held_out"] == 2
    assert np.isfinite(scores["r2_log_price"])
    assert "correlation_raises" in capsys.readouterr().out
    sheet = Image.open(out / "houses.png")
    assert sheet.width > 5 * 240  # five columns


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "houses.csv").unlink(), "cannot read"),
        (lambda folder: (folder / "houses.csv").write_text("house,price\n1,2\n"), "price_usd"),
        (lambda folder: (folder / "houses.csv").write_text("house,price_usd\n1,cheap\n"), "cheap"),
        (lambda folder: (folder / "houses.csv").write_text("house,price_usd\n1,9\n"), "at least 10"),
        (lambda folder: (folder / "images" / "4_frontal.jpg").unlink(), "4_frontal.jpg"),
    ],
)
def test_damaged_data_set_gets_one_clear_error(script, tmp_path, capsys, damage, message):
    folder = street(tmp_path / "houses", 10)
    damage(folder)
    with pytest.raises(DataError, match=message):
        script.read(folder)
    assert script.main(["--data", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not list((tmp_path / "out").iterdir())
