"""Read the arguments of recorded functions by their names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .tape import Node

_NAMES = {
    "scaled_dot_product_attention": "query key value attn_mask dropout_p is_causal scale enable_gqa",
    "matmul": "query value",
    "bmm": "query value",
    "multi_head_attention_forward": "query key value embed_dim num_heads in_proj_weight in_proj_bias bias_k bias_v "
    "add_zero_attn dropout_p out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask "
    "use_separate_proj_weight q_proj_weight k_proj_weight v_proj_weight static_k static_v average_attn_weights "
    "is_causal",
    "linear": "input weight bias",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
    "group_norm": "input num_groups weight bias eps",
    "normalize": "input p dim eps",
}


def of(node: Node) -> dict[str, Any]:
    """Return the arguments of a recorded function.

    Args:
        node: The value that it returned.

    Returns:
        By name; in place of a node, its value. Floating-point tensors are float32.
    """
    return {name: _plain(argument) for name, argument in _named(node).items()}


def attended(node: Node) -> Any:
    """Return what an attention adds up: the values of its tokens.

    Args:
        node: Any value.

    Returns:
        A node if the values depend on the feature layer; None if the function is no attention.
    """
    return _named(node).get("value") if node.name in _NAMES else None


def joined(node: Node) -> int:
    """Return the axis along which a concatenation joins its parts.

    Args:
        node: The value that it returned.

    Returns:
        The axis, not negative.
    """
    axis: int = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return axis % node.value.ndim


def _named(node: Node) -> dict[str, Any]:
    return {**dict(zip(_NAMES[node.name].split(), node.args, strict=False)), **node.kwargs}


def _plain(argument: Any) -> Any:
    value = argument.value if isinstance(argument, Node) else argument
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
