import numpy as np
import pytest
import torch

from embedcam.data import load
from embedcam.errors import DataError, NetworkError, OutputError
from embedcam.nets import EmbeddingNet
from embedcam.train import TrainOptions, train, trainer


def fresh_net():
    torch.manual_seed(0)
    return EmbeddingNet("tiny", 8, image_size=32)


def options(**changes):
    return TrainOptions(**{"epochs": 3, "batch_size": 12, "lr": 1e-3, "head_lr": 1e-3, **changes})


def run(folder, out, *, net=None, **changes):
    resume = changes.pop("resume", False)
    net = net or fresh_net()
    spec = f"folder:{folder}"
    return net, train(net, load(spec, "train"), load(spec, "test"), out, options(**changes), resume=resume)


def test_training_learns_and_leaves_a_network_and_a_curve(folder, tmp_path):
    net, history = run(folder, tmp_path / "net.safetensors", epochs=6)

    assert [row["epoch"] for row in history] == list(range(7))
    assert history[-1]["recall_at_1"] >= 0.9
    assert history[-1]["loss"] < history[1]["loss"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.png", "net.safetensors"]
    assert EmbeddingNet.load(tmp_path / "net.safetensors").sha256() == net.sha256()


def test_same_seed_same_bytes(folder, tmp_path):
    for name in ("a", "b"):
        run(folder, tmp_path / f"{name}.safetensors", objective="proxy-anchor")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    run(folder, tmp_path / "c.safetensors", objective="proxy-anchor", seed=1)
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "c.safetensors").read_bytes()


@pytest.mark.parametrize("objective", ["triplet", "arcface"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(folder, tmp_path, monkeypatch, objective):
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    _, expected = run(folder, whole, objective=objective)

    epoch_of = trainer._epoch

    def interrupted(epoch, *rest):
        if epoch == 3:
            raise KeyboardInterrupt
        return epoch_of(epoch, *rest)

    monkeypatch.setattr(trainer, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, broken, objective=objective)
    assert not broken.exists()
    assert (tmp_path / "broken.safetensors.parts" / "epoch.npz").exists()

    monkeypatch.setattr(trainer, "_epoch", epoch_of)
    _, history = run(folder, broken, objective=objective, resume=True)
    assert history == expected
    assert broken.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "broken.safetensors.parts").exists()


def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        epoch_of = trainer._epoch
        patch.setattr(trainer, "_epoch", lambda epoch, *rest: epoch_of(epoch, *rest) if epoch < 2 else stop())
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "net.safetensors")
    with pytest.raises(OutputError, match=r"another run \(lr 0.001 then, 0.01 now\)"):
        run(folder, tmp_path / "net.safetensors", lr=1e-2, resume=True)
    (tmp_path / "net.safetensors.parts" / "epoch.npz").write_bytes(b"damaged")
    with pytest.raises(OutputError, match="epoch.npz cannot be read"):
        run(folder, tmp_path / "net.safetensors", resume=True)


def test_training_from_a_layer_changes_only_what_comes_after(folder, tmp_path):
    net = fresh_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run(folder, tmp_path / "net.safetensors", net=net, train_from="features.5")

    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    first = [name for name in before if name.startswith("backbone.features.") and int(name.split(".")[2]) <= 5]
    assert first
    assert not changed & set(first)
    assert {"backbone.features.6.weight", "backbone.features.12.weight", "head.weight"} <= changed


def test_augmentation_is_part_of_the_seed_and_on_unless_activations_are_cached(folder, tmp_path):
    def trained(name, **changes):
        run(folder, tmp_path / f"{name}.safetensors", epochs=1, **changes)
        return (tmp_path / f"{name}.safetensors").read_bytes()

    augmented = trained("a")
    assert augmented == trained("b", augment=True) == trained("c")
    assert augmented != trained("d", augment=False)
    cached = trained("e", train_from="features.5")
    assert cached == trained("f", train_from="features.5", augment=False)
    with pytest.raises(NetworkError, match="'features.5' are computed once and cannot be augmented"):
        trained("g", train_from="features.5", augment=True)


def test_frozen_statistics_stay_while_the_layers_learn(folder, tmp_path):
    net = fresh_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run(folder, tmp_path / "net.safetensors", net=net, freeze_norm=True)

    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == ("running" in name or "tracked" in name), name


def test_one_layer_cached_or_not_gives_the_same_embeddings_before_training(folder, tmp_path):
    rows = [run(folder, tmp_path / "net.safetensors", epochs=0, train_from=layer)[1] for layer in (None, "features.5")]
    assert rows[0] == rows[1]


def test_training_needs_two_classes_of_two_images(folder, tmp_path):
    samples = load(f"folder:{folder}", "train")
    first = np.flatnonzero(samples.labels == 0)
    with pytest.raises(DataError, match="found only 'class0'"):
        train(fresh_net(), samples.subset(first), None, tmp_path / "n.safetensors", options())
    with_single = np.append(first, np.flatnonzero(samples.labels == 2)[0])
    with pytest.raises(DataError, match="two classes of at least two images, found 1 of 2"):
        train(fresh_net(), samples.subset(with_single), None, tmp_path / "n.safetensors", options())
    assert list(tmp_path.iterdir()) == []


def test_a_class_of_one_image_is_evaluated_but_not_trained_with(folder, tmp_path, caplog):
    samples = load(f"folder:{folder}", "train")
    single = np.flatnonzero(samples.labels == 2)
    kept = np.setdiff1d(np.arange(len(samples)), single[1:])
    history = train(fresh_net(), samples.subset(kept), None, tmp_path / "net.safetensors", options(epochs=1))
    assert caplog.text.count("1 of 3 classes have one image and are not trained with") == 1
    # Its image is a query without a match.
    assert all(row["recall_at_1"] <= 1 - 1 / len(kept) for row in history)


def test_the_history_has_the_scores_of_every_epoch_and_the_nmi_of_the_last(folder, tmp_path):
    _, history = run(folder, tmp_path / "net.safetensors", epochs=2)
    assert [sorted(row) for row in history] == [
        ["epoch", "map_at_r", "recall_at_1"],
        ["epoch", "loss", "map_at_r", "recall_at_1"],
        ["epoch", "loss", "map_at_r", "nmi", "recall_at_1"],
    ]


def test_training_runs_on_every_device(folder, tmp_path, device):
    net = fresh_net().to(device)
    _, history = run(folder, tmp_path / "net.safetensors", net=net, epochs=2)
    assert net.device.type == device.type
    assert history[-1]["recall_at_1"] > 0.5
    assert EmbeddingNet.load(tmp_path / "net.safetensors").sha256() == net.sha256()


def test_a_loss_that_is_not_finite_is_an_error(folder, tmp_path):
    net = fresh_net()
    with torch.no_grad():
        net.head.weight.fill_(float("inf"))
    with pytest.raises((NetworkError, DataError), match=r"finite"):
        run(folder, tmp_path / "net.safetensors", net=net)


def test_a_place_that_cannot_be_written_is_found_before_training(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        run(folder, tmp_path / "file" / "net.safetensors")


def test_unreadable_images_are_left_out(folder, tmp_path, caplog):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    broken = next((copy / "images" / "class1").glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    run(copy, tmp_path / "net.safetensors", epochs=1)
    assert f"class1/{broken.name}" in caplog.text.replace("\\", "/")
