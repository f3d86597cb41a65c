"""Build a weight database from a network and a data set."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..data.arrays import as_samples
from ..data.samples import fingerprint, input_files, without_labels
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError, DataError
from ..explain.weighting import WEIGHTINGS
from ..nets.inference import Embedded
from ..nets.network import Network
from ..nets.reach import require_gradient
from ..utils import shards as sharding
from ..utils.distributed import Group
from ..utils.files import require_writable
from ..utils.resume import Parts, SavedParts, work_folder
from .given import check_embeddings
from .steps import Build, BuildOptions
from .triplets import DRAWS, count_members

logger = logging.getLogger("embedcam")


def build_database(
    net: Network,
    dataset: Any,
    *,
    clusters: int = 50,
    top_k: int = 50,
    pairs: int | None = None,
    method: str = "gradcam",
    exemplars: bool = True,
    refinement: bool = True,
    finer_weights: bool = False,
    embedded: Embedded | NDArray[Any] | None = None,
    unlabelled: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    strict: bool = False,
    workers: int = 2,
    work: str | Path | None = None,
    resume: bool = False,
    group: Group | None = None,
) -> WeightDatabase:
    """Embed the training images, cluster them, and average their Grad-CAM channel weights over each cluster.

    The mean weights over all triplets of an image are computed in closed form, see `triplets.ClassSums`. A weighting
    that is not linear, such as Grad-CAM++, has no such form: its triplets are drawn at random.

    Without `work`, memory grows by 4 (D + K) bytes per image, or 4 D if the head of the network needs whole feature
    maps. With it, memory grows by 24 bytes per image. Exemplars, if they are kept, add their own size; drawn triplets
    add 4 D bytes per image, or a file of that size in `work`.

    An image that is the only one of its class has no positive. It is embedded and clustered like any other image, and
    is its own positive: that term of the margin has no gradient there, so its weights come from the negatives alone.

    Args:
        net: The network; its parameters, mode and `.grad` do not change.
        dataset: `Samples`; a SPEC such as "folder:PATH"; or a sequence of (image, label) or of images, each (3, H, W)
            preprocessed for the network. Without labels, the clusters serve as labels.
        clusters: Number C of clusters; at most a third of the number of different images.
        top_k: Number T of channels kept per cluster, at most the layer's K.
        pairs: Triplets to draw per image; 50 is the published method. If None, all triplets of a linear weighting, and
            50 of any other.
        method: Name of a channel weighting, one of `WEIGHTINGS`, such as "gradcam" or "gradcam++-exact".
        exemplars: Keep the embedding and the strongest channels of every image too.
        refinement: Explain images at a larger size by default if the network recognises them there, which is tried with
            12 to 100 images, and refine the maps by a finer layer. Without it, images are explained at the network's
            own size and by its feature layer alone.
        finer_weights: Also average the channel weights of the finer layer, over 8 images of each cluster, for transfers
            in two layers. Always done if the network is not decomposable: its default map needs them.
        embedded: Embeddings that exist already, (N, D) in the order of the images, or of `given.load_embeddings` or
            `nets.inference.embed`. Those of up to 32 images are compared with the network's own.
        unlabelled: Let clusters stand for classes although there are labels, as for self-supervised networks, which
            know nothing of them. Always done if there are no labels or only one class.
        seed: Seed of the triplets and the k-means.
        batch_size: Images per batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
        work: Folder for finished parts, which remains; None keeps them in memory. Several processes must all see it.
        resume: Continue with the parts that an interrupted run left in `work`.
        group: The processes that share the work, see `distributed.join`. All return the same database.

    Returns:
        The database; it does not depend on the number of processes, nor on whether the run was resumed.

    Raises:
        NetworkError: If no gradient reaches the cells of the feature layer.
        DataError: If the images do not allow triplets, `pairs` is below 1, or `embedded` is not of this network and
            these images.
        DatabaseError: If `top_k` is below 1, or several processes have no `work`.
        TargetError: If `method` is unknown.
        OutputError: If `work` cannot be written, or holds parts of another run.

    Source:
        Chen et al. 2020, Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538).
    """
    samples, group = as_samples(dataset, size=net.preprocess.input_size, channels=net.in_channels), group or Group()
    if top_k < 1:
        raise DatabaseError(f"at least 1 channel is stored per cluster, got {top_k}; set --top-k to 1 or more")
    if top_k > net.channels:
        logger.warning("layer %r has %d channels; all of them are stored, not %d", net.layer, net.channels, top_k)
        top_k = net.channels
    if pairs is not None and pairs < 1:
        raise DataError(f"an image needs at least 1 pair, got {pairs}; set --pairs to 1 or more")
    draws = pairs or (0 if WEIGHTINGS[method].linear else DRAWS)
    classes = [] if samples.labels is None else np.unique(samples.labels).tolist()
    if len(classes) == 1 and not unlabelled and group.main:
        logger.warning("all images are of class %r; clusters stand for classes", samples.names[classes[0]])
    if unlabelled or len(classes) == 1:
        samples = without_labels(samples)
    if samples.labels is not None:
        _, members = count_members(samples.labels, samples.names)
        alone = int((members == 1).sum())
        if alone and group.main:
            logger.warning("%d of %d classes have a single image, which has no positive", alone, len(samples.names))
    require_gradient(net)
    if work is None and group.size > 1:
        raise DatabaseError("several processes share their work in files; name a folder that all of them see (work)")
    reading: dict[str, Any] = {"strict": strict, "workers": workers}
    if embedded is not None:
        embedded = check_embeddings(net, samples, embedded, batch_size=batch_size, **reading)
    options = BuildOptions(clusters, top_k, draws, method, exemplars, refinement, finer_weights, seed, batch_size)
    parts = Parts()
    if work is not None:
        run = {
            "embedcam": __version__,
            "network": net.sha256(),
            "layer": net.layer,
            "data set": fingerprint(samples),
            "shard": sharding.SHARD,
            **asdict(options),
        }
        parts = SavedParts(work, run, resume=resume, group=group)
    return Build(net, samples, parts, group, options, **reading).run(embedded)


def build_file(
    net: Network, dataset: Any, out: str | Path, *, resume: bool = False, group: Group | None = None, **options: Any
) -> WeightDatabase:
    """Build a weight database and write it; an interrupted run can be resumed.

    Finished parts are kept in `<out>.parts` until the database is written.

    Args:
        net: The network.
        dataset: The training images.
        out: File to write.
        resume: Continue with the parts that an interrupted run left.
        group: The processes that share the work.
        options: Options of `build_database`.

    Returns:
        The database.

    Raises:
        OutputError: If it cannot be written or is read, or another process is writing it.
        EmbedcamError: As `build_database`.
    """
    out, group = Path(out), group or Group()
    samples = as_samples(dataset, size=net.preprocess.input_size, channels=net.in_channels)
    require_writable(out, input_files(samples))
    with work_folder(out, group) as work:
        database = build_database(net, samples, work=work, resume=resume, group=group, **options)
        if group.main:
            database.save(out)
    return database
