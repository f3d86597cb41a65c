"""Views into a torch network: comparison of two pictures, and single channels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import NetworkError
from ..explain.comparison import Against, Pair
from ..explain.explainer import Explainer
from ..explain.explanation import Explanation
from ..explain.json_lines import comparison_line
from ..explain.maps import place
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
        self._against: Against | None = None
        self.compare_hint = ""
        try:
            self._against = Against(explainer)
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
        images = torch.from_numpy(image[None]).to(self._explainer.net.device)
        maps, weights = (values[0] for values in self._explainer.channel_weights(images))
        strongest = weights.topk(min(_CHANNELS, int(weights.count_nonzero())))
        contributions = weights * maps.sum(dim=(1, 2))
        shares = contributions / contributions.abs().sum().clamp(min=torch.finfo(torch.float32).tiny)
        placed = self._placed(maps[strongest.indices].clamp(min=0), (image.shape[1], image.shape[2]))
        return [
            Channel(
                channel=int(channel),
                weight=float(weight),
                share=float(shares[channel]),
                levels=Levels.of(levels / max(float(levels.max()), np.finfo(np.float32).tiny)),
            )
            for weight, channel, levels in zip(*strongest, placed, strict=True)
        ]

    def _placed(self, maps: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
        stretched = self._explainer.module.placement == "stretch"
        cells = (maps.shape[1], maps.shape[2])
        geometry = Geometry.stretch(cells, size) if stretched else self._explainer.module.geometry
        placed: NDArray[np.float32] = place(maps, geometry, size).cpu().numpy()
        return placed


def _levels(maps: Pair[Explanation]) -> LevelsPair:
    return LevelsPair(image=Levels.of(maps.images.heatmaps[0]), other=Levels.of(maps.other.heatmaps[0]))
