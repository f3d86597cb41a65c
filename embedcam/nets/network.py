"""The interface of networks that embedcam explains."""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..errors import LayerError, NetworkError
from . import identity, layers
from .cells import Cells
from .heads.head import Head
from .heads.means import of_means
from .heads.tape import Tape
from .layout import Reading
from .passes import in_channels, noise
from .source import NetworkSource
from .survey import measure

METRICS = ("cosine", "euclidean")
COARSE = 7  # cells on a side; maps of fewer do not point at anything

logger = logging.getLogger("embedcam")


class Activations(NamedTuple):
    """The result of one forward pass.

    Attributes:
        maps: Feature maps, float32 (B, K, h, w), a copy.
        embeddings: float32 (B, D), of length 1 if the metric is cosine.
        fine: Feature maps of a second layer, float32 (B, K', h', w'), a copy; None if no second layer was asked for.
        tape: What was computed after the feature layer, for `Network.cells`; None if the network is known to have no
            cell embeddings.
        phases: What the feature layer returned for each offset of strides that are undone, see `DenseNet`; None for
            other networks.
    """

    maps: Tensor
    embeddings: Tensor
    fine: Tensor | None = None
    tape: Tape | None = None
    phases: tuple[Tensor, ...] | None = None


class Network(nn.Module, ABC):
    """An embedding network and its feature layer, the layer that is explained.

    Attributes:
        architecture: Name of the architecture.
        metric: "cosine" (embeddings have length 1) or "euclidean".
        preprocess: Converts a picture to an input.
        source: What `load_network` loaded; None if the network was made in Python.
    """

    architecture: str
    metric: str
    preprocess: Preprocess
    source: NetworkSource | None = None

    def __init__(self, architecture: str, metric: str, preprocess: Preprocess) -> None:
        super().__init__()
        if metric not in METRICS:
            raise NetworkError(f"unknown metric {metric!r}; use one of {', '.join(METRICS)}")
        self.architecture, self.metric, self.preprocess = architecture, metric, preprocess
        self._layer = ""
        self._readings: dict[str, Reading] = {}
        self._shape: tuple[int, int, int, int] | None = None
        self._head: Head | str | None = None  # the head as measured, or the reason why there are no cell embeddings
        self._memory_format: torch.memory_format | None = None
        self._failure: Exception | None = None
        self._used: frozenset[str] | None = None

    @property
    @abstractmethod
    def body(self) -> nn.Module:
        """The module in which layer names are looked up."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W), normalised, of the network's device and number type.

        Returns:
            float32 (B, D), whatever the number type of the network; of length 1 if the metric is cosine.

        Raises:
            NetworkError: If a module does not return embeddings.
        """

    @abstractmethod
    def finish(self, output: Any) -> Tensor:
        """Compute embeddings from what `body` returned.

        Args:
            output: Of `body`.

        Returns:
            As for `embed`.

        Raises:
            NetworkError: If a module does not return embeddings.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W), normalised; converted to the device and number type of the network.

        Returns:
            float32 (B, D), whatever the number type of the network; of length 1 if the metric is cosine.
        """
        return self.embed(layers.as_input(self, images))

    @property
    def layer(self) -> str:
        """Dotted name of the feature layer in `body`."""
        return self._layer

    @layer.setter
    def layer(self, name: str) -> None:
        self._layer, self._shape, self._head = layers.path(self.body, name), None, None

    @property
    def feature_layer(self) -> nn.Module:
        """The module named by `layer`."""
        return layers.resolve(self.body, self._layer)

    def activations(self, images: Tensor, fine: str | None = None) -> Activations:
        """Run one forward pass and keep the feature maps.

        Args:
            images: (B, 3, H, W), normalised; converted to the device and number type of the network.
            fine: Dotted name of a second layer to keep.

        Returns:
            Feature maps, embeddings, and the input of the head.

        Raises:
            LayerError: If a layer does not exist, does not run, or has no spatial output.
        """
        with self.recording(fine) as seen:
            embeddings = self.embed(layers.as_input(self, images))
        return seen(embeddings, images)

    @contextlib.contextmanager
    def recording(self, fine: str | None = None) -> Iterator[Callable[[Tensor, Tensor], Activations]]:
        """Observe one forward pass of this thread.

        Args:
            fine: As for `activations`.

        Yields:
            From the embeddings (B, D) and the images to what `activations` returns. Embeddings must be computed inside.

        Raises:
            LayerError: As for `activations`.
        """
        captured = {name: layers.resolve(self.body, name) for name in (self._layer, fine) if name is not None}
        tape = None if isinstance(self._head, str) else Tape(captured[self._layer])

        def seen(embeddings: Tensor, images: Tensor) -> Activations:
            for name in captured:
                if name not in grabbed:
                    raise LayerError(f"layer {name!r} did not run; choose one on the way to the embedding")
            maps = {name: self.as_maps(output, images, name).float() for name, output in grabbed.items()}
            return Activations(maps[self._layer], embeddings, maps[fine] if fine is not None else None, tape)

        with layers.capture(captured) as grabbed, tape or contextlib.nullcontext():
            yield seen

    def cells(self, seen: Activations, output: Tensor | None = None) -> Cells:
        """Decompose embeddings over the cells of the feature layer, without a backward pass.

        Args:
            seen: Of `activations`.
            output: What else the feature layer might have returned: its cells are taken in place of those that were
                seen, and everything that is held is held at its value in `seen`.

        Returns:
            What each cell adds, and what none of them adds.

        Raises:
            NetworkError: If the embedding is no sum over cells; the message has the reason.
        """
        head = self.require_decomposable()
        assert seen.tape is not None
        return head.cells(seen.tape, seen.embeddings, (seen.maps.shape[2], seen.maps.shape[3]), output)

    def require_decomposable(self) -> Head:
        """Measure what follows the feature layer, once.

        Returns:
            What gives cell embeddings.

        Raises:
            NetworkError: If the embedding is no sum over cells; the message has the reason.
        """
        head = self._measured_head()
        if isinstance(head, str):
            raise NetworkError(
                f"the embedding of {self.architecture} cannot be decomposed over the cells of layer {self.layer!r}: "
                f"{head}; choose another layer"
            )
        return head

    @property
    def decomposable(self) -> bool:
        """Whether `cells` gives cell embeddings of the feature layer that add up to the embedding; measured once."""
        return isinstance(self._measured_head(), Head)

    def head_of_means(self) -> Callable[[Tensor], Tensor] | None:
        """Measure whether the network sees only the mean of each feature map; its parameters may have changed since.

        Returns:
            From means (B, K) to embeddings (B, D), differentiable; None if the network sees more.
        """
        with layers.evaluating(self), torch.no_grad():
            images = noise(self.body, self.preprocess.input_size, 1)
            seen, other = self.activations(images), self.activations(-images)
            head = None if seen.tape is None else of_means(seen.tape, seen.maps, seen.embeddings)
            if head is None or not torch.allclose(head(other.maps.mean(dim=(2, 3))), other.embeddings, atol=1e-3):
                return None
        return head

    def _measured_head(self) -> Head | str:
        """Measure the head on noise; return the reason if it gives no cell embeddings."""
        if self._head is None:
            height, width = self.preprocess.input_size
            with layers.evaluating(self), torch.inference_mode():
                try:
                    head = self._head_at((height, width))
                    with contextlib.suppress(Exception):  # of a network that takes images of one size only
                        head = head.of_any_size(self._head_at((height, 2 * width)))
                    self._head = head
                except NetworkError as error:
                    self._head = str(error)
        return self._head

    def _head_at(self, size: tuple[int, int]) -> Head:
        images = noise(self.body, size, 2)
        seen = self.activations(images)
        assert seen.tape is not None
        if seen.tape.source is None:
            raise NetworkError("its output is not one tensor")
        output = seen.tape.source.value
        numbers = torch.full((output.numel(),), -1)
        places = self.as_maps(torch.arange(output.numel()).view(output.shape), images)
        cells = torch.arange(places.shape[2] * places.shape[3]).view(places.shape[2:])
        numbers[places.flatten()] = cells.expand(places.shape).flatten()
        return Head.measured(seen.tape, seen.embeddings, numbers.view(output.shape), (cells.shape[0], cells.shape[1]))

    def as_maps(self, output: Tensor, images: Tensor, layer: str | None = None) -> Tensor:
        """Convert a layer's output to feature maps.

        Args:
            output: The output of the layer.
            images: (B, 3, H, W), the images it was computed for.
            layer: Dotted name of the layer; the feature layer if None.

        Returns:
            (B, K, h, w).
        """
        # Sizes stay symbolic, for export.
        maps = self.reading(layer).maps(output, (images.shape[2], images.shape[3]))
        if maps.shape[0] != images.shape[0]:
            raise LayerError(
                f"layer {layer or self._layer!r} has maps of {maps.shape[0]} images for a batch of {images.shape[0]}; "
                "choose a layer that runs on each image once"
            )
        return maps

    def reading(self, layer: str | None = None) -> Reading:
        """Return how a layer's output is converted to feature maps; measured once.

        Args:
            layer: Dotted name of the layer; the feature layer if None.

        Returns:
            Its layout.

        Raises:
            LayerError: If the layer does not run once, or its output is no grid of cells.
        """
        name = self._layer if layer is None else layer
        if name not in self._readings:
            self._readings[name] = measure(self.body, name, self.preprocess.input_size)
        return self._readings[name]

    def _measure(self) -> tuple[int, int, int, int]:
        """Return K, h, w and D, found by one forward pass."""
        if self._shape is None:
            self._failure = None
            images = noise(self.body, self.preprocess.input_size, 2)
            try:
                with layers.evaluating(self), torch.inference_mode():
                    self.reading()
                    try:
                        seen = self.activations(images.contiguous(memory_format=torch.channels_last))
                        self._memory_format = torch.channels_last
                    except RuntimeError:  # a view in the forward pass may need the usual order
                        seen = self.activations(images)
                        self._memory_format = torch.contiguous_format
            except AttributeError as error:
                self._failure = error
                raise
            channels, height, width = seen.maps.shape[1:]
            self._shape = (channels, height, width, seen.embeddings.shape[1])
            grid = f"{channels} channels on {height} x {width} cells"
            logger.info("%s is explained at layer %r: %s", self.architecture, self._layer, grid)
            if min(height, width) < COARSE:
                logger.warning(
                    "layer %r of %s has only %d x %d cells on images of %d x %d pixels, too few to point at parts; "
                    "choose a larger input size or an earlier layer",
                    *(self._layer, self.architecture, height, width, *self.preprocess.input_size),
                )
        return self._shape

    def __getattr__(self, name: str) -> Any:
        # Called after an AttributeError in a property, which is the user's own and not that the property is missing.
        failure = self.__dict__.get("_failure")
        if failure is not None and isinstance(getattr(type(self), name, None), property):
            raise failure
        return super().__getattr__(name)

    @property
    def memory_format(self) -> torch.memory_format:
        """Order of images in memory: channels last, which is faster, where the network takes it."""
        self._measure()
        assert self._memory_format is not None
        return self._memory_format

    @property
    def in_channels(self) -> int:
        """Number C of channels of the images."""
        return in_channels(self.body, self.preprocess.input_size)

    @property
    def channels(self) -> int:
        """Number K of channels of the feature layer."""
        return self._measure()[0]

    @property
    def map_size(self) -> tuple[int, int]:
        """Size (h, w) of the feature maps at the network's input size."""
        return self._measure()[1:3]

    @property
    def dim(self) -> int:
        """Number D of dimensions of the embedding."""
        return self._measure()[3]

    @property
    def plain(self) -> Network:
        """The network whose forward pass is that of `body` alone; itself unless strides are undone."""
        return self

    @property
    def density(self) -> tuple[int, int]:
        """How many cells (y, x) there are for one of those that the head sees; (1, 1) unless strides are undone."""
        return 1, 1

    @property
    def device(self) -> torch.device:
        """Device of the network's parameters."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def facts(self) -> list[tuple[str, str]]:
        """Summarise the network in a few lines.

        Returns:
            (name, value) of each line.
        """
        head = self._measured_head()
        return [
            ("Network", f"{self.architecture}, {self.metric}, {self.dim} dimensions, sha256 {self.sha256()[:12]}"),
            *([] if self.source is None else [("Loaded from", str(self.source.sealed()))]),
            ("Input", str(self.preprocess)),
            ("Feature layer", f"{self.layer}, {self.channels} channels on {' x '.join(map(str, self.map_size))} cells"),
            ("Cells", "have embeddings that add up to the image's" if self.decomposable else f"no embeddings: {head}"),
        ]

    def sha256(self, number_type: str = "float32") -> str:
        """Hash the parameters and buffers that the embedding depends on.

        Args:
            number_type: To which values are rounded first: float32, float16 or bfloat16. A copy of the network in half
                precision has the hash that the network has when rounded to that type.

        Returns:
            64 hexadecimal digits, independent of the device and of containers such as `torch.compile`, DataParallel or
            a Lightning module, and unchanged by saving and loading.
        """
        return identity.sha256(self._identity(), number_type)

    @property
    def number_type(self) -> str:
        """The coarsest number type of the parameters: "float32" (also for finer ones), "float16" or "bfloat16"."""
        return identity.number_type(self._identity())

    def _identity(self) -> dict[str, Tensor]:
        if self._used is None:  # found once, by a forward pass
            images = noise(self.body, self.preprocess.input_size)
            self._used = frozenset(identity.used(self, lambda: self.embed(images)[0]))
        return {name: value for name, value in self.state_dict().items() if name in self._used}
