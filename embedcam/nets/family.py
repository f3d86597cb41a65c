"""Families of networks, registered by the prefix of their SPEC. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..errors import NetworkError
from ..registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from .network import Network


@dataclass(frozen=True)
class NetworkOptions:
    """What a user may say about a network besides its SPEC; None leaves the choice to the family.

    Attributes:
        weights: File with a state dict, or "DEFAULT" for the published weights.
        layer: Dotted name of the feature layer.
        output: Which part of the module's output is the embedding: an index or a key.
        metric: "cosine" or "euclidean".
        input_size: (height, width) of the input in pixels.
    """

    weights: str | None = None
    layer: str | None = None
    output: int | str | None = None
    metric: str | None = None
    input_size: tuple[int, int] | None = None

    def refuse(self, *names: str, reason: str) -> None:
        """Refuse options that cannot take effect.

        Args:
            names: Of the attributes.
            reason: What determines them instead.

        Raises:
            NetworkError: If one of them is given.
        """
        given = [name for name in names if asdict(self)[name] is not None]
        if given:
            which = "it" if len(given) == 1 else "them"
            raise NetworkError(f"{', '.join(given)} cannot be chosen: {reason}; leave {which} out")


@dataclass(frozen=True)
class NetworkFamily:
    """A source of networks, registered in `NETWORKS` under the prefix of its SPEC.

    Attributes:
        load: Takes the SPEC without prefix, and the options; returns the network.
        argument: What follows the prefix, for messages and help, such as "NAME".
        library: Distribution whose version is recorded with the network.
        backbone: Makes the module that `load` wraps, with random weights, from the SPEC without prefix and the input
            size (height, width), for `embedcam train`; None if there is no such module.
        safe: Loading runs no code that the SPEC names, so that a weight database may name it.
    """

    load: Callable[[str, NetworkOptions], Network]
    argument: str = "NAME"
    library: str = ""
    safe: bool = False
    backbone: Callable[[str, tuple[int, int]], nn.Module] | None = None


NETWORKS: Registry[NetworkFamily] = Registry(
    "network family", "embedcam.networks", NetworkError, home="embedcam.nets.families"
)
