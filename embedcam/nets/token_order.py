"""Find where the tokens of the cells lie among all tokens of a layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import LayerError
from .grad_mode import GradientsKept
from .layout import Layout
from .passes import noise, run

# To find the order of tokens: how many are probed; what makes a peak, its share of the gradient that tokens do not have
# in common, and how many times the mean of all cells it is; and how far from its own cell it may lie.
_PROBED, _SHARP, _HIGH, _NEAR = 8, 0.2, 4, 2.0
# Without peaks: the mean rank of a token's own cell among all cells, from 0 to 1, that is no chance.
_RANK = 0.85


@torch.inference_mode(False)
def ordered(model: nn.Module, layer: str, layout: Layout, certain: bool) -> Layout:
    """Find how many of the further tokens come before the cells, and check that the cells are in rows.

    The squared gradient of a token with respect to the image, less its mean over tokens, has its peak where the token's
    cell is.

    Args:
        model: A module that takes images (B, C, H, W).
        layer: Dotted name of the layer.
        layout: Of its output, with all further tokens as prefix.
        certain: The number of tokens is no coincidence, see `Survey.certain`.

    Returns:
        The layout with prefix and suffix.

    Raises:
        LayerError: If the tokens are not in the order of rows, or that cannot be measured.
    """
    assert layout.grid is not None
    assert layout.input_size is not None
    (height, width), extra = layout.grid, layout.prefix
    generator = torch.Generator().manual_seed(0)
    image = noise(model, layout.input_size, 1).requires_grad_()
    probed = torch.randperm(height * width - extra, generator=generator)[:_PROBED] + extra

    def energies(output: Tensor) -> Tensor:
        tokens = layout.tokens(output)[0].float()
        signs = torch.randint(0, 2, (tokens.shape[1],), generator=generator).to(tokens.device) * 2 - 1
        mixtures = [(tokens[int(index)] * signs).sum() for index in probed]
        gradients = [torch.autograd.grad(each, image, retain_graph=True)[0] for each in mixtures]
        energy = torch.cat(gradients).float().square().sum(dim=1, keepdim=True)
        return functional.adaptive_avg_pool2d(energy, (height, width)).flatten(1).cpu()

    try:
        with GradientsKept(), torch.enable_grad():
            energy = torch.nan_to_num(run(model, layer, image, energies))
    except RuntimeError:  # a network without derivatives
        return _as_said(model, layer, layout, certain)
    share = energy / energy.sum(dim=1, keepdim=True).clamp(min=1e-30)
    residual = (share - share.mean(dim=0)).clamp(min=0)
    peak, place = residual.max(dim=1)
    sharp = (peak > _SHARP * residual.sum(dim=1)) & (peak > _HIGH / (height * width))
    if int(sharp.sum()) < _PROBED // 3:
        own = (probed[:, None] - torch.arange(extra + 1)).clamp(max=height * width - 1)
        ranks = (residual[:, None] < residual.gather(1, own)[..., None]).float().mean(dim=2).mean(dim=0)
        prefix = int(ranks.argmax())
        known = bool(ranks.max() > _RANK)
        return (
            replace(layout, prefix=prefix, suffix=extra - prefix) if known else _as_said(model, layer, layout, certain)
        )
    shift = (probed - place)[sharp]
    usual = shift[(shift >= 0) & (shift <= extra)]
    prefix = int(usual.mode().values) if len(usual) else extra
    own, found = (probed - prefix)[sharp], place[sharp]
    distance = torch.hypot((own // width - found // width).float(), (own % width - found % width).float())
    if float(distance.median()) > _NEAR:
        raise LayerError(
            f"the tokens of layer {layer!r} are not in the order of rows: they respond to other places of the image; "
            "choose a later layer, or order them with wrap(..., to_maps=...)"
        )
    return replace(layout, prefix=prefix, suffix=extra - prefix)


def _as_said(model: nn.Module, layer: str, layout: Layout, certain: bool) -> Layout:
    """Take the number of tokens before the cells from the library, or else put all of them there."""
    said, extra = said_prefix(model), layout.prefix
    if said is not None and said <= extra:
        return replace(layout, prefix=said, suffix=extra - said)
    if not certain:
        raise LayerError(
            f"it cannot be measured whether the tokens of layer {layer!r} are a grid of cells: the network takes one "
            "input size only, and its gradients do not show where the tokens are; use wrap(..., to_maps=...)"
        )
    return layout


def said_prefix(model: nn.Module) -> int | None:
    """Return timm's number of tokens before the cells.

    Args:
        model: The module.

    Returns:
        The number; None if the model does not say it.
    """
    said = (getattr(module, "num_prefix_tokens", None) for module in model.modules())
    return next((number for number in said if isinstance(number, int)), None)
