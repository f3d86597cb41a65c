"""The batched weights against one autograd call a triplet, written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from embedcam.errors import TargetError
from embedcam.explain import grad_weights as module
from embedcam.explain.grad_weights import direction, grad_weights
from embedcam.explain.weighting import WEIGHTINGS, Weighting

BATCH, CHANNELS, SIDE, DIM, PAIRS = 3, 6, 4, 5, 7


def head(hidden: bool) -> nn.Module:
    torch.manual_seed(1)
    if not hidden:
        return nn.Linear(CHANNELS, DIM)
    return nn.Sequential(nn.Linear(CHANNELS, 9), nn.ReLU(), nn.Linear(9, DIM))


def embedder(layer: nn.Module, metric: str):
    def embed(maps: torch.Tensor) -> torch.Tensor:
        z = layer(maps.mean(dim=(2, 3)))
        return functional.normalize(z) if metric == "cosine" else z

    return embed


def brute_force(embed, maps, positives, negatives, metric, method):
    """Grad-CAM equation 1, or Grad-CAM++ equations 5 and 19, for each triplet by itself, then the mean."""
    result = torch.zeros(BATCH, CHANNELS, dtype=maps.dtype)
    for b in range(BATCH):
        for j in range(PAIRS):
            anchor = maps[b : b + 1].clone().requires_grad_()
            z, p, n = embed(anchor)[0], positives[b, j], negatives[b, j]
            margin = z @ p - z @ n if metric == "cosine" else ((z - n) ** 2).sum() - ((z - p) ** 2).sum()
            (g,) = torch.autograd.grad(margin, anchor)
            if method == "gradcam":
                weights = g.mean(dim=(2, 3))
            else:
                total = anchor.detach().sum(dim=(2, 3), keepdim=True)
                below = 2 * g**2 + total * g**3
                alpha = torch.where(below != 0, g**2 / torch.where(below != 0, below, 1), 0)
                weights = (alpha * g.clamp(min=0)).sum(dim=(2, 3))
            result[b] += weights[0] / PAIRS
    return result


def made(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(BATCH, CHANNELS, SIDE, SIDE, generator=generator, dtype=dtype)
    partners = functional.normalize(torch.randn(2, BATCH, PAIRS, DIM, generator=generator, dtype=dtype), dim=-1)
    return maps, partners[0], partners[1]


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [False, True], ids=["linear", "hidden"])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++-exact"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("pooled", [False, True], ids=["maps", "pooled"])
def test_weights_of_a_batch_equal_the_average_over_single_triplets(metric, method, hidden, dtype, pooled):
    maps, positives, negatives = made(dtype)
    embed = embedder(head(hidden).to(dtype), metric)
    directions = direction(positives, negatives, metric)

    if pooled:
        found = grad_weights(embed, maps.mean(dim=(2, 3), keepdim=True), directions, method, cells=SIDE * SIDE)
    else:
        found = grad_weights(embed, maps, directions, method)

    expected = brute_force(embed, maps, positives, negatives, metric, method)
    assert relative_error(found, expected) < (1e-6 if dtype == torch.float32 else 1e-12)


def test_a_weighting_without_a_closed_form_needs_whole_maps(monkeypatch):
    monkeypatch.setitem(WEIGHTINGS._parts, "whole", Weighting(lambda maps, gradients: maps.amax(dim=(-2, -1))))
    maps, positives, negatives = made(torch.float32)
    given = embedder(head(False), "cosine"), maps, direction(positives, negatives, "cosine"), "whole"
    torch.testing.assert_close(grad_weights(*given), maps.amax(dim=(2, 3)))
    with pytest.raises(TargetError, match="method 'whole' has no form for pooled maps; give whole feature maps"):
        grad_weights(*given, cells=4)


def test_a_small_budget_changes_nothing(monkeypatch):
    maps, positives, negatives = made(torch.float64)
    embed, directions = embedder(head(True).double(), "cosine"), direction(positives, negatives, "cosine")
    whole = grad_weights(embed, maps, directions, "gradcam++-exact")
    monkeypatch.setattr(module, "_BUDGET", 2 * maps.numel())

    torch.testing.assert_close(grad_weights(embed, maps, directions, "gradcam++-exact"), whole, rtol=1e-13, atol=0)


def test_an_easy_triplet_still_has_a_gradient():
    maps, positives, _ = made(torch.float64)
    embed = embedder(head(False).double(), "cosine")
    z = embed(maps)
    # The positive all but equals the anchor, the negative is opposite: any hinge would be long closed.
    near = functional.normalize(z + 0.01 * positives[:, 0]).detach()[:, None]

    weights = grad_weights(embed, maps, direction(near, -near, "cosine"))

    assert (weights.norm(dim=1) > 0).all()


def test_weights_scale_with_the_gradient_down_to_the_smallest():
    """Grad-CAM++ has no epsilon that swamps gradients of 1e-8, as stored weights have."""
    maps, positives, negatives = made(torch.float32)
    embed, directions = embedder(head(False), "cosine"), direction(positives, negatives, "cosine")
    small = grad_weights(embed, maps * 1e-6, directions * 1e-9, "gradcam++-exact")
    large = grad_weights(embed, maps * 1e-6, directions, "gradcam++-exact")

    torch.testing.assert_close(small * 1e9, large, rtol=1e-4, atol=0)
