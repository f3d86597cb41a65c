"""From what a user asks about to embeddings."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..data.images import read_image
from ..data.preprocess import Preprocess
from ..database.neighbors import searchable
from ..database.weight_database import WeightDatabase
from ..errors import DataError
from ..nets import layers
from ..nets.network import Network
from .question import Reference

_ACCEPTED = "a cluster's index, a label's name, an image or an embedding"


class References:
    """Finds what users ask about.

    Args:
        net: Embeds images.
        database: Has the clusters and labels.
        preprocess: From a picture to an input.
    """

    def __init__(self, net: Network, database: WeightDatabase, preprocess: Preprocess) -> None:
        self._net, self._database, self._preprocess = net, database, preprocess

    def find(self, value: Any) -> Reference:
        """Find what a user asks about.

        Args:
            value: A cluster's index. A label's name, which stands for the nearest of the clusters in which it is the
                most common label. A picture: the path of a file, a Pillow image, or uint8 (H, W, 3). A prepared image
                (3, H, W). An embedding (D,). Or one for each image: indices (B,), pictures, images (B, 3, H, W), or
                embeddings (B, D). A text is the name of a label, the index of a cluster or the path of a file, and may
                say which: "label:7", "cluster:7", "image:7".

        Returns:
            The reference.

        Raises:
            DataError: If the value is none of these, or a text is several of them.
        """
        match value:
            case Reference():
                return value
            case str():
                return self._text(value)
            case Path():
                return self._file(value)
            case Image.Image():
                return self._images([value])
            case bool():
                raise DataError(f"{value} is nothing to ask about; give {_ACCEPTED}")
            case int() | np.integer():
                return Reference.of_clusters(self._database, [int(value)])
        if isinstance(value, list | tuple) and value and isinstance(value[0], Image.Image):
            return self._images(value)
        try:
            array = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError) as error:
            raise DataError(f"{type(value).__name__} is nothing to ask about; give {_ACCEPTED}") from error
        return self._array(array)

    def named(self, text: str) -> Reference:
        """Find the label or the cluster that a text names, and open no file.

        Args:
            text: As for `find`.

        Returns:
            The reference.

        Raises:
            DataError: If it names neither, or both.
        """
        return self._text(text, files=False)

    def _array(self, array: Tensor) -> Reference:
        if array.dtype == torch.uint8 and array.ndim in (3, 4):
            return self._images((array[None] if array.ndim == 3 else array).cpu().numpy())
        if not array.is_floating_point() and not array.is_complex() and array.dtype != torch.bool and array.ndim == 1:
            return Reference.of_clusters(self._database, array.tolist(), each=True)
        if array.is_floating_point() and array.ndim in (1, 2):
            return self._embeddings(array)
        if array.is_floating_point() and array.ndim in (3, 4):
            return self._images(array[None] if array.ndim == 3 else array)
        raise DataError(f"an array of {array.dtype} {tuple(array.shape)} is nothing to ask about; give {_ACCEPTED}")

    def _text(self, text: str, *, files: bool = True) -> Reference:
        names = self._database.label_names or ()
        kind, _, rest = text.partition(":")
        match kind:
            case "label":
                return self._label(rest)
            case "cluster" if rest.isdecimal():
                return Reference.of_clusters(self._database, [int(rest)])
            case "image" if files:
                return self._file(Path(rest))
        kinds = {"label": text in names, "cluster": text.isdecimal(), "image": files and Path(text).is_file()}
        found = [kind for kind, fits in kinds.items() if fits]
        if not found:
            close = difflib.get_close_matches(text, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            kind = "no label, no cluster and no file" if files else "no label and no cluster"
            raise DataError(f"{text!r} is {kind}; {hint}see embedcam inspect for labels")
        if len(found) > 1:
            choices = " or ".join(f"{kind}:{text}" for kind in found)
            raise DataError(f"{text!r} may be a {' or a '.join(found)}; write {choices}")
        return self._text(f"{found[0]}:{text}", files=files)

    def _label(self, label: str) -> Reference:
        reference = Reference.of_clusters(self._database, self._database.clusters_of(label).tolist())
        return replace(reference, names=[f"label {label}, {name}" for name in reference.names])

    def _file(self, path: Path) -> Reference:
        return replace(self._images([read_image(path)]), names=[f"image {path}"])

    def _images(self, images: Any) -> Reference:
        batch = layers.as_images(self._net, torch.as_tensor(self._preprocess.batch(images)))
        with layers.evaluating(self._net), torch.inference_mode():
            return replace(self._embeddings(self._net(batch)), names=["the image"] * len(batch))

    def _embeddings(self, values: Tensor) -> Reference:
        embeddings = torch.atleast_2d(values).detach().float().cpu()
        dim = self._database.network.dim
        if embeddings.shape[1] != dim:
            raise DataError(f"an embedding of this network has {dim} dimensions, got {embeddings.shape[1]}")
        if not searchable(embeddings.numpy()).all():
            raise DataError("what is asked about has an embedding that is not finite, or too long to be compared")
        if self._net.metric == "cosine":
            if not embeddings.any(dim=1).all():
                raise DataError("what is asked about has an embedding of length zero, which has no cosine")
            embeddings = functional.normalize(embeddings)
        return Reference(embeddings, ["the embedding"] * len(embeddings), each=True)
