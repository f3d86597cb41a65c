"""The weightings against loops over their formulas, and their closed forms against whole maps."""

import itertools
import subprocess
import sys

import pytest
import torch

from embedcam.explain.weighting import WEIGHTINGS

# Name -> whether alpha's denominator sums A g³ cell by cell, and its epsilon.
PLUS_PLUS = {"gradcam++": (False, 1e-6), "gradcam++-exact": (False, 0), "gradcam++-elementwise": (True, 1e-7)}


def made(*shape):
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(shape, generator=generator, dtype=torch.float64)
    return maps, torch.randn(shape, generator=generator, dtype=torch.float64) / 10


@pytest.mark.parametrize("method", PLUS_PLUS)
def test_gradcam_plus_plus_equals_the_loop_over_the_formula(method):
    maps, gradients = made(2, 3, 4, 5)
    elementwise, epsilon = PLUS_PLUS[method]
    weights = WEIGHTINGS[method](maps, gradients)
    for b, k in itertools.product(range(2), range(3)):
        a, g = maps[b, k], gradients[b, k]
        expected = 0.0
        for value in g.flatten().tolist():
            third = float((a * g**3).sum()) if elementwise else float(a.sum()) * value**3
            expected += value**2 / (2 * value**2 + third + epsilon) * max(value, 0)
        assert float(weights[b, k]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", ["gradcam", *PLUS_PLUS])
def test_the_closed_form_is_that_of_whole_maps_with_equal_gradients(method):
    maps, gradients = made(2, 3, 4, 5)
    gradients = gradients[..., :1, :1]
    whole = WEIGHTINGS[method](maps, gradients.expand_as(maps) / 20)
    pooled = WEIGHTINGS[method].pooled(maps.mean(dim=(-2, -1)), gradients[..., 0, 0], 20)
    torch.testing.assert_close(pooled, whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ["gradcam", *PLUS_PLUS])
def test_leading_axes_are_independent(method):
    maps, gradients = made(5, 2, 3, 4, 4)
    together = WEIGHTINGS[method](maps, gradients)
    single = [
        [WEIGHTINGS[method](*pair) for pair in zip(*row, strict=True)] for row in zip(maps, gradients, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack([torch.stack(row) for row in single]), rtol=1e-12, atol=0)


def test_exact_gradcam_plus_plus_does_not_underflow():
    weights = WEIGHTINGS["gradcam++-exact"](torch.full((1, 1, 2, 2), 0.25), torch.full((1, 1, 2, 2), 1e-30))
    torch.testing.assert_close(weights, torch.full((1, 1), 2e-30))  # alpha is 1/2


def test_names_are_listed_without_torch():
    code = "import sys; from embedcam.explain.weighting import WEIGHTINGS; list(WEIGHTINGS); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
