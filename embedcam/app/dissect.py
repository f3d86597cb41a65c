"""What takes a torch network apart: comparing two pictures, and single channels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch.comparison import line_of
from ..errors import NetworkError
from ..explain.comparison import Against, Pair
from ..explain.explainer import Explainer
from ..explain.explanation import Explanation
from ..explain.maps import place
from ..nets import layers
from ..nets.geometry import Geometry
from .answers import Channel, Compared, Levels, Sides

_CHANNELS = 10


class Dissector:
    """Takes an explainer's network apart.

    Args:
        explainer: The explainer.

    Attributes:
        cannot_compare: Why pictures cannot be compared; "" where they can.
    """

    def __init__(self, explainer: Explainer) -> None:
        self._explainer = explainer
        self._against, self.cannot_compare = None, ""
        try:
            self._against = Against(explainer)
            self._against.see(torch.zeros(1, 3, *explainer.preprocess.input_size))
        except NetworkError as error:
            self.cannot_compare = str(error)

    def compare(self, names: tuple[str, str], image: NDArray[np.float32], other: NDArray[np.float32]) -> Compared:
        """Say what two images share.

        Args:
            names: What they are called.
            image: float32 (3, H, W), normalised.
            other: The same of the other.

        Returns:
            Similarity and maps.

        Raises:
            NetworkError: If the network's similarity cannot be shared out over places.
        """
        if self._against is None or self.cannot_compare:
            raise NetworkError(self.cannot_compare)
        found = self._against(torch.from_numpy(image[None]), torch.from_numpy(other[None]))
        line = line_of(Path(names[0]), Path(names[1]), found, 0)
        return Compared(**{**line, "shared": _sides(found.shared), "differs": _sides(found.differs)})

    @torch.inference_mode()
    def channels(self, image: NDArray[np.float32]) -> list[Channel]:
        """Show the channels of the feature layer with the largest weights, each by itself.

        Args:
            image: float32 (3, H, W), normalised.

        Returns:
            At most 10, the strongest first.
        """
        explainer, net = self._explainer, self._explainer.net
        images = torch.from_numpy(image[None]).to(net.device)
        with layers.evaluating(net), explainer.precision(images.device):
            seen = net.activations(images)
        size = (image.shape[1], image.shape[2])
        found = explainer.transfer.find(seen.embeddings.float().cpu().numpy(), explainer.database.distance_scale(size))
        chosen = explainer.transfer.choose(found)
        maps = seen.maps[0].float().cpu().numpy()[chosen.channels[0]]
        weights = chosen.weights[0]
        return list(self._channels(maps, chosen.channels[0], weights, size))

    def _channels(
        self,
        maps: NDArray[np.float32],
        channels: NDArray[np.int64],
        weights: NDArray[np.float32],
        size: tuple[int, int],
    ) -> Iterator[Channel]:
        stretched = self._explainer.placement == "stretch"
        geometry = Geometry.stretch(maps.shape[1:], size) if stretched else self._explainer.database.geometry
        added = weights * maps.sum(axis=(1, 2))
        total = float(np.abs(added).sum()) or 1.0
        for number in range(min(_CHANNELS, len(channels))):
            placed = place(maps[number : number + 1].clip(min=0), geometry, size)[0]
            yield Channel(
                channel=int(channels[number]),
                weight=float(weights[number]),
                share=float(added[number]) / total,
                levels=Levels.of(placed / max(float(placed.max()), np.finfo(np.float32).tiny)),
            )


def _sides(maps: Pair[Explanation]) -> Sides:
    return Sides(image=Levels.of(maps.images.heatmaps[0]), other=Levels.of(maps.other.heatmaps[0]))
