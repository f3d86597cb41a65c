"""Request options and responses of the HTTP API, as its documentation shows them."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from ..show.boxes import THRESHOLD

# Full deflate takes several times as long on photographs and saves nothing.
_SAVE_OPTIONS = {"PNG": {"compress_type": zlib.Z_RLE}, "JPEG": {}}
# A fixed list, since the browser draws with them too.
Colormap = Literal["turbo", "viridis", "inferno", "magma", "cividis", "jet", "gray"]


class ExplainOptions(BaseModel):
    """Options of an explanation."""

    model_config = ConfigDict(extra="forbid")

    format: Annotated[
        Literal["json", "overlay", "heatmap", "evidence", "npz"],
        Field(
            description="JSON, or one file: overlay (PNG), heat map (16-bit PNG), evidence for and against (PNG), or "
            "the maps (npz)."
        ),
    ] = "json"
    towards: Annotated[
        str | None, Field(max_length=200, description="Ask why the picture is near this label or cluster.")
    ] = None
    versus: Annotated[
        str | None,
        Field(max_length=200, description="Ask why it is nearer to `towards`, or its own cluster, than to this."),
    ] = None
    include: Annotated[
        set[Literal["overlay", "heatmap", "levels", "picture"]],
        Field(description="Additional fields of the JSON."),
    ] = set()
    threshold: Annotated[float, Field(ge=0.01, le=1, description="Minimum heat inside a box's region.")] = THRESHOLD
    boxes: Annotated[bool, Field(description="Draw the boxes on the overlay.")] = False
    alpha: Annotated[float, Field(ge=0, le=1, description="Opacity of the heat map in the overlay.")] = 0.5
    colormap: Annotated[Colormap, Field(description="Colormap of the overlay.")] = "turbo"


class MatchOptions(BaseModel):
    """Options of a search."""

    model_config = ConfigDict(extra="forbid")

    top: Annotated[int, Field(ge=1, le=100, description="Number of hits.")] = 10
    hit: Annotated[
        list[str],
        Field(max_length=100, description="Images of the index, by id, to explain the matches with; none searches."),
    ] = []
    versus: Annotated[bool, Field(description="Also explain why the first hit is above each other one.")] = False
    include: Annotated[set[Literal["cells", "picture"]], Field(description="Additional fields of the JSON.")] = set()


class Box(BaseModel):
    """Bounding box of a strong region, in pixels of the picture."""

    left: int
    top: int
    right: int = Field(description="One past the last column.")
    bottom: int = Field(description="One past the last row.")
    score: float = Field(description="Mean heat of the region, in [0, 1].")


class Levels(BaseModel):
    """A map with 256 levels."""

    width: int
    height: int
    values: str = Field(description="Base64 of one byte per pixel, row by row; 255 is 1.")

    @classmethod
    def of(cls, heatmap: NDArray[np.float32]) -> Levels:
        """Quantise a map.

        Args:
            heatmap: (H, W) in [0, 1].

        Returns:
            The map with 256 levels.
        """
        height, width = heatmap.shape
        return cls(width=width, height=height, values=base64_text(np.rint(heatmap * 255).astype(np.uint8).tobytes()))


class TrainingImage(BaseModel):
    """A training image of the cluster."""

    image: str = Field(description="Name in the data set.")
    label: str | None
    distance: float = Field(description="To the picture's embedding: 1 - cosine, or Euclidean.")
    thumbnail: str | None = Field(description="Path of its thumbnail, if the server has the data set.")
    indexed: bool = Field(description="Whether the gallery index has it: `POST /match?hit=NAME` tells what is shared.")


class ExplainResponse(BaseModel):
    """The explanation of a picture."""

    image: str = Field(description="File name as sent.")
    width: int = Field(description="Of the upright picture, in pixels.")
    height: int
    cluster: int
    cluster_labels: dict[str, int] = Field(description="Most common labels of the cluster, with their image counts.")
    distance: float = Field(description="To the cluster's centroid: 1 - cosine, or Euclidean.")
    typicality: float = Field(
        description="Fraction of the cluster's training images at least as far from the centroid."
    )
    typicality_in_words: str
    anomaly: float = Field(description="Above 1, the picture is unlike the training images.")
    notes: list[str] = Field(description="Warnings; empty if there are none.")
    looks_like: list[TrainingImage] = Field(description="Nearest training images of the cluster, nearest first.")
    boxes: list[Box]
    raw_range: tuple[float, float] = Field(description="Minimum and maximum of the map before normalising.")
    towards: str | None = Field(None, description="What was asked about; null if nothing was asked.")
    versus: str | None = Field(None, description="What the picture was compared with besides.")
    similarity: float | None = Field(None, description="With `towards`; minus that with `versus`.")
    in_favour: float | None = Field(None, alias="for", description="Sum of the positive contributions of cells to it.")
    against: float | None = Field(None, description="Sum of the negative contributions.")
    rest: float | None = Field(None, description="What no cell contributes.")
    overlay: str | None = Field(None, description="PNG in base64, if included.")
    heatmap: str | None = Field(None, description="16-bit PNG in base64, if included; 65535 is 1.")
    picture: str | None = Field(None, description="JPEG in base64, if included.")
    levels: Levels | None = Field(None, description="The heat map, if included.")
    boxes_at: dict[str, list[Box]] | None = Field(None, description="Boxes per threshold, if levels are included.")


class LevelsPair(BaseModel):
    """A map of each of the two pictures of a comparison."""

    image: Levels
    other: Levels


class CompareResponse(BaseModel):
    """The comparison of two pictures."""

    image: str
    other: str
    similarity: float = Field(description="Sum of the contributions of all cells, of either picture.")
    distance: float
    in_favour: dict[str, float] = Field(alias="for", description="Sum of the positive contributions, per picture.")
    against: dict[str, float] = Field(description="Sum of the negative contributions, per picture.")
    notes: list[str]
    shared: LevelsPair = Field(description="Maps of the positive contributions.")
    differs: LevelsPair = Field(description="Maps of the negative contributions.")


class Correspondence(BaseModel):
    """A place of the query and the place of the hit that goes with it."""

    query: tuple[float, float] = Field(description="(y, x) as a share of what the network sees of the picture.")
    hit: tuple[float, float]
    strength: float


class Rather(BaseModel):
    """Why the first hit is above this one."""

    contributions: list[list[float]] = Field(
        description="What each cell of the query adds to the difference of the two similarities."
    )
    rest: float = Field(description="What no cell adds to the difference.")


class Hit(BaseModel):
    """A hit, and why it matches."""

    rank: int
    hit: str = Field(description="Id in the index.")
    label: str | None
    similarity: float = Field(description="Sum of the contributions of all cells, of either side, and its rest.")
    distance: float = Field(description="1 - cosine, or Euclidean.")
    contributions: dict[Literal["query", "hit"], list[list[float]]] = Field(description="What each cell adds.")
    evidence: dict[Literal["query", "hit"], list[list[float]]] = Field(
        description="The part of the positive contributions that is for this hit rather than another: the shared heat."
    )
    rest: dict[Literal["query", "hit"], float] = Field(description="What no cell contributes.")
    correspondences: list[Correspondence] = Field(description="Places that go together, strongest first.")
    first_rather_than_this: Rather | None = Field(None, description="With `versus`.")
    picture: str | None = Field(description="Path of what the network saw of its picture; null if it is missing.")
    cells: str | None = Field(None, description="As of the query, if included.")


class MatchResponse(BaseModel):
    """The hits of a query, most similar first."""

    image: str = Field(description="File name as sent.")
    width: int = Field(description="Of the upright picture, in pixels.")
    height: int
    seen: tuple[int, int, int, int] = Field(
        description="(left, top, right, bottom) of what the network sees of it, in pixels."
    )
    rows: list[float] = Field(description="Centres of the rows of cells, as shares of what the network sees.")
    columns: list[float]
    metric: str = Field(description="cosine or euclidean.")
    cells: str | None = Field(
        None,
        description="Base64 of the directions of the cell embeddings, one signed byte per number, cell by cell, if "
        "included; the cosine of two cells is that of their bytes.",
    )
    picture: str | None = Field(None, description="What the network sees, JPEG in base64, if included.")
    hits: list[Hit]


class Channel(BaseModel):
    """A channel of the feature layer."""

    channel: int
    weight: float = Field(description="Channel weight for this picture.")
    share: float = Field(description="Fraction of the heat map that the channel contributes; may be negative.")
    levels: Levels = Field(description="Activation of the channel, scaled to a maximum of 1.")


class Info(BaseModel):
    """What this server can do, and its limits."""

    about: str = Field(description="One-line summary.")
    facts: dict[str, str]
    explain: bool = Field(False, description="Whether pictures can be explained.")
    compare: bool = Field(False, description="Whether two pictures can be compared.")
    compare_hint: str = Field("", description="Why pictures cannot be compared.")
    channels: bool = Field(False, description="Whether channels can be shown.")
    thumbnails: bool = Field(False, description="Whether training images can be shown.")
    gallery: dict[str, str] | None = Field(None, description="Facts of the gallery index; null if there is none.")
    upload: int = Field(description="Maximum size of a file, in bytes.")
    pixels: int = Field(description="Maximum number of pixels of a picture.")
    colormaps: dict[str, str] = Field(description="Base64 of the 256 RGB colours of each colormap.")


class Error(BaseModel):
    """What is wrong, and how to fix it."""

    error: str


def base64_text(content: bytes) -> str:
    """Encode bytes as base64.

    Args:
        content: The bytes.

    Returns:
        Base64 text.
    """
    return base64.b64encode(content).decode()


def encode_image(picture: NDArray[np.uint8] | NDArray[np.uint16], kind: Literal["PNG", "JPEG"]) -> bytes:
    """Encode an image file in memory.

    Args:
        picture: uint8 (H, W, 3), or uint16 (H, W) for PNG.
        kind: File format.

    Returns:
        The bytes of the file.
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **_SAVE_OPTIONS[kind])
    return file.getvalue()
