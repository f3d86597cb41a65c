"""Read state dicts without executing anything, and load them whatever stands before their names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import NetworkError


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict without executing anything from the file.

    Args:
        path: A .safetensors file, or torch's own format: a state dict, or a checkpoint with one as "state_dict" or
            "model".

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        NetworkError: If the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise NetworkError(f"no weights file {path}; give the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise types of their own for damaged files
        # Of torch the first sentence: others advise to unpickle.
        reason = " ".join((str(error) or type(error).__name__).splitlines()[0].partition(". ")[0].split())
        raise NetworkError(
            f"cannot read weights from {path}: {reason}; it must hold tensors alone, since pickled objects are not "
            "read: write it again with safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from error
    if isinstance(state, dict):  # a training checkpoint holds it beside the optimiser's
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise NetworkError(f"{path} does not hold a state dict of tensors; save `model.state_dict()` instead")
    return state


def without_prefixes(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Strip what DataParallel, `torch.compile`, Lightning and other containers put before a module's names.

    Args:
        state: Name -> tensor.
        module: The module to load it into.

    Returns:
        The state dict without the prefix, such as "module." or "state_dict.model.", under which it has most of the
        module's names; entries without this prefix are left out.

    Raises:
        NetworkError: If there are several such prefixes, as in a checkpoint of a teacher and a student.
    """
    state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    expected = {name.replace("_orig_mod.", "") for name in module.state_dict()}
    found: Counter[str] = Counter()
    for name in state:
        starts = [0, *(index + 1 for index, character in enumerate(name) if character == ".")]
        found.update(name[:start] for start in starts if name[start:] in expected)
    most = max(found.values(), default=0)
    best = [prefix for prefix, count in found.items() if count == most]
    if found[""] == most or most < len(expected) / 2:  # not a question of prefixes
        return state
    if len(best) > 1:
        raise NetworkError(f"the state dict holds several networks, {' and '.join(sorted(best))}; save one of them")
    return {name.removeprefix(best[0]): value for name, value in state.items() if name.startswith(best[0])}


def load_into(module: nn.Module, state: dict[str, Tensor], source: object, target: str) -> None:
    """Load a state dict; entries that the module lacks, such as those of a classifier, are ignored.

    Args:
        module: The module.
        state: Name -> tensor.
        source: Where the state dict came from, for messages.
        target: What the module is, for messages.

    Raises:
        NetworkError: If an entry is missing or has another shape.
    """
    state = without_prefixes(state, module)
    own = module.state_dict()
    expected = {name.replace("_orig_mod.", ""): value for name, value in own.items()}
    # Old files lack these counters, and nothing depends on them.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise NetworkError(
            f"{source} does not fit {target}: {len(missing)} of its {len(expected)} entries are missing, first "
            f"{missing[0]!r}; name the network that it was saved from"
        )
    for key, value in expected.items():
        if key in state and state[key].shape != value.shape:
            raise NetworkError(
                f"{source} does not fit {target}: {key!r} has shape {tuple(state[key].shape)}, expected "
                f"{tuple(value.shape)}; name the network that it was saved from"
            )
    module.load_state_dict({key: state.get(key.replace("_orig_mod.", ""), value) for key, value in own.items()})
