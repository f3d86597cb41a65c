"""The built-in data set: scikit-learn's handwritten digits, coloured, on crops of its sample photographs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import MissingDependencyError
from ..catalog import DATASETS, Dataset
from ..splits import rows_of, training_part

SIZE = 96
"""Height and width of a picture in pixels."""

_INK_HEIGHT = (46.0, 74.0)  # pixels
# Drawings of each training digit, with which a small network learns in two minutes to ignore the background.
_TRAINING_DRAWINGS = 3
# Level of the enlarged digit's outline, as a fraction of full ink: lower fills the bowls of an 8, higher breaks thin
# strokes (1.8 % of the digits fall apart at 0.5).
_OUTLINE = 0.36
_COLORS = 6  # random colours, of which the one with the most contrast is used


@dataclass(frozen=True, eq=False)
class DigitSamples:
    """Pictures that are drawn on demand; each depends only on (seed, source, drawing).

    Attributes:
        sources: (N,) int64 indices of scikit-learn's digits.
        drawings: (N,) int64 number of the drawing of the same digit, from 0.
        labels: (N,) int64, the digits.
        ids: (N,) names such as "3/0042a".
        seed: Seed of the sizes, colours, backgrounds and positions, at least 0.
    """

    sources: NDArray[np.int64]
    drawings: NDArray[np.int64]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, "0" to "9"."""
        return tuple("0123456789")

    @property
    def has_masks(self) -> bool:
        """True: every picture has a mask."""
        return True

    def __len__(self) -> int:
        return len(self.sources)

    def image(self, index: int) -> Image.Image:
        """Draw picture `index`, RGB of SIZE x SIZE pixels."""
        return Image.fromarray(_picture(self.seed, int(self.sources[index]), int(self.drawings[index])))

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Draw mask `index`, bool (SIZE, SIZE), True where the digit covers at least half of the pixel."""
        _, opacity = _draw(self.seed, int(self.sources[index]), int(self.drawings[index]))
        return opacity >= 0.5

    def ignore(self, index: int) -> None:
        """Return None: there are no ignore masks."""

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> DigitSamples:
        """Select pictures by index, in the given order."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            sources=self.sources[rows],
            drawings=self.drawings[rows],
            labels=self.labels[rows],
            ids=tuple(self.ids[row] for row in rows),
        )


def digits(split: str = "train", seed: int = 0) -> DigitSamples:
    """Create the built-in data set: 1,797 digits of 10 classes, 60 % of every class for training.

    A test digit is drawn once, a training digit three times at different positions and in different colours. No digit
    of scikit-learn is in both splits.

    Args:
        split: "train", "test" or "all".
        seed: Seed of the sizes, colours, backgrounds and positions, at least 0; the split does not depend on it.

    Returns:
        The pictures of the split.

    Raises:
        DataError: If the split does not exist.
        MissingDependencyError: If scikit-learn is not installed.
    """
    _, labels, _ = _material()
    names = tuple(f"{label}/{source:04d}" for source, label in enumerate(labels))
    training = training_part(names, labels)
    sources, drawings = np.nonzero(np.arange(_TRAINING_DRAWINGS) < np.where(training, _TRAINING_DRAWINGS, 1)[:, None])
    ids = tuple(f"{names[source]}{'abc'[drawing]}" for source, drawing in zip(sources, drawings, strict=True))
    everything = DigitSamples(sources, drawings, labels[sources], ids, seed)
    return everything.subset(rows_of(split, training[sources], "digits"))


@functools.cache
def _material() -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[NDArray[np.uint8], ...]]:
    # scikit-learn's digits (N, 8, 8) in [0, 1], their labels (N,), and the photographs.
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise MissingDependencyError(
            "the data set digits needs scikit-learn, which is not installed: pip install 'embedcam[train]'"
        ) from error
    source = load_digits()
    ink = source.images.astype(np.float32) / 16
    return ink, source.target.astype(np.int64), tuple(load_sample_images().images)


@functools.lru_cache(4096)  # all pictures, about 100 MB; every epoch reads each
def _picture(seed: int, source: int, drawing: int) -> NDArray[np.uint8]:
    return _draw(seed, source, drawing)[0]


def _draw(seed: int, source: int, drawing: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    # The picture (SIZE, SIZE, 3) and the digit's opacity (SIZE, SIZE).
    ink, _, photographs = _material()
    random = np.random.Generator(np.random.Philox(key=[seed, source], counter=[drawing, 0, 0, 0]))
    digit = _enlarge(ink[source], random.uniform(*_INK_HEIGHT))
    photograph = photographs[random.integers(len(photographs))]
    picture = photograph[_window(random, photograph, SIZE, SIZE)].copy()
    opacity = np.zeros((SIZE, SIZE), dtype=np.float32)
    window = _window(random, picture, *digit.shape)
    opacity[window] = digit
    color = _color(random, picture[window])
    picture[window] = np.rint(picture[window] + digit[..., None] * (color - picture[window])).astype(np.uint8)
    return picture, opacity


def _enlarge(ink: NDArray[np.float32], ink_height: float) -> NDArray[np.float32]:
    # From 8 x 8 grey values to a solid stroke with a smooth edge and a margin of one cell.
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = np.pad(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    scale = ink_height / (ink.shape[0] - 2)
    size = (round(ink.shape[1] * scale), round(ink.shape[0] * scale))
    smooth = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.LANCZOS))
    # The edge of a stroke is one cell (`scale` pixels) wide; narrow it to one pixel.
    opacity: NDArray[np.float32] = np.clip((smooth - _OUTLINE) * scale + 0.5, 0, 1).astype(np.float32)
    return opacity


def _window(random: np.random.Generator, picture: NDArray[np.uint8], height: int, width: int) -> tuple[slice, slice]:
    top = int(random.integers(picture.shape[0] - height + 1))
    left = int(random.integers(picture.shape[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def _color(random: np.random.Generator, background: NDArray[np.uint8]) -> NDArray[np.float32]:
    # A saturated colour (3,) in 0 to 255 with contrast to the background (h, w, 3).
    hue = random.uniform(0, 6, _COLORS)
    saturation, value = random.uniform(0.75, 1, (2, _COLORS))
    wheel = (np.array([[5], [3], [1]]) + hue) % 6
    share = np.clip(np.minimum(wheel, 4 - wheel), 0, 1)
    colors = np.rint(255 * value * (1 - saturation * share)).T.astype(np.int64)
    pixels = background[::4, ::4].reshape(-1, 3).astype(np.int64)
    # Weighted by the eye's sensitivity; in integers, so that rounding cannot change the choice.
    distances = (np.abs(pixels[None] - colors[:, None]) * np.array([2, 4, 3])).sum(axis=-1)
    similar = np.sort(distances, axis=1)[:, len(pixels) // 10]  # the distance to the most similar tenth of the pixels
    color: NDArray[np.float32] = colors[int(similar.argmax())].astype(np.float32)
    return color


DATASETS.register("digits")(Dataset(lambda _, split: digits(split), argument=""))
