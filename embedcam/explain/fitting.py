"""Fit a network and a weight database to each other: the layer, the method, and enough cells."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace

from ..database.record import NetworkRecord
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError, LayerError, NetworkError
from ..nets.dense import DenseNet
from ..nets.geometry import Geometry
from ..nets.network import Network

logger = logging.getLogger("embedcam")

# The method that asks the cells; all others are in the registry `TRANSFERS`.
CELLS = "cells"
# With fewer cells on a side, maps of all images look alike: strides are undone by default.
_FEWEST_CELLS, _MOST_UNDONE = 7, 2


def default_transfer(net: Network) -> str:
    """Choose how images are explained by default.

    Args:
        net: The network.

    Returns:
        `CELLS` if the embedding is a sum over cells, or else the name of a transfer.
    """
    try:
        net.require_decomposable()
    except NetworkError as error:
        logger.info("stored channel weights are transferred, since %s", error)
        return "soft-contrast"
    return CELLS


def lacking_to_fuse(db: WeightDatabase, transfer: str) -> str:
    """Name what a database lacks to fuse two layers.

    Args:
        db: The database.
        transfer: `CELLS` or the name of a transfer.

    Returns:
        What is missing and how to get it; "" if nothing.
    """
    if db.fusion is None:
        return "finer layer to fuse; build it again, with a refinement"
    if transfer != CELLS and db.fusion.weights_mean is None:
        return f"channel weights of layer {db.fusion.layer!r} to fuse; build it again with finer weights"
    return ""


def dense_enough(net: Network, geometry: Geometry, size: tuple[int, int]) -> Network:
    """Undo strides until there are enough cells; log a warning where that is not possible.

    Args:
        net: The network.
        geometry: Of its feature layer.
        size: (H, W) of the images that are explained.

    Returns:
        The network itself if it has enough cells.
    """
    cells = [math.ceil(side / stride) for side, stride in zip(size, geometry.cell_stride, strict=True)]
    dense = net
    for undo in range(1, _MOST_UNDONE + 1):
        if min(cells) * 2 ** (undo - 1) >= _FEWEST_CELLS:
            break
        try:
            dense = DenseNet(net, undo)
            dense.require_decomposable()
        except NetworkError as error:
            logger.warning(
                "layer %r has only %d x %d cells at %d x %d pixels, too few to point at anything, and %s; "
                "explain larger images, or build with an earlier layer",
                *(net.layer, *cells, *size, error),
            )
            break
    return dense


def assumed_for(net: Network, db: WeightDatabase) -> WeightDatabase:
    """Take a database as one of a network, although it was built for another.

    Args:
        net: The network.
        db: The database.

    Returns:
        The same numbers, recorded as this network's.

    Raises:
        DatabaseError: If the network has no such layer, or its channels or dimensions do not fit.
    """
    net = _layered(net, db)
    db.network.require_usable(net)
    return replace(db, network=NetworkRecord.of(net))


def at_layer(net: Network, db: WeightDatabase) -> Network:
    """Return the network at the database's feature layer, after checking that the database was built for it.

    Args:
        net: The network.
        db: The database.

    Returns:
        The network, or a shallow copy with another feature layer.

    Raises:
        DatabaseError: If the database was built for another network.
    """
    net = _layered(net, db)
    db.network.require_same(net)
    return net


def _layered(net: Network, db: WeightDatabase) -> Network:
    record = db.network
    if net.layer != record.layer:
        try:
            # A shallow copy shares all modules and parameters; only the name of the layer is its own.
            net = copy.copy(net)
            net.layer = record.layer
        except LayerError as error:
            raise DatabaseError(f"the weight database was made for another network: {error}") from error
    return net
