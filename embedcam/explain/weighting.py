"""Channel weightings: how gradients at the feature layer become one weight per channel. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import TargetError
from ..registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Weighting:
    """A formula that turns gradients at the feature layer into channel weights.

    Attributes:
        formula: From feature maps (..., K, h, w) and the gradients of the target with respect to them (..., K, h, w)
            to channel weights (..., K).
        linear: Whether the weights are linear in the gradients and do not depend on the maps. The mean over all
            triplets of an image then takes one vector-Jacobian product, with the mean direction.
        pooled: The same formula in closed form for a head that starts with global average pooling, where the gradients
            of all cells are equal: from the means of the maps (..., K), the gradients with respect to the means
            (..., K) and the number of cells h * w to channel weights (..., K). None if there is no such form; the
            builder then computes the feature maps a second time.
    """

    formula: Callable[[Tensor, Tensor], Tensor]
    linear: bool = False
    pooled: Callable[[Tensor, Tensor, int], Tensor] | None = None

    def __call__(self, maps: Tensor, gradients: Tensor) -> Tensor:
        """Compute channel weights (..., K) from maps and gradients (..., K, h, w)."""
        return self.formula(maps, gradients)


WEIGHTINGS: Registry[Weighting] = Registry("method", "embedcam.weightings", TargetError)


def _gradcam(_maps: Tensor, gradients: Tensor) -> Tensor:
    """Average the gradients over space.

    Source: Grad-CAM (arXiv 1610.02391) equation 1.
    """
    return gradients.mean(dim=(-2, -1))


def _gradcam_plus_plus(maps: Tensor, gradients: Tensor) -> Tensor:
    """Weight by Grad-CAM++ as the package grad-cam does: alpha = g² / (2 g² + ΣA · g³ + 1e-6).

    Gradients below about 1e-3, the square root of the epsilon, count for less and less.

    Source: Grad-CAM++ (arXiv 1710.11063) equations 5 and 19; grad-cam 1.5.7.
    """
    squared = gradients.square()
    denominator = 2 * squared + maps.sum(dim=(-2, -1), keepdim=True) * squared * gradients + 1e-6
    return (squared / denominator * gradients.clamp(min=0)).sum(dim=(-2, -1))


def _gradcam_plus_plus_exact(maps: Tensor, gradients: Tensor) -> Tensor:
    """Weight by Grad-CAM++ without an epsilon: alpha = 1 / (2 + g ΣA), which is g² / (2 g² + ΣA · g³).

    No power of a small gradient underflows in this form, so the weights scale with the gradients.
    Where g ΣA <= -2 (possible only if maps have negative sums) alpha is not defined and taken as 0.

    Source: Grad-CAM++ (arXiv 1710.11063) equations 5 and 19.
    """
    denominator = 2 + gradients * maps.sum(dim=(-2, -1), keepdim=True)
    alpha = denominator.clamp(min=1e-7).reciprocal() * (denominator > 0)
    return (alpha * gradients.clamp(min=0)).sum(dim=(-2, -1))


def _gradcam_plus_plus_elementwise(maps: Tensor, gradients: Tensor) -> Tensor:
    """Weight by Grad-CAM++ as pytorch-gradcam does: alpha = g² / (2 g² + Σ(A · g³) + 1e-7).

    Source: Grad-CAM++ (arXiv 1710.11063) equations 5 and 19; pytorch-gradcam 0.2.1.
    """
    squared = gradients.square()
    denominator = 2 * squared + (maps * squared * gradients).sum(dim=(-2, -1), keepdim=True)
    alpha = squared / (denominator.masked_fill(denominator == 0, 1) + 1e-7)
    return (alpha * gradients.clamp(min=0)).sum(dim=(-2, -1))


def _of_equal_cells(formula: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Make the closed form of a sum over cells that depends on the maps by their sum alone."""

    def pooled(means: Tensor, gradients: Tensor, cells: int) -> Tensor:
        sums, at_cell = means * cells, gradients / cells
        return cells * formula(sums[..., None, None], at_cell[..., None, None])

    return pooled


WEIGHTINGS.register("gradcam")(Weighting(_gradcam, linear=True, pooled=lambda _, gradients, cells: gradients / cells))
for _name, _formula in (
    ("gradcam++", _gradcam_plus_plus),
    ("gradcam++-exact", _gradcam_plus_plus_exact),
    ("gradcam++-elementwise", _gradcam_plus_plus_elementwise),
):
    WEIGHTINGS.register(_name)(Weighting(_formula, pooled=_of_equal_cells(_formula)))
