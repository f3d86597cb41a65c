"""What each token adds to one row of an attention's output, with the attention weights held."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import arguments
from .tape import Node


def row_terms(node: Node, row: int) -> tuple[Tensor, Tensor | None]:
    """Decompose one row of an attention's output over the tokens.

    Args:
        node: The output, of a function in `states.ATTENTION`.
        row: The row, such as a class token's.

    Returns:
        (L, ...) with an axis of length 1 for the row, one term per token; and what no token adds, or None.
    """
    given = arguments.of(node)
    if node.name == "multi_head_attention_forward":
        return _multi_head(given, row)
    if node.name == "scaled_dot_product_attention":
        return _weighted(*_scaled_dot_product(given, row)), None
    return _weighted(given["query"].narrow(-2, row, 1), given["value"]), None


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """From (..., 1, L) and (..., L, d) to (L, ..., 1, d)."""
    terms: Tensor = (weights.transpose(-2, -1) * values).movedim(-2, 0).unsqueeze(-2)
    return terms


def _scaled_dot_product(given: dict[str, Any], row: int) -> tuple[Tensor, Tensor]:
    query, key, value = given["query"].narrow(-2, row, 1), given["key"], given["value"]
    if given.get("enable_gqa"):
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], dim=-3) for each in (key, value))
    scale = given.get("scale") or 1 / math.sqrt(query.shape[-1])
    scores = query @ key.transpose(-2, -1) * scale
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        mask = torch.arange(key.shape[-2], device=key.device) <= row
    if mask is not None:
        mask = mask.narrow(-2, row, 1) if mask.ndim > 1 and mask.shape[-2] > 1 else mask
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights: Tensor = scores.softmax(dim=-1)
    return weights, value


def _multi_head(given: dict[str, Any], row: int) -> tuple[Tensor, Tensor]:
    """Of `functional.multi_head_attention_forward`, whose tensors are (L, B, E)."""
    heads, width = given["num_heads"], given["embed_dim"]
    if given.get("use_separate_proj_weight"):
        weights = [given[f"{name}_proj_weight"] for name in "qkv"]
    else:
        weights = given["in_proj_weight"].split(width)
    biases = [None] * 3 if given.get("in_proj_bias") is None else given["in_proj_bias"].split(width)
    sides = (given["query"].narrow(0, row, 1), given["key"], given["value"])

    def split(side: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # to (B, heads, L, d)
        projected = functional.linear(side, weight, bias)
        by_head: Tensor = projected.unflatten(2, (heads, width // heads)).permute(1, 2, 0, 3)
        return by_head

    query, key, value = (split(*each) for each in zip(sides, weights, biases, strict=True))
    attended = (query @ key.transpose(-2, -1) / math.sqrt(width // heads)).softmax(dim=-1)
    terms = _weighted(attended, value).squeeze(-2).flatten(2)[:, None]  # (L, 1, B, E)
    terms = functional.linear(terms, given["out_proj_weight"])
    bias = given.get("out_proj_bias")
    rest: Tensor = torch.zeros_like(terms[0]) + (0 if bias is None else bias)
    return terms, rest
