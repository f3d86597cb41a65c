"""The state of a training run, in safetensors: nothing is ever unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError
from ..utils.files import write_bytes

_KEY = "embedcam-checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Attributes:
        run: What the run was started with; a checkpoint of another run is refused.
        epoch: Epochs done.
        history: A row of scores an epoch.
    """

    run: dict[str, Any]
    epoch: int
    history: list[dict[str, float]]


def path_of(out: Path) -> Path:
    """Name the checkpoint of a run.

    Args:
        out: The network file that the run will write.

    Returns:
        The file beside it.
    """
    return out.with_name(f"{out.stem}.checkpoint.safetensors")


def save(path: Path, state: Checkpoint, net: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of a run, whole or not at all.

    Args:
        path: Where to.
        state: Where the run stands.
        net: The network.
        objective: The loss, which may have proxies.
        optimizer: Over the trained parameters of both.

    Raises:
        OutputError: If it cannot be written.
    """
    from safetensors.torch import save as to_bytes

    tensors = {f"net.{key}": value for key, value in net.state_dict().items()}
    tensors |= {f"objective.{key}": value for key, value in objective.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
    about = json.dumps({"run": state.run, "epoch": state.epoch, "history": state.history}, sort_keys=True)
    write_bytes(
        path,
        to_bytes({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata={_KEY: about}),
    )


def load(
    path: Path, run: dict[str, Any], net: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> Checkpoint:
    """Go back to where a run stood.

    Args:
        path: The checkpoint.
        run: What this run was started with.
        net: Filled in place.
        objective: Filled in place.
        optimizer: Filled in place.

    Returns:
        Where the run stands.

    Raises:
        NetworkError: If the file is damaged, or of a run that was started otherwise.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dictionary)
        found = Checkpoint(about["run"], about["epoch"], about["history"])
    except Exception as error:  # safetensors raises a type of its own
        raise NetworkError(
            f"{path} is not a readable checkpoint: {error}; delete it and train from the start"
        ) from error
    differs = [
        f"{key} {found.run.get(key)!r} then, {value!r} now" for key, value in run.items() if found.run.get(key) != value
    ]
    if differs:
        raise NetworkError(
            f"{path} is of another run ({'; '.join(differs)}); resume with the same options, or leave --resume out"
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    net.load_state_dict(part("net."))
    objective.load_state_dict(part("objective."))
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in part("optimizer.").items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return found
