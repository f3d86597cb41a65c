"""The state of a training run as arrays, which a part of the run stores; nothing is ever unpickled."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def state(
    history: list[dict[str, float]], net: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, NDArray[Any]]:
    """Collect the state of a run after an epoch.

    Args:
        history: Scores of each epoch.
        net: The network.
        objective: The loss, which may have proxies.
        optimizer: Over the trained parameters of both.

    Returns:
        The arrays to store.
    """
    tensors = {f"net.{key}": value for key, value in net.state_dict().items()}
    tensors |= {f"objective.{key}": value for key, value in objective.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
    arrays = {key: value.detach().cpu().numpy() for key, value in tensors.items()}
    return {"history": np.array(json.dumps(history)), **arrays}


def restore(
    arrays: dict[str, NDArray[Any]], net: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    """Restore the state of a run in place.

    Args:
        arrays: Result of `state` in the same run.
        net: The network.
        objective: The loss.
        optimizer: Over the trained parameters of both.

    Returns:
        Scores of each finished epoch.
    """

    def tensors(prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): torch.from_numpy(array) for key, array in arrays.items() if key.startswith(prefix)
        }

    net.load_state_dict(tensors("net."))
    objective.load_state_dict(tensors("objective."))
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors("optimizer.").items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    history: list[dict[str, float]] = json.loads(arrays["history"].item())
    return history
