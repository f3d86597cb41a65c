"""Views into a torch network: comparison of two pictures, and single channels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
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

    def compare(self, names: tuple[str, str], image: Image.Image, other: Image.Image) -> CompareResponse:
        """Compare two pictures.

        Args:
            names: Names of the pictures.
            image: An RGB picture.
            other: Another RGB picture.

        Returns:
            Similarity and maps.

        Raises:
            NetworkError: If the similarity of the network cannot be decomposed over cells.
        """
        if self._against is None:
            raise NetworkError(self.compare_hint)
        inputs = (torch.from_numpy(self._explainer.preprocess(picture)[None]) for picture in (image, other))
        comparison = self._against(*inputs)
        line = comparison_line(comparison, 0, *names)
        sizes = (image.height, image.width), (other.height, other.width)
        return CompareResponse(
            **line, shared=_levels(comparison.shared, *sizes), differs=_levels(comparison.differs, *sizes)
        )

    @torch.inference_mode()
    def channels(self, picture: Image.Image) -> list[Channel]:
        """List the channels of the feature layer with the largest weights.

        Args:
            picture: An RGB picture.

        Returns:
            At most 10 channels, strongest first.
        """
        preprocess = self._explainer.preprocess
        image = preprocess(picture)
        images = torch.from_numpy(image[None]).to(self._explainer.net.device)
        maps, weights = (values[0] for values in self._explainer.channel_weights(images))
        strongest = weights.topk(min(_CHANNELS, int(weights.count_nonzero())))
        contributions = weights * maps.sum(dim=(1, 2))
        shares = contributions / contributions.abs().sum().clamp(min=torch.finfo(torch.float32).tiny)
        placed = self._placed(maps[strongest.indices].clamp(min=0), (image.shape[1], image.shape[2]))
        size, least = (picture.height, picture.width), np.finfo(np.float32).tiny
        shown = [preprocess.on_picture(each / max(float(each.max()), least), size) for each in placed]
        return [
            Channel(
                channel=int(channel),
                weight=float(weight),
                share=float(shares[channel]),
                levels=Levels.of(levels),
            )
            for weight, channel, levels in zip(*strongest, shown, strict=True)
        ]

    def _placed(self, maps: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
        stretched = self._explainer.module.placement == "stretch"
        cells = (maps.shape[1], maps.shape[2])
        geometry = Geometry.stretch(cells, size) if stretched else self._explainer.module.geometry
        placed: NDArray[np.float32] = place(maps, geometry, size).cpu().numpy()
        return placed


def _levels(maps: Pair[Explanation], image: tuple[int, int], other: tuple[int, int]) -> LevelsPair:
    placed = maps.images.on_picture(image), maps.other.on_picture(other)
    return LevelsPair(image=Levels.of(placed[0].heatmaps[0]), other=Levels.of(placed[1].heatmaps[0]))
