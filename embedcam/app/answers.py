"""What the HTTP API takes and answers, as its documentation shows it."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

# Overlays repeat nothing but runs: looking for more takes several times as long and saves no bytes.
_HOW = {"PNG": {"compress_type": zlib.Z_RLE}, "JPEG": {}}
# Few, and known by name: they are drawn in the browser too.
Colormap = Literal["turbo", "viridis", "inferno", "magma", "cividis", "jet", "gray"]


class Wanted(BaseModel):
    """What an explanation should hold."""

    model_config = ConfigDict(extra="forbid")

    format: Annotated[
        Literal["json", "overlay", "heatmap", "npz"],
        Field(
            description="JSON, or one file: the overlay, the heat map as a 16-bit PNG, or `heatmap` and `raw` as npz."
        ),
    ] = "json"
    include: Annotated[
        set[Literal["overlay", "heatmap", "levels", "picture"]],
        Field(description="More in the JSON: PNG files in base64, what a page draws, or the picture as a JPEG."),
    ] = set()
    threshold: Annotated[float, Field(ge=0.01, le=1, description="Least heat inside a box's region.")] = 0.5
    boxes: Annotated[bool, Field(description="Draw the boxes on the overlay.")] = False
    alpha: Annotated[float, Field(ge=0, le=1, description="Weight of the heat map in the overlay.")] = 0.5
    colormap: Annotated[Colormap, Field(description="Of the overlay.")] = "turbo"


class Box(BaseModel):
    """A rectangle around a strong region, in pixels of the picture."""

    left: int
    top: int
    right: int = Field(description="One past the last column.")
    bottom: int = Field(description="One past the last row.")
    score: float = Field(description="Mean heat of the region, 0 to 1.")


class Levels(BaseModel):
    """A map as a page draws it."""

    width: int
    height: int
    values: str = Field(description="Base64 of one byte a pixel, row by row; 255 is 1.")

    @classmethod
    def of(cls, heatmap: NDArray[np.float32]) -> Levels:
        """Round a map to 256 levels.

        Args:
            heatmap: (H, W) in [0, 1].

        Returns:
            Its levels.
        """
        height, width = heatmap.shape
        return cls(width=width, height=height, values=text(np.rint(heatmap * 255).astype(np.uint8).tobytes()))


class LooksLike(BaseModel):
    """A training image of the cluster."""

    image: str = Field(description="Its name in the data set.")
    label: str | None
    distance: float = Field(description="From the picture's embedding: 1 - cosine, or Euclidean.")
    thumbnail: str | None = Field(description="Where to get it, if the server knows the data set.")


class Explained(BaseModel):
    """Why the network puts a picture where it does."""

    image: str = Field(description="What the sender calls it.")
    width: int = Field(description="Of the picture, upright, in pixels.")
    height: int
    cluster: int
    cluster_labels: dict[str, int] = Field(description="The cluster's commonest labels, and of how many images.")
    distance: float = Field(description="To the cluster's centroid: 1 - cosine, or Euclidean.")
    typicality: float = Field(description="Share of the cluster's training images at least as far out.")
    typicality_in_words: str
    anomaly: float = Field(description="Above 1, the picture is unlike the training images.")
    notes: list[str] = Field(description="What a reader must know; empty when all is well.")
    looks_like: list[LooksLike] = Field(
        description="The cluster's training images that lie nearest, the nearest first."
    )
    boxes: list[Box]
    raw_range: tuple[float, float] = Field(description="What 0 and 1 of the heat map stand for before normalising.")
    overlay: str | None = Field(None, description="PNG in base64, if asked for.")
    heatmap: str | None = Field(None, description="16-bit PNG in base64, if asked for; 65535 is 1.")
    picture: str | None = Field(None, description="JPEG in base64, if asked for.")
    levels: Levels | None = Field(None, description="The heat map, if asked for.")
    boxes_at: dict[str, list[Box]] | None = Field(None, description="Boxes by threshold, along with the levels.")


class Sides(BaseModel):
    """The same of both pictures of a comparison."""

    image: Levels
    other: Levels


class Compared(BaseModel):
    """What two pictures share in the eyes of the network."""

    image: str
    other: str
    similarity: float = Field(description="The sum of all places' shares, in either picture.")
    distance: float
    in_favour: dict[str, float] = Field(
        alias="for", description="What places add that speak for the match, by picture."
    )
    against: dict[str, float] = Field(description="What places take off that speak against it.")
    notes: list[str]
    shared: Sides = Field(description="Where what speaks for the match is.")
    differs: Sides = Field(description="Where what speaks against it is.")


class Channel(BaseModel):
    """A channel of the feature layer."""

    channel: int
    weight: float = Field(description="Of this channel, for pictures such as this one.")
    share: float = Field(description="Of all that the feature layer's channels add to the heat map.")
    levels: Levels = Field(description="Where it is active, from 0 to its strongest place.")


class Info(BaseModel):
    """What this server explains with."""

    about: str = Field(description="In a line.")
    facts: dict[str, str]
    compare: bool = Field(description="Whether two pictures can be compared.")
    compare_hint: str = Field(description="Why they cannot.")
    channels: bool = Field(description="Whether channels can be shown.")
    thumbnails: bool = Field(description="Whether training images can be shown.")
    upload: int = Field(description="Most bytes of a picture's file.")
    pixels: int = Field(description="Most pixels of a picture.")
    colormaps: dict[str, str] = Field(description="Base64 of the 256 RGB colours of each.")


class Wrong(BaseModel):
    """What is wrong, and how to mend it."""

    error: str


def text(content: bytes) -> str:
    """Write bytes as text.

    Args:
        content: Bytes.

    Returns:
        Base64.
    """
    return base64.b64encode(content).decode()


def file_of(picture: NDArray[np.uint8] | NDArray[np.uint16], kind: Literal["PNG", "JPEG"]) -> bytes:
    """Write a picture into memory.

    Args:
        picture: uint8 (H, W, 3), or uint16 (H, W) for a PNG.
        kind: Of file.

    Returns:
        The file's bytes.
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **_HOW[kind])
    return file.getvalue()
