"""Convert the files of Faster-Grad-CAM to a weight database."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..data.arrays import as_samples
from ..data.texts import encoding
from ..database.neighbors import Neighbors, searchable
from ..database.record import NetworkRecord
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError, DataError
from ..nets import receptive_field
from ..nets.inference import embed
from ..nets.network import Network
from ..utils.clock import now
from . import clusters as clustering

# The spelling is Faster-Grad-CAM's.
_CHANNELS, _WEIGHTS, _CENTROIDS = "channel_adress.csv", "channel_weight.csv", ("centroids.csv", "centroids.npy")
_EXPORT = (
    "import joblib, numpy; "
    'numpy.savetxt("centroids.csv", joblib.load("k-means.pkl.cmp").cluster_centers_, delimiter=",")'
)


def import_faster_gradcam(
    folder: str | Path, net: Network, images: Any, *, batch_size: int = 32, strict: bool = False, workers: int = 2
) -> WeightDatabase:
    """Convert the files of Faster-Grad-CAM to a weight database.

    The folder holds `channel_adress.csv` and `channel_weight.csv`, (C, T) each, and the centroids (C, D) as
    `centroids.csv` or `centroids.npy`. Faster-Grad-CAM keeps the latter in a pickled k-means, which is never loaded.

    The counts, distances and labels of the clusters are not in those files, so they are measured on images. The weights
    of the channels that are not stored are at most the weakest stored one; they become 0, or that one if it is
    negative. Standard deviations are unknown and become 0. The stored sha256 is that of `net`: the files cannot tell
    whether it is the network that they were made with.

    Faster-Grad-CAM searches the nearest centroid by Euclidean distance. For a cosine network the centroids are
    normalised, which gives the same clusters if the embeddings were normalised.

    Args:
        folder: Folder with the files.
        net: The network that they were made with; its `layer` must be the one that was explained.
        images: Images to measure on, preferably those of the original training: `Samples`, a SPEC such as
            "folder:PATH", or a sequence as for `build_database`.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        The database, without exemplars; `Explainer(net, database, preset="paper")` explains as Faster-Grad-CAM does.

    Raises:
        DatabaseError: If a file is missing or damaged, does not match the others or the network, or a cluster has none
            of the images.
        DataError: If no image can be read, or their embeddings cannot be compared.

    Source:
        github.com/shinmura0/Faster-Grad-CAM, Train_Faster-Grad-CAM.ipynb.
    """
    folder = Path(folder)
    channels, weights = _channels(folder, net)
    centroids = _centroids(folder, net, len(channels))
    samples = as_samples(images)
    embedded = embed(net, samples, batch_size=batch_size, strict=strict, workers=workers, pooled=False)
    if not searchable(embedded.embeddings).all():
        raise DataError("an embedding is not finite, or too long to be compared; check the network and its training")
    cluster, distance = Neighbors(centroids, net.metric).nearest(embedded.embeddings)
    counts = np.bincount(cluster, minlength=len(centroids))
    if len(empty := np.flatnonzero(counts == 0)):
        raise DatabaseError(
            f"cluster {empty[0]} of {len(counts)} has none of the {len(cluster)} images; use more images, best "
            f"those that {folder} was made of, and the network that it was made with"
        )
    labels, names = samples.subset(embedded.kept).labels, tuple(samples.names)
    mean = np.repeat(np.minimum(weights[:, -1:], 0), net.channels, axis=1)
    np.put_along_axis(mean, channels.astype(np.int64), weights, axis=1)
    return WeightDatabase(
        network=NetworkRecord.of(net),
        geometry=receptive_field.geometry(net.body, net.layer, net.preprocess.input_size),
        method="gradcam",
        target="class_score",
        pairs=0,
        seed=0,
        created=now(),
        centroids=centroids,
        counts=counts,
        weights_mean=mean,
        weights_std=np.zeros_like(mean),
        top_channels=channels,
        top_weights=weights,
        distance_quantiles=clustering.distance_quantiles(distance, cluster, len(centroids)),
        label_names=None if labels is None else names,
        label_histogram=None if labels is None else clustering.histogram(cluster, labels, len(counts), len(names)),
        embedcam_version=__version__,
    )


def _channels(folder: Path, net: Network) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Read the channels (C, T) and their weights (C, T), and sort them, strongest first."""
    numbers, weights = _read(folder / _CHANNELS), _read(folder / _WEIGHTS)
    if numbers.shape != weights.shape:
        raise DatabaseError(
            f"{folder / _CHANNELS} is {numbers.shape}, {_WEIGHTS} {weights.shape}; they must have the same "
            "shape, one row per cluster: take both from the same run"
        )
    wrong = numbers[(numbers != np.rint(numbers)) | (numbers < 0) | (numbers >= net.channels)]
    if wrong.size:
        raise DatabaseError(
            f"{folder / _CHANNELS} holds {wrong[0]:g}, but layer {net.layer!r} has channels 0 to {net.channels - 1}; "
            "choose the layer that was explained (Keras's block_16_expand_relu is features.17.conv.0 in torchvision)"
        )
    order = np.argsort(-weights, axis=1, kind="stable")
    channels = np.take_along_axis(numbers, order, axis=1).astype(np.int32)
    if (np.diff(np.sort(channels, axis=1), axis=1) == 0).any():
        raise DatabaseError(f"{folder / _CHANNELS} names a channel of a cluster twice; write it again")
    return channels, np.take_along_axis(weights, order, axis=1).astype(np.float32)


def _centroids(folder: Path, net: Network, clusters: int) -> NDArray[np.float32]:
    """Read the centroids (C, D), of length 1 for cosine."""
    path = next((folder / name for name in _CENTROIDS if (folder / name).is_file()), None)
    if path is None:
        pickled = next(iter(sorted(folder.glob("*.pkl*"))), None)
        why = f", and {pickled.name} is a pickle, which can run any code and is never loaded" if pickled else ""
        raise DatabaseError(
            f"{folder} has no {' or '.join(_CENTROIDS)}{why}; where the k-means was computed, run in Python: "
            f"{_EXPORT} (with scikit-learn before 0.23: from sklearn.externals import joblib)"
        )
    centroids = _read(path)
    if centroids.shape != (clusters, net.dim):
        raise DatabaseError(
            f"{path} is {centroids.shape}, expected {(clusters, net.dim)}: a row for each of the {clusters} clusters, "
            f"and the {net.dim} dimensions of the network; use the network that it was made with"
        )
    if net.metric == "cosine":
        lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
        if not lengths.all():
            raise DatabaseError(f"a centroid of {path} is zero and has no direction; use a Euclidean network")
        centroids = centroids / lengths
    return centroids.astype(np.float32)


def _read(path: Path) -> NDArray[np.float64]:
    """Read a table of numbers; pickles are refused."""
    try:
        if path.suffix == ".npy":
            table = np.load(path, allow_pickle=False)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an empty file is refused below
                content = path.read_bytes()
                table = np.loadtxt(content.decode(encoding(content)).splitlines(), delimiter=",", ndmin=2)
        numbers = np.asarray(table, dtype=np.float64)
    except FileNotFoundError as error:
        raise DatabaseError(f"{path.parent} has no {path.name}; use the folder that Faster-Grad-CAM wrote") from error
    except (OSError, ValueError, TypeError, EOFError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise DatabaseError(f"cannot read {path}: {reason}; write one row of numbers per cluster") from error
    small = np.abs(numbers) < np.finfo(np.float32).max
    if numbers.ndim != 2 or numbers.size == 0 or not small.all():
        actual = f"shape {numbers.shape}" if numbers.ndim != 2 or numbers.size == 0 else f"{numbers[~small][0]:g}"
        raise DatabaseError(f"{path} holds {actual}; it must be a table of finite numbers, one row per cluster")
    return numbers
