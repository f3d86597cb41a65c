"""What every network that embedcam explains can do."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..errors import LayerError, NetworkError
from . import layers

METRICS = ("cosine", "euclidean")


class Activations(NamedTuple):
    """What one forward pass gives.

    Attributes:
        maps: Feature maps (B, K, h, w), a copy.
        embeddings: (B, D), of length 1 when the network is cosine.
        vector: What enters the head (B, F), or None where the network has no head of its own.
        fine: Maps of a second layer (B, K', h', w'), a copy, where one was asked for.
    """

    maps: Tensor
    embeddings: Tensor
    vector: Tensor | None
    fine: Tensor | None = None


class Network(nn.Module, ABC):
    """An embedding network with the layer that is explained.

    Attributes:
        architecture: A name that tells networks of different build apart.
        metric: "cosine" (embeddings have length 1) or "euclidean".
        preprocess: From a picture to an input.
    """

    architecture: str
    metric: str
    preprocess: Preprocess

    def __init__(self, architecture: str, metric: str, preprocess: Preprocess) -> None:
        super().__init__()
        if metric not in METRICS:
            raise NetworkError(f"unknown metric {metric!r}; use one of {', '.join(METRICS)}")
        self.architecture, self.metric, self.preprocess = architecture, metric, preprocess
        self._layer = ""
        self._channels_last: dict[str, bool] = {}
        self._shape: tuple[int, int, int, int] | None = None

    @property
    @abstractmethod
    def body(self) -> nn.Module:
        """The module in which layer names are looked up."""

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed images.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            Embeddings (B, D) and what enters the head (B, F) or None.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            (B, D), of length 1 when the network is cosine.
        """
        return self.embed(images)[0]

    @property
    def layer(self) -> str:
        """Dotted name, in `body`, of the feature layer: the one that is explained."""
        return self._layer

    @layer.setter
    def layer(self, name: str) -> None:
        self._layer, self._shape = layers.path(self.body, name), None

    @property
    def feature_layer(self) -> nn.Module:
        """The module named by `layer`."""
        return layers.resolve(self.body, self._layer)

    def activations(self, images: Tensor, fine: str | None = None) -> Activations:
        """Run one forward pass and keep the feature maps.

        Args:
            images: (B, 3, H, W), normalised, on the network's device.
            fine: Dotted name of a second layer to keep.

        Returns:
            Feature maps, embeddings, and what enters the head.

        Raises:
            LayerError: If a layer does not exist, does not run, or has no spatial output.
        """
        wanted = {name: layers.resolve(self.body, name) for name in (self._layer, fine) if name is not None}
        with layers.capture(wanted) as grabbed:
            embeddings, vector = self.embed(images)
        for name in wanted:
            if name not in grabbed:
                raise LayerError(f"layer {name!r} did not run; choose one on the way to the embedding")
        maps = {name: self.as_maps(output, images, name) for name, output in grabbed.items()}
        return Activations(maps[self._layer], embeddings, vector, maps[fine] if fine is not None else None)

    def as_maps(self, output: Tensor, images: Tensor, layer: str | None = None) -> Tensor:
        """Show a layer's output as feature maps.

        Args:
            output: What the layer put out.
            images: For which images (B, 3, H, W).
            layer: Its dotted name; the feature layer's if None.

        Returns:
            (B, K, h, w).
        """
        name = self._layer if layer is None else layer
        if name not in self._channels_last:  # kept, as finding out takes longer than a heat map
            self._channels_last[name] = layers.channels_last(self.body, name)
        # Not made plain numbers: an exporter follows the sizes.
        return layers.as_maps(output, (images.shape[2], images.shape[3]), channels_last=self._channels_last[name])

    def _measure(self) -> tuple[int, int, int, int]:
        """Return K, h, w and D, seen in one forward pass on a black image."""
        if self._shape is None:
            with layers.evaluating(self), torch.inference_mode():
                black = torch.zeros(1, 3, *self.preprocess.input_size, device=self.device)
                seen = self.activations(black)
            channels, height, width = seen.maps.shape[1:]
            self._shape = (channels, height, width, seen.embeddings.shape[1])
        return self._shape

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
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def sha256(self) -> str:
        """Fingerprint the network: every parameter and buffer, by name, type, shape and bytes.

        Returns:
            64 hexadecimal digits; the same whatever the device, and after saving and loading.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            value = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()
