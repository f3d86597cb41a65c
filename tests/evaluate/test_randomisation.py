"""The randomisation check: what depends on the network falls, what does not is caught."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from embedcam import wrap
from embedcam.data import load
from embedcam.data.preprocess import Preprocess
from embedcam.database import WeightDatabase
from embedcam.errors import DatabaseError, DataError, NetworkError
from embedcam.evaluate.randomisation import _in_order, of_database, randomisation
from embedcam.explain import Explainer
from embedcam.explain.explanation import Explanation
from embedcam.nets import EmbeddingNet


@pytest.fixture
def batches(net, folder):
    samples = load(f"folder:{folder}", "test")
    pictures = torch.from_numpy(np.stack([net.preprocess(samples.image(i)) for i in range(8)]))
    return [(np.arange(5), pictures[:5]), (np.arange(5, 8), pictures[5:])]


def alone(explain_with):
    """Name the only method."""
    return lambda net: {"method": explain_with(net)}


def showing(*maps):
    """Make an `explain_with` that shows other maps (N, H, W) each time it is given a network, whatever the images."""
    waiting = iter(np.asarray(maps, np.float32))

    def explain_with(_):
        shown = next(waiting)
        return lambda images: Explanation(shown, shown, [[] for _ in shown])

    return alone(explain_with)


def only(result):
    (row,) = result["rows"]
    return row


def column(result, key):
    return [stage[key] for stage in only(result)["stages"]]


def test_maps_of_weight_transfer_fall_from_exactly_one(trained, batches):
    net, db = EmbeddingNet.load(trained / "net.safetensors"), WeightDatabase.load(trained / "weights.h5")
    result = randomisation(net, alone(lambda copied: Explainer(copied, of_database(copied, db))), batches)
    correlations = column(result, "spearman")
    assert correlations[0] == 1.0
    assert correlations[-1] < 0.7
    assert np.isfinite(correlations).all()
    assert column(result, "layers") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert column(result, "layer")[:3] == [None, "head", "backbone.features.13"]
    assert column(result, "layer")[-1] == "backbone.features.0"
    assert result["images"] == 8
    json.dumps(result, allow_nan=False)


def test_maps_that_ignore_the_network_are_caught(net, batches):
    def brightness(_):
        return lambda images: Explanation.of(images.mean(dim=1).numpy() + 10)

    result = randomisation(net, alone(brightness), batches)
    assert column(result, "spearman") == [1.0] * 11
    assert column(result, "spearman_abs") == [1.0] * 11
    assert abs(only(result)["between_images"]["spearman"]) < 0.5


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 2, 3, 4, 5], [9, 7, 5, 3, 1], -1.0),
        # Ranks 1 2.5 2.5 4 and 1 2 3 4: 4.5 / sqrt(4.5 * 5)
        ([0, 5, 5, 9], [1, 2, 3, 4], 0.9486832980505138),
        # Ranks 2 2 2 4 and 2.5 2.5 2.5 2.5 of a flat map
        ([0, 0, 0, 9], [3, 3, 3, 3], 0.0),
    ],
)
def test_correlation_is_of_ranks_and_equals_share_theirs(net, first, second, expected):
    maps = [[[first]], [[first]], [[second]]]
    result = randomisation(net, showing(*maps, *maps[-1:] * 9), [([0], torch.zeros(1, 3, 32, 32))])
    assert column(result, "spearman") == [1.0, *[pytest.approx(expected)] * 10]
    assert column(result, "spearman_abs")[1] == pytest.approx(abs(expected))
    assert column(result, "flat")[1] == (len(set(second)) == 1)
    assert only(result)["between_images"] == {"spearman": None, "spearman_abs": None}


def test_scale_is_the_mean_over_pairs_of_different_images_and_flat_originals_are_left_out(net):
    maps = [[[1, 2, 3, 4, 5]], [[2, 1, 4, 3, 5]], [[7, 7, 7, 7, 7]], [[5, 4, 3, 2, 1]]]
    result = randomisation(net, showing(*[maps] * 12), [(range(4), torch.zeros(4, 3, 32, 32))])
    assert (result["images"], only(result)["left_out"]) == (4, 1)
    assert only(result)["between_images"]["spearman"] == pytest.approx((0.8 - 1 - 0.8) / 3)
    assert only(result)["between_images"]["spearman_abs"] == pytest.approx((0.8 + 1 + 0.8) / 3)
    assert column(result, "spearman") == [1.0] * 11


def test_the_network_and_the_random_numbers_around_are_left_as_they_are(net, batches):
    net.train()
    before, state = net.sha256(), torch.get_rng_state()
    randomisation(net, lambda _: {"m": lambda images: Explanation.of(images.mean(dim=1).numpy() + 10)}, batches)
    assert net.sha256() == before
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in net.modules())


def states(net, batches, **options):
    """Every network that the check asks maps of, as state dicts; the first is the original."""
    seen = []

    def explain_with(copied):
        seen.append({name: value.clone() for name, value in copied.state_dict().items()})
        return lambda images: Explanation.of(images.mean(dim=1).numpy() + 10)

    return randomisation(net, alone(explain_with), batches, **options), seen


def test_layers_become_random_from_the_output_to_the_input_and_stay_so(net, batches):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: unlike what they start from
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.add_(0.5)
    result, seen = states(net, batches, stages=4)
    assert all(torch.equal(value, seen[0][name]) for name, value in seen[1].items())
    assert column(result, "layer") == [
        None,
        "head",
        "backbone.features.10",
        "backbone.features.6",
        "backbone.features.0",
    ]
    order = ["backbone.features." + str(3 * i + j) for i in range(5) for j in (0, 1)] + ["head"]
    for state, row in zip(seen[1:], only(result)["stages"], strict=True):
        random = set(order[len(order) - row["layers"] :])
        for name, value in state.items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(value, seen[0][name]) == (name.rpartition(".")[0] not in random), name
    for later in seen[3:]:
        assert torch.equal(later["head.weight"], seen[2]["head.weight"])


def test_named_modules_become_random_with_all_layers_after_them(net, batches):
    result, _ = states(net, batches, stages=["head", "backbone.features.9", "backbone"])
    assert column(result, "layer") == [None, "head", "backbone.features.9", "backbone.features.0"]
    assert column(result, "layers") == [0, 1, 5, 11]
    with pytest.raises(NetworkError, match="no layer with parameters in 'backbone.features.99'"):
        states(net, batches, stages=["head", "backbone.features.99"])
    with pytest.raises(NetworkError, match="before the stages already named"):
        states(net, batches, stages=["backbone", "head"])


def test_methods_of_a_copy_are_made_together_and_have_a_row_each(net, batches):
    made = []

    def explain_with(copied):
        made.append(copied)
        brightness = lambda images: Explanation.of(images.mean(dim=1).numpy() + 10)  # noqa: E731
        return {"same": brightness, "other": lambda images: brightness(images if len(made) == 1 else -images)}

    result = randomisation(net, explain_with, batches, stages=2)
    assert [row["method"] for row in result["rows"]] == ["same", "other"]
    assert [[stage["spearman"] for stage in row["stages"]] for row in result["rows"]] == [
        pytest.approx([1, 1, 1]),
        pytest.approx([-1, -1, -1]),
    ]
    assert len(made) == 4
    assert len(set(map(id, made))) == 2


def test_new_parameters_depend_on_the_seed_alone(net, batches):
    _, first = states(net, batches, seed=3)
    torch.rand(1)
    _, again = states(net, batches, seed=3)
    _, other = states(net, batches, seed=4)
    assert torch.equal(first[-1]["backbone.features.0.weight"], again[-1]["backbone.features.0.weight"])
    assert not torch.equal(first[-1]["backbone.features.0.weight"], other[-1]["backbone.features.0.weight"])


class Reversed(nn.Module):
    """Defined from the output to the input, and with a parameter of its own that no layer draws."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.first = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.arange(4.0))

    def forward(self, images):
        return self.last(self.first(images).mean(dim=(2, 3)) * self.scale)


def test_order_is_that_of_running_and_other_parameters_are_shuffled(batches):
    torch.manual_seed(0)
    net = wrap(Reversed(), "first", preprocess=Preprocess((32, 32)))
    assert [name for name, _ in _in_order(net)] == ["module", "module.first", "module.last"]
    result, seen = states(net, batches)
    assert column(result, "layer") == [None, "module.last", "module.first", "module"]
    assert torch.equal(seen[3]["module.scale"], torch.arange(4.0))
    assert not torch.equal(seen[4]["module.scale"], torch.arange(4.0))
    assert seen[4]["module.scale"].sort().values.tolist() == [0, 1, 2, 3]


def test_database_fits_the_copy_and_no_other(trained):
    net, db = EmbeddingNet.load(trained / "net.safetensors"), WeightDatabase.load(trained / "weights.h5")
    nn.init.normal_(net.head.weight)
    with pytest.raises(DatabaseError, match="another network"):
        Explainer(net, db)
    assert Explainer(net, of_database(net, db)).database.centroids is db.centroids


def test_what_cannot_be_checked_is_refused(net, batches):
    @alone
    def flat(_):
        return lambda images: Explanation.of(np.zeros((len(images), 4, 4), np.float32))

    with pytest.raises(DataError, match="at least one batch"):
        randomisation(net, flat, [])
    with pytest.raises(DataError, match="stages must be at least 2"):
        randomisation(net, flat, batches, stages=1)
    with pytest.raises(DataError, match="all maps of method are flat for the trained network"):
        randomisation(net, flat, batches)
    bare = wrap(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), "0", preprocess=Preprocess((32, 32)))
    with pytest.raises(NetworkError, match="no layer with parameters"):
        randomisation(bare, showing(*[[[[1, 2]]]] * 2), [([0], torch.zeros(1, 3, 32, 32))])
