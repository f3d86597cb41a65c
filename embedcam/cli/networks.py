"""The options that choose a network, the same for every verb that takes one."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import completion, console
from .options import network_option

if TYPE_CHECKING:
    from ..database.record import NetworkRecord
    from ..database.weight_database import WeightDatabase
    from ..gallery import Gallery
    from ..nets import Network


@dataclass(frozen=True)
class NetworkChoice:
    """What was typed about the network; each field is an option of the verbs.

    Attributes:
        net: SPEC of the network, or None.
        weights: File with its weights, or "DEFAULT".
        layer: Feature layer.
        output: Which part of the module's output is the embedding.
        metric: How embeddings are compared.
        check: Require the network that the database was built for; no option of verbs without a database.
        input_size: Side or HEIGHTxWIDTH of the input.
    """

    net: Annotated[
        str | None,
        typer.Option(
            "--net",
            help="A file written by `embedcam train`, or {networks}.",
            metavar="NET",
            autocompletion=completion.registered("networks"),
        ),
    ] = None
    weights: Annotated[
        str | None, network_option(help="State dict for a --net that is a name, or DEFAULT.", metavar="FILE|DEFAULT")
    ] = None
    layer: Annotated[
        str | None, network_option(help="Feature layer; the last spatial one by default.", metavar="LAYER")
    ] = None
    output: Annotated[
        str | None,
        network_option(help="Index or key of the embedding, where the module returns several.", metavar="KEY"),
    ] = None
    metric: Annotated[
        Literal["cosine", "euclidean"] | None, network_option(help="How embeddings are compared; cosine by default.")
    ] = None
    check: Annotated[
        bool, network_option("--check/--no-check", help="Require the network that the database was built for.")
    ] = True
    input_size: Annotated[
        str | None,
        network_option(help="Side of the input in pixels; the network's own by default.", metavar="N|HEIGHTxWIDTH"),
    ] = None

    @property
    def files(self) -> list[str | None]:
        """What may be files that the verb reads, to protect them from being overwritten."""
        return [self.net, self.weights]

    def load(self, device: str) -> Network:
        """Load the network onto a device.

        Args:
            device: As for `console.device`.

        Returns:
            The network.

        Raises:
            EmbedcamError: If it cannot be loaded, or the device cannot be used.
        """
        from ..nets import load_network

        assert self.net is not None
        net = load_network(
            self.net,
            weights=self.weights,
            layer=self.layer,
            output=int(self.output) if self.output is not None and self.output.isdecimal() else self.output,
            metric=self.metric,
            input_size=_size(self.input_size),
        )
        return net.to(console.device(device))

    def with_database(self, db: Path, device: str) -> tuple[Network, WeightDatabase]:
        """Load a weight database, and the network that was named or that the database records.

        Args:
            db: The database's file.
            device: As for `console.device`.

        Returns:
            Both; the database as one of this network, if `check` is off.

        Raises:
            EmbedcamError: If one cannot be loaded.
        """
        from ..database.weight_database import WeightDatabase
        from ..explain.fitting import assumed_for

        database = WeightDatabase.load(db)
        net = self.load_as(database.network, db.parent, device)
        return net, database if self.check else assumed_for(net, database)

    def with_gallery(self, index: Path, device: str) -> Gallery:
        """Open a gallery with the network that was named or that its index records.

        Args:
            index: The gallery's index.
            device: As for `console.device`.

        Returns:
            The gallery; to be closed.

        Raises:
            EmbedcamError: If the index or the network cannot be loaded, or they do not belong together.
        """
        from ..gallery import Gallery

        with Gallery.open(index) as stored:
            network = self.load_as(stored.record.network, index.parent, device)
        return Gallery.open(index, network)

    def load_as(self, made: NetworkRecord, folder: Path, device: str) -> Network:
        """Load the network, or the one that a file was made with if none was named.

        Args:
            made: Of the file.
            folder: In which the file lies.
            device: As for `console.device`.

        Returns:
            The network.

        Raises:
            EmbedcamError: If it cannot be loaded, or the device cannot be used.
        """
        if self.net is not None:
            return self.load(device)
        if self != NetworkChoice(check=self.check):
            raise typer.BadParameter("the options of a network need --net; without it, the recorded network is used")
        net: Network = made.load(folder)
        return net.to(console.device(device))


def takes_network(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `net`, a `NetworkChoice`, of a verb by the options that choose a network.

    Args:
        verb: The verb; `--net` is required if the parameter has no default.

    Returns:
        The verb as the command line takes it.
    """
    signature = inspect.signature(verb, eval_str=True)
    chosen = [option for option in fields(NetworkChoice) if option.name != "check" or "db" in signature.parameters]
    options = []
    for option in chosen:
        annotation = inspect.get_annotations(NetworkChoice, eval_str=True)[option.name]
        required = option.name == "net" and signature.parameters["net"].default is inspect.Parameter.empty
        default = inspect.Parameter.empty if required else option.default
        options.append(inspect.Parameter(option.name, _KEYWORD, default=default, annotation=annotation))
    others = [p.replace(kind=_KEYWORD) for name, p in signature.parameters.items() if name != "net"]

    @functools.wraps(verb)
    def command(**typed: Any) -> None:
        verb(net=NetworkChoice(**{option.name: typed.pop(option.name) for option in chosen}), **typed)

    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[options[0], *others, *options[1:]]
    )
    return command


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def require_explainer(net: NetworkChoice, db: Path | None, onnx: Path | None) -> None:
    """Check that either a network and a database, or an ONNX file is given.

    Args:
        net: Of the network options.
        db: Of `--db`.
        onnx: Of `--onnx`.

    Raises:
        BadParameter: If not.
    """
    if (db is None) == (onnx is None) or (onnx is not None and net != NetworkChoice()):
        raise typer.BadParameter("give --db, with --net if it does not record its network, or --onnx alone")


def file_of(net: Network) -> str:
    """Return the file that a network was loaded from, which no output may replace.

    Args:
        net: The network, perhaps one that a file records.

    Returns:
        Its path; empty if there is none.
    """
    return "" if net.source is None else net.source.file


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not (sides := re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)):
        raise typer.BadParameter(f"--input-size must be like 224 or 256x128 (height x width), got {text!r}")
    return int(sides[1]), int(sides[2] or sides[1])
