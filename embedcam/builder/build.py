"""From a network and a data set to a weight database."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .._version import __version__
from ..data.arrays import as_samples
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError
from ..explain.weighting import WEIGHTINGS
from ..nets.inference import Embedded
from ..nets.network import Network
from ..utils.distributed import Group
from ..utils.locks import locked
from .shards import Shards, fingerprint
from .steps import Build, BuildOptions
from .triplets import Partners


def build_database(
    net: Network,
    dataset: Any,
    *,
    clusters: int = 50,
    top_k: int = 50,
    pairs: int = 50,
    method: str = "gradcam",
    exemplars: bool = True,
    refinement: bool = True,
    embedded: Embedded | None = None,
    seed: int = 0,
    batch_size: int = 32,
    strict: bool = False,
    workers: int = 2,
    work: str | Path | None = None,
    resume: bool = False,
    group: Group | None = None,
) -> WeightDatabase:
    """Embed the training images, cluster them, and average their Grad-CAM channel weights over each cluster.

    What is worked out of single images goes to files, so that memory does not grow with the data set but for some
    20 bytes an image and, where they are kept, its exemplar.

    Args:
        net: The network; its parameters, mode and `.grad` are left as they are.
        dataset: `Samples`; a SPEC such as "folder:PATH"; or a sequence of (image, label) or of images, each (3, H, W)
            as the network wants it. Without labels, the clusters serve as labels.
        clusters: How many; fewer if there are fewer different images.
        top_k: Channels T kept of each cluster, at most the layer's K.
        pairs: Triplets an image.
        method: Name of a channel weighting, one of `WEIGHTINGS`, such as "gradcam" or "gradcam++-exact".
        exemplars: Keep every image's embedding and strongest channels too.
        refinement: Also run some images of each cluster at a larger size, for sharper maps by default; without it,
            images are explained at the network's own size and by its feature layer alone.
        embedded: What `nets.inference.embed` has seen of this data set, to save the pass.
        seed: Of the partners and the k-means.
        batch_size: Images a batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
        work: Folder for those files, which stay; a temporary one if None. Several processes must all see it.
        resume: Go on with what an interrupted run left in `work`.
        group: The processes that share the work, see `distributed.join`. All get the same database.

    Returns:
        The database; the same from any number of processes, and from a resumed run.

    Raises:
        DataError: If the images or their labels do not allow triplets.
        DatabaseError: If `top_k` cannot be used, or `work` holds another run's work.
        TargetError: If `method` is unknown.
        OutputError: If `work` cannot be written.

    Source:
        Chen et al. 2020, Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538).
    """
    samples, group = as_samples(dataset), group or Group()
    if not 1 <= top_k <= net.channels:
        raise DatabaseError(
            f"top_k {top_k} is outside 1..{net.channels}, the channels of layer {net.layer!r}; choose --top-k within"
        )
    WEIGHTINGS[method]  # raises now, not after the long pass
    if samples.labels is not None:  # fail before the long pass, not after it
        Partners(samples.labels, samples.names, pairs, seed)
    if work is None and group.size > 1:
        raise DatabaseError("several processes share their work in files; name a folder for them that all see (work)")
    options = BuildOptions(clusters, top_k, pairs, method, exemplars, refinement, seed, batch_size)
    about = {
        "embedcam": __version__,
        "network": net.sha256(),
        "layer": net.layer,
        "data set": fingerprint(samples),
        **asdict(options),
    }
    with contextlib.nullcontext(work) if work is not None else tempfile.TemporaryDirectory() as folder:
        shards = Shards(Path(folder), len(samples), about, group, resume=resume)
        return Build(net, samples, shards, group, options, strict=strict, workers=workers).run(embedded)


def build_file(
    net: Network, dataset: Any, out: str | Path, *, resume: bool = False, group: Group | None = None, **options: Any
) -> WeightDatabase:
    """Build a weight database and write it, so that an interrupted run can be resumed.

    The work lies in `<out>.parts` until the database is written.

    Args:
        net: The network.
        dataset: The training images.
        out: File to write.
        resume: Go on with what an interrupted run left.
        group: The processes that share the work.
        options: As for `build_database`.

    Returns:
        The database.

    Raises:
        OutputError: If it cannot be written, or another process is writing it.
        EmbedcamError: As `build_database`.
    """
    out, group = Path(out), group or Group()
    work = out.with_name(f"{out.name}.parts")
    with locked(out) if group.main else contextlib.nullcontext():
        try:
            database = build_database(net, dataset, work=work, resume=resume, group=group, **options)
        finally:
            Shards.remove_if_empty(work)
        if group.main:
            database.save(out)
            Shards.remove(work)
    return database
