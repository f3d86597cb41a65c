"""Networks by SPEC, as it is typed on the command line. Imports no torch until a network is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NetworkError
from .family import NETWORKS, NetworkFamily, NetworkOptions
from .source import NetworkSource, library

if TYPE_CHECKING:
    from .network import Network

__all__ = ["NETWORKS", "NetworkFamily", "NetworkOptions", "load_network", "load_recorded"]


def load_network(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    layer: str | None = None,
    output: int | str | None = None,
    metric: str | None = None,
    input_size: tuple[int, int] | None = None,
) -> Network:
    """Load a network by its SPEC.

    Args:
        spec: Path of a file that `EmbeddingNet.save` wrote; or the prefix of a registered family, and its argument:
            `torchvision:NAME`, `timm:NAME`, `hf:ORG/NAME`, `open_clip:MODEL/PRETRAINED`, `sentence-transformers:NAME`,
            `python:package.module:function`.
        weights: File with a state dict, or "DEFAULT" for the weights that the family publishes.
        layer: Dotted name of the feature layer; the last spatial one if None.
        output: Which part of the module's output is the embedding: an index or a key.
        metric: "cosine" or "euclidean"; the family's own if None.
        input_size: (height, width) of the input in pixels; the family's own if None.

    Returns:
        The network, in evaluation mode, on the CPU.

    Raises:
        NetworkError: If the SPEC is unknown, or the network cannot be loaded or does not take one of the options.
        LayerError: If there is no such layer.
        MissingDependencyError: If the family needs a library that is not installed.
    """
    options = NetworkOptions(None if weights is None else str(weights), layer, output, metric, input_size)
    prefix, colon, argument = str(spec).partition(":")
    source = NetworkSource(str(spec), options.weights or "", "" if output is None else str(output))
    if prefix in NETWORKS:
        if not argument:
            raise NetworkError(f"network {str(spec)!r} is incomplete; write {NETWORKS.usage(prefix)!r}")
        family = NETWORKS[prefix]
        net = family.load(argument, options).eval()
        net.source = replace(source, library=library(family.library))
        return net
    path = Path(spec)
    if not path.is_file():
        if colon and path.suffix != ".safetensors":
            NETWORKS[prefix]  # raises an error that names the nearest family
        families = " or ".join(map(NETWORKS.usage, NETWORKS))
        raise NetworkError(f"no network file {path}; give the path of a .safetensors file, or {families}")
    net = _embedding_net(path, options)
    net.source = source
    return net


def load_recorded(source: NetworkSource | None, folder: Path, **options: Any) -> Network:
    """Load the network that a weight database records.

    Args:
        source: As recorded; None if the database was built from a network in Python.
        folder: Where the database lies; a file is looked for where it was, and there.
        options: `layer`, `metric` and `input_size` of `load_network`, as recorded.

    Returns:
        The network.

    Raises:
        NetworkError: If it is not recorded, loading it may run code, or its file is gone or has changed.
    """
    if source is None:
        raise NetworkError(
            "the file does not record where its network came from; name it with --net, or pass it in Python"
        )
    prefix, _, argument = source.spec.partition(":")
    family = NETWORKS[prefix] if argument and prefix in NETWORKS else None
    if family is not None and not family.safe:
        raise NetworkError(
            f"the recorded network is {source.spec}, which runs code and is not loaded without being asked for; "
            "name it with --net"
        )
    source = source.found(folder)
    if family is None:
        options = {"layer": options["layer"]}  # the others are stored in the file
    output = int(source.output) if source.output.isdecimal() else source.output
    return load_network(source.spec, weights=source.weights or None, output=None if output == "" else output, **options)


def _embedding_net(path: Path, options: NetworkOptions) -> Network:
    from .embedding import EmbeddingNet

    options.refuse("weights", "output", "metric", "input_size", reason=f"{path} has its own")
    net = EmbeddingNet.load(path)
    if options.layer is not None:
        net.layer = options.layer
    return net
