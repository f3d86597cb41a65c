import pytest
import torch
from torch import nn

import embedcam
from embedcam.data.arrays import as_samples
from embedcam.evaluate.sum_rule import sum_rule
from embedcam.explain import Explainer

IMAGES = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """A class token attends to all cells, and is added to what it finds."""

    def __init__(self):
        super().__init__()
        self.token, self.attend = nn.Parameter(torch.randn(1, 1, 8)), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        token = self.token.expand(len(x), -1, -1)
        x = torch.cat([token, x.flatten(2).transpose(1, 2)], dim=1)
        return self.norm(token + self.attend(token, x, x, need_weights=False)[0])[:, 0]


def pooled(pool, *layers):
    return nn.Sequential(pool(1), nn.Flatten(), *layers)


HEADS = {
    "linear": lambda: pooled(nn.AdaptiveAvgPool2d, nn.Linear(8, 5)),
    "hidden layer": lambda: pooled(nn.AdaptiveAvgPool2d, nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 5)),
    "maximum": lambda: pooled(nn.AdaptiveMaxPool2d, nn.Linear(8, 5)),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 5)),
    "class token": Attention,
}


def explained(head, metric, layer="trunk"):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1))
    module = nn.Sequential()
    module.add_module("trunk", trunk)
    module.add_module("head", head())
    net = embedcam.wrap(module.eval(), layer, metric=metric, preprocess=embedcam.Preprocess((32, 32)))
    labelled = [(image, number % 3) for number, image in enumerate(IMAGES)]
    return Explainer(net, embedcam.build_database(net, labelled, clusters=3, top_k=4, refinement=False)), labelled


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_head_adds_up(head, metric):
    explainer, labelled = explained(HEADS[head], metric)
    assert sum_rule(explainer, as_samples(labelled), batch_size=5) < 1e-5
    answer = explainer(IMAGES, towards=1)
    assert answer.rest.any() == (head == "class token")


def test_networks_that_are_not_decomposable_have_no_sum():
    explainer, labelled = explained(HEADS["linear"], "cosine", "trunk.0")
    assert sum_rule(explainer, as_samples(labelled)) is None


def test_the_largest_error_is_found(monkeypatch):
    explainer, labelled = explained(HEADS["linear"], "cosine")
    answer = type(explainer.module).answer

    def wrong(self, *arguments):
        parts = answer(self, *arguments)
        rest = parts.rest.clone()
        rest[2] += 0.25
        return parts._replace(rest=rest)

    monkeypatch.setattr(type(explainer.module), "answer", wrong)
    assert sum_rule(explainer, as_samples(labelled), batch_size=12) == pytest.approx(0.25, abs=1e-5)
