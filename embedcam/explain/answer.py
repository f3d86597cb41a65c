"""The result of asking: an explanation, and the evidence for and against. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .explanation import Explanation


@dataclass(frozen=True, repr=False, kw_only=True)
class Answer(Explanation):
    """Why images are near what they were asked about, or nearer to it than to something else.

    The heat maps are those of the explainer, asked for `towards`. The contributions add up to the similarity:
    `contributions.sum(axis=(1, 2)) + rest == similarity`.

    Attributes:
        towards: What each image was asked about.
        versus: What each image was compared with besides, or None.
        similarity: float32 (B,), with `towards`; minus that with `versus`. The cosine; of Euclidean networks
            (z - m) . (z' - m) with the mean m of the training images, see `Against`.
        contributions: float32 (B, h, w), one per cell: positive for `towards`, negative against it.
        rest: float32 (B,), what no cell contributes; zero for networks whose head sees only the cells.
        signed: float32 (B, H, W), the contributions times the number of cells, placed at image size: the similarity
            if the whole image were like this place.
    """

    towards: list[str]
    versus: list[str] | None
    similarity: NDArray[np.float32]
    contributions: NDArray[np.float32]
    rest: NDArray[np.float32]
    signed: NDArray[np.float32]

    @classmethod
    def of_evidence(
        cls,
        explanation: Explanation,
        similarity: NDArray[np.float32],
        contributions: NDArray[np.float32],
        rest: NDArray[np.float32],
        signed: NDArray[np.float32],
        *,
        towards: list[str],
        versus: list[str] | None,
    ) -> Answer:
        """Add the evidence to an explanation.

        Args:
            explanation: The explanation, asked for the same.
            similarity: (B,).
            contributions: (B, h, w).
            rest: (B,).
            signed: (B, H, W).
            towards: B names.
            versus: B names, or None.

        Returns:
            The answer, with a note for every image whose similarity is mostly no cell's, or that was asked for the
            difference of something with itself. Where a similarity is not finite, everything is zero.
        """
        finite = np.isfinite(similarity)
        parts = [
            np.where(finite.reshape(-1, *[1] * (part.ndim - 1)), part, 0).astype(np.float32)
            for part in (similarity, contributions, rest, signed)
        ]
        for row, notes in enumerate(explanation.notes):
            total, cells, outside = (float(part[row].sum()) for part in parts[:3])
            if versus is not None and versus[row] == towards[row]:
                notes.append(f"nothing to tell apart: {towards[row]} was compared with itself")
            elif abs(outside) > abs(cells):
                notes.append(f"mostly not of the cells: {outside:+.3f} of the similarity {total:+.3f} is the rest")
        return cls(
            **{field.name: getattr(explanation, field.name) for field in fields(explanation)},
            similarity=parts[0],
            contributions=parts[1],
            rest=parts[2],
            signed=parts[3],
            towards=towards,
            versus=versus,
        )

    @property
    def scaled(self) -> NDArray[np.float32]:
        """(B, H, W) in [-1, 1]: `signed`, relative to the strongest place of each image."""
        strongest = np.abs(self.signed).max(axis=(1, 2), keepdims=True)
        scaled: NDArray[np.float32] = self.signed / np.maximum(strongest, np.finfo(np.float32).tiny)
        return scaled

    def signed_overlay(self, images: Any, *, alpha: float = 0.7) -> list[NDArray[np.uint8]]:
        """Draw the evidence over the images in grey: orange for, blue against.

        Args:
            images: As for `overlay`.
            alpha: Opacity of the strongest evidence, in [0, 1].

        Returns:
            B pictures, uint8 RGB, each of its image's size.

        Raises:
            DataError: If the number or kind of images does not fit.
        """
        from ..show.overlay import overlay_signed

        return [overlay_signed(*pair, alpha) for pair in self._on_pictures(images, self.scaled)]
