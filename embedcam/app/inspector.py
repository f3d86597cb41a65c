"""Views into a torch network: comparison of two pictures, and single channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import NetworkError
from ..explain.comparison import Against, Pair
from ..explain.explainer import Explainer
from ..explain.explanation import Explanation
from ..explain.json_lines import comparison_line
from ..explain.maps import place
from ..nets import layers
from ..nets.geometry import Geometry
from .schemas import Channel, CompareResponse, Levels, LevelsPair

_CHANNELS = 10


class NetworkInspector:
    """Compares pictures and shows channels with the network of an explainer.

    Args:
        explainer: The explainer.

    Attributes:
        compare_hint: Why the network cannot compare pictures; "" if it can.
    """

    def __init__(self, explainer: Explainer) -> None:
        self._explainer = explainer
        self._against, self.compare_hint = None, ""
        try:
            against = Against(explainer)
            against.see(torch.zeros(1, 3, *explainer.preprocess.input_size))
            self._against = against
        except NetworkError as error:
            self.compare_hint = str(error)

    def compare(
        self, names: tuple[str, str], image: NDArray[np.float32], other: NDArray[np.float32]
    ) -> CompareResponse:
        """Compare two images.

        Args:
            names: Names of the images.
            image: float32 (3, H, W), normalised.
            other: float32 (3, H, W), normalised.

        Returns:
            Similarity and maps.

        Raises:
            NetworkError: If the similarity of the network cannot be decomposed over cells.
        """
        if self._against is None:
            raise NetworkError(self.compare_hint)
        comparison = self._against(torch.from_numpy(image[None]), torch.from_numpy(other[None]))
        line = comparison_line(comparison, 0, *names)
        return CompareResponse(**line, shared=_levels(comparison.shared), differs=_levels(comparison.differs))

    @torch.inference_mode()
    def channels(self, image: NDArray[np.float32]) -> list[Channel]:
        """List the channels of the feature layer with the largest weights.

        Args:
            image: float32 (3, H, W), normalised.

        Returns:
            At most 10 channels, strongest first.
        """
        explainer, net = self._explainer, self._explainer.net
        images = torch.from_numpy(image[None]).to(net.device)
        with layers.evaluating(net), explainer.precision(images.device):
            activations = net.activations(images)
        size = (image.shape[1], image.shape[2])
        embeddings = activations.embeddings.float().cpu().numpy()
        assignment = explainer.transfer.find(embeddings, explainer.database.distance_scale(size))
        chosen = explainer.transfer.choose(assignment)
        maps = activations.maps[0].float().cpu().numpy()[chosen.channels[0]]
        return list(self._channels(maps, chosen.channels[0], chosen.weights[0], size))

    def _channels(
        self,
        maps: NDArray[np.float32],
        channels: NDArray[np.int64],
        weights: NDArray[np.float32],
        size: tuple[int, int],
    ) -> Iterator[Channel]:
        stretched = self._explainer.placement == "stretch"
        geometry = Geometry.stretch(maps.shape[1:], size) if stretched else self._explainer.database.geometry
        contributions = weights * maps.sum(axis=(1, 2))
        total = float(np.abs(contributions).sum()) or 1.0
        for index in range(min(_CHANNELS, len(channels))):
            placed = place(maps[index : index + 1].clip(min=0), geometry, size)[0]
            yield Channel(
                channel=int(channels[index]),
                weight=float(weights[index]),
                share=float(contributions[index]) / total,
                levels=Levels.of(placed / max(float(placed.max()), np.finfo(np.float32).tiny)),
            )


def _levels(maps: Pair[Explanation]) -> LevelsPair:
    return LevelsPair(image=Levels.of(maps.images.heatmaps[0]), other=Levels.of(maps.other.heatmaps[0]))
