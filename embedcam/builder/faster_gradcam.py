"""Take over what Faster-Grad-CAM has stored: its clusters' channels and weights become a weight database."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..data.arrays import as_samples
from ..database.neighbors import Neighbors, searchable
from ..database.record import NetworkRecord
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError, DataError
from ..nets import receptive_field
from ..nets.inference import embed
from ..nets.network import Network
from ..utils.clock import now
from . import clusters as clustering

# As Faster-Grad-CAM spells them.
_CHANNELS, _WEIGHTS, _CENTROIDS = "channel_adress.csv", "channel_weight.csv", ("centroids.csv", "centroids.npy")
_EXPORT = (
    "import joblib, numpy; "
    'numpy.savetxt("centroids.csv", joblib.load("k-means.pkl.cmp").cluster_centers_, delimiter=",")'
)


def import_faster_gradcam(
    folder: str | Path, net: Network, images: Any, *, batch_size: int = 32, strict: bool = False, workers: int = 2
) -> WeightDatabase:
    """Make a weight database of Faster-Grad-CAM's files.

    The folder holds `channel_adress.csv` and `channel_weight.csv`, (C, T) each, and the centroids (C, D) as
    `centroids.csv` or `centroids.npy`. Faster-Grad-CAM keeps the latter in a pickled k-means, which is never loaded.

    What those files do not tell is not made up: how many images a cluster holds, how far they lie from its centroid
    and what their labels are is measured on images. Of the weights of all other channels is known only that they are
    at most the weakest of the stored ones; they count as 0, or as that one if it is negative. Their spread is not
    known and stored as 0. The sha256 is that of the network given here: whether it is the one that the weights were
    made with, converted, nobody can tell but its user.

    Faster-Grad-CAM looks for the nearest centroid by Euclidean distance. For a cosine network the centroids are brought
    to length 1, which gives the same clusters where embeddings had that length.

    Args:
        folder: Where the files lie.
        net: The network that they were made with; its `layer` is the one that was explained.
        images: What to measure on, best the images that they were made of: `Samples`, a SPEC such as "folder:PATH", or
            a sequence as for `build_database`.
        batch_size: Images a batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        The database, without exemplars; `Explainer(net, database, preset="paper")` explains as Faster-Grad-CAM does.

    Raises:
        DatabaseError: If a file is missing, damaged or does not fit the others or the network, or a cluster holds none
            of the images.
        DataError: If no image can be read, or their embeddings cannot be compared.

    Source:
        github.com/shinmura0/Faster-Grad-CAM, Train_Faster-Grad-CAM.ipynb.
    """
    folder = Path(folder)
    channels, weights = _channels(folder, net)
    centroids = _centroids(folder, net, len(channels))
    samples = as_samples(images)
    seen = embed(net, samples, batch_size=batch_size, strict=strict, workers=workers, pooled=False)
    if not searchable(seen.embeddings).all():
        raise DataError("an embedding is not finite, or too long to be compared; check the network and its training")
    cluster, distance = Neighbors(centroids, net.metric).nearest(seen.embeddings)
    counts = np.bincount(cluster, minlength=len(centroids))
    if len(empty := np.flatnonzero(counts == 0)):
        raise DatabaseError(
            f"cluster {empty[0]} of {len(counts)} holds none of the {len(cluster)} images; measure on more of them, "
            f"best on those that {folder} was made of, with the network that it was made with"
        )
    labels, names = samples.subset(seen.kept).labels, tuple(samples.names)
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
    """Read the channels (C, T) and their weights (C, T), and sort them, the strongest first."""
    numbers, weights = _read(folder / _CHANNELS), _read(folder / _WEIGHTS)
    if numbers.shape != weights.shape:
        raise DatabaseError(
            f"{folder / _CHANNELS} is {numbers.shape}, {_WEIGHTS} {weights.shape}; they must be alike, a row "
            "a cluster: take both from the same run"
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
        why = f", and {pickled.name} is a pickle, which could run anything and is never loaded" if pickled else ""
        raise DatabaseError(
            f"{folder} has no {' or '.join(_CENTROIDS)}{why}; where k-means was made, run in Python: {_EXPORT} "
            "(of scikit-learn before 0.23: from sklearn.externals import joblib)"
        )
    centroids = _read(path)
    if centroids.shape != (clusters, net.dim):
        raise DatabaseError(
            f"{path} is {centroids.shape}, expected {(clusters, net.dim)}: a row for each of the {clusters} clusters, "
            f"and the network's {net.dim} dimensions; give the network that it was made with"
        )
    if net.metric == "cosine":
        lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
        if not lengths.all():
            raise DatabaseError(f"a centroid of {path} is all zero and has no direction; use a Euclidean network")
        centroids = centroids / lengths
    return centroids.astype(np.float32)


def _read(path: Path) -> NDArray[np.float64]:
    """Read a table of numbers; nothing in it is run."""
    try:
        if path.suffix == ".npy":
            table = np.load(path, allow_pickle=False)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an empty file is refused below
                table = np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig")
        numbers = np.asarray(table, dtype=np.float64)
    except FileNotFoundError as error:
        raise DatabaseError(f"{path.parent} has no {path.name}; give the folder that Faster-Grad-CAM wrote") from error
    except (OSError, ValueError, TypeError, EOFError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise DatabaseError(f"cannot read {path}: {reason}; it must be a table of numbers, a row a cluster") from error
    small = np.abs(numbers) < np.finfo(np.float32).max
    if numbers.ndim != 2 or numbers.size == 0 or not small.all():
        found = f"shape {numbers.shape}" if numbers.ndim != 2 or numbers.size == 0 else f"{numbers[~small][0]:g}"
        raise DatabaseError(f"{path} holds {found}; it must be a table of finite numbers, a row a cluster")
    return numbers
