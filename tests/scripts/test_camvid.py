import shutil

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from safetensors.torch import save_file  # noqa: E402
from torch.nn import functional  # noqa: E402
from torchvision.models import mobilenet_v2  # noqa: E402

from embedcam.data.sets.camvid import CLASSES, UNLABELLED, camvid  # noqa: E402
from embedcam.errors import NetworkError  # noqa: E402
from embedcam.nets import layers  # noqa: E402


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two pictures a split of coloured bands, one a class; the last rows are unlabelled."""
    root = tmp_path_factory.mktemp("camvid")
    random = np.random.default_rng(0)
    colors = random.integers(0, 256, (UNLABELLED + 1, 3))
    for split in ("train", "val", "test"):
        for number in range(2):
            bands = [*random.permutation(UNLABELLED).tolist(), UNLABELLED]
            labels = np.repeat(np.array(bands, np.uint8), 20)[:, None].repeat(320, axis=1)
            noise = random.integers(-20, 20, (240, 320, 3))
            picture = np.clip(colors[labels] + noise, 0, 255).astype(np.uint8)
            for folder, array in (("images", picture), ("labels", labels)):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / folder / split / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "mobilenet_v2.safetensors"
    save_file(mobilenet_v2().state_dict(), file)
    return file


@pytest.fixture
def net(script, weights):
    torch.manual_seed(1)
    return script.SegmentationNet(weights).eval()


def test_dilated_backbone_agrees_with_the_strided_one_where_that_has_cells(script, net, weights):
    strided = mobilenet_v2().eval()
    strided.load_state_dict(script.read_state_dict(weights))
    image = torch.rand(1, 3, 240, 320)
    with torch.no_grad():
        coarse, fine = strided.features[:18](image), net.features(image)
    assert coarse.shape[2:] == (8, 10) and fine.shape[2:] == (15, 20)
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse, rtol=1e-3, atol=1e-3)


def test_view_keeps_picture_and_labels_together(script):
    truth = np.zeros((60, 80), np.uint8)
    truth[20:, 50:] = 1
    picture = Image.fromarray((truth * 255)[..., None].repeat(3, axis=2))
    seen = set()
    for seed in range(8):
        zoomed, labels = script.view(picture, Image.fromarray(truth), (80, 60), np.random.default_rng(seed))
        grey, labels = np.asarray(zoomed.convert("L")).astype(float), np.asarray(labels)
        assert np.mean((grey > (grey.min() + grey.max()) / 2) == labels) > 0.98
        seen.add((int(labels[:, 0].sum() > labels[:, -1].sum()), int(labels.sum())))
    assert len({flipped for flipped, _ in seen}) == 2 and len({size for _, size in seen}) == 8


def test_stored_activations_give_the_logits_of_the_whole_network(script, net, tree, monkeypatch):
    monkeypatch.setattr(script, "view", lambda picture, labels, size, random: (picture, labels))
    samples = camvid(tree)
    shallow, labels = script.shallow_views(net, samples, views=1, seed=0)
    assert shallow.shape == (2, 1, 24, 60, 80) and labels.shape == (2, 1, 240, 320)
    with torch.no_grad():
        stored = functional.interpolate(net.decode(shallow[1].float()), (240, 320), mode="bilinear")
        whole = net(torch.from_numpy(net.preprocess(samples.image(1)))[None])
    assert (stored - whole).abs().max() < 0.01 * whole.abs().max()
    assert (labels[1, 0].numpy() == samples.label_image(1)).all()


def test_views_repeat_with_the_seed_and_differ_otherwise(script, net, tree):
    samples = camvid(tree).subset([0])
    first, again, other = (script.shallow_views(net, samples, views=2, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0, 0], first[0, 1])


def test_rare_classes_weigh_more(script):
    labels = torch.tensor([0] * 900 + [1] * 100 + [2] * 25 + [UNLABELLED] * 50)
    weights = script.class_weights(labels)
    assert weights[1] / weights[0] == pytest.approx(3) and weights[2] / weights[1] == pytest.approx(2)
    assert weights.shape == (len(CLASSES),) and torch.isfinite(weights).all()


def test_iou_of_a_hand_worked_confusion(script):
    # Class 0: 3 right, 1 taken for class 1; class 1: 2 right, 2 taken for class 0; class 2 never occurs.
    scores = script.iou(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]))
    assert scores.tolist() == pytest.approx([3 / 6, 2 / 5, 0])


def test_confusion_counts_every_labelled_pixel_once(script, net, tree):
    samples = camvid(tree, "test")
    counts = script.confusion(net, samples)
    assert counts.sum(axis=1).tolist() == [2 * 20 * 320] * len(CLASSES)
    predicted = np.bincount(
        np.concatenate([script.predict(net, samples.image(index))[:220].ravel() for index in range(2)]),
        minlength=len(CLASSES),
    )
    assert (counts.sum(axis=0) == predicted).all()


def test_training_leaves_frozen_blocks_and_batch_norms_of_the_backbone_alone(script, net, tree, tmp_path):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    options = script.argparse.Namespace(epochs=1, views=1, seed=0)
    script.train(net, camvid(tree), camvid(tree, "val"), tmp_path / "net.safetensors", options)
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    frozen = tuple(f"features.{block}." for block in range(script.FROZEN))
    assert not [key for key in changed if key.startswith(frozen)]
    assert not [key for key in changed if key.startswith("features.") and "running" in key]
    assert {"features.4.conv.0.0.weight", "aspp.project.0.weight", "classifier.bias"} <= changed


def test_saved_network_is_the_same_after_loading(script, net, tmp_path):
    net.save(tmp_path / "net.safetensors")
    loaded = script.SegmentationNet.load(tmp_path / "net.safetensors")
    image = torch.rand(1, 3, 240, 320)
    with torch.no_grad():
        assert torch.equal(loaded(image), net(image))
    assert not loaded.training


def test_foreign_file_is_refused(script, weights, tmp_path):
    with pytest.raises(NetworkError, match="written by another version of this script"):
        script.SegmentationNet.load(weights)
    with pytest.raises(NetworkError, match="no weights file"):
        script.SegmentationNet.load(tmp_path / "gone.safetensors")


def test_pictures_with_every_explained_class_are_chosen(script, tree, tmp_path):
    shutil.copytree(tree, tmp_path, dirs_exist_ok=True)
    samples = camvid(tmp_path, "test")
    assert script.with_explained(samples, 1) == [0] and script.with_explained(samples, 5) == [0, 1]
    Image.new("L", (320, 240), CLASSES.index("Road")).save(tmp_path / "labels" / "test" / "0.png")
    assert script.with_explained(samples, 1) == [1]


def test_a_run_prints_iou_writes_network_and_figures_and_repeats(script, tree, weights, tmp_path, capsys):
    short = ["--epochs", "1", "--views", "1", "--limit", "1", "--figures", "1"]
    runs = [tmp_path / name for name in ("one", "two")]
    printed = []
    for out in runs:
        options = ["--data", str(tree), "--weights", str(weights), "--out", str(out), *short]
        assert script.main(options) == 0
        printed.append(capsys.readouterr().out.splitlines()[:-1])
    assert [line.split()[0] for line in printed[0]] == [*CLASSES, "mean"]
    files = [{path.name: path.read_bytes() for path in out.iterdir()} for out in runs]
    assert sorted(files[0]) == ["gradcam_0.png", "net.safetensors"] and files[0] == files[1]
    assert script.main(["--data", str(tree), "--out", str(runs[0]), "--eval-only", *short]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == printed[0] == printed[1]


def test_missing_data_is_one_line(script, weights, tmp_path, capsys):
    assert script.main(["--data", str(tmp_path), "--weights", str(weights)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no CamVid in") and error.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--weights", "x", "--epochs", "0"]])
def test_wrong_usage_exits_with_2(script, tmp_path, options):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--data", str(tmp_path), *options])


def test_layers_to_explain_exist(script, net):
    for name in script.DEPTHS:
        layers.resolve(net, name)
