"""Local descriptors: small vectors that find the same place of an object in another image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..data.samples import Samples
from ..errors import DataError
from ..explain.maps import TINY, place
from ..nets import layers, receptive_field
from ..nets.choice import suggest_finer
from ..nets.geometry import Geometry
from ..nets.inference import tensor_batches
from ..nets.network import Activations, Network
from .format import DescriptorSpace

_DIM = 64
# Images that the space is computed from, of which each gives some hundred descriptors.
_IMAGES = 32
# Power of each component's second moment that is divided by: between PCA (0) and whitening (0.5); chosen on training
# images.
_WHITENING = 0.25


def fit(
    net: Network, samples: Samples, geometry: Geometry, *, workers: int = 2, strict: bool = False
) -> DescriptorSpace:
    """Compute the space of the descriptors of a network from some images.

    The feature maps of the feature layer and of a finer layer, if there is one, have their channels' means subtracted;
    their cells are scaled to length 1, joined and projected to their first principal components.

    Args:
        net: The network.
        samples: Images, of which 32 are used.
        geometry: Where the cells of the feature layer lie.
        workers: Threads that read images ahead.
        strict: Raise on an unreadable image.

    Returns:
        The space.

    Raises:
        DataError: If none of the images can be read, or with `strict` one cannot, or the feature maps are not finite.

    Source:
        Hariharan et al. 2015, Hypercolumns for Object Segmentation and Fine-grained Localization (arXiv 1411.5752).
    """
    size = net.preprocess.input_size
    finer = suggest_finer(net.body, net.layer, size, outermost=True)
    if finer is not None:
        finer = layers.path(net.body, finer)
        onto = receptive_field.geometry(net.body, finer, size, net.reading(finer))
    some = samples.subset(np.unique(np.linspace(0, len(samples) - 1, _IMAGES).astype(int)))
    batches = tensor_batches(net, some, 8, "", strict=strict, workers=workers, count=lambda _: None)
    with layers.evaluating(net), torch.inference_mode():
        seen = [_layers(net.activations(images, finer)) for _, images in batches]
    if not seen:
        raise DataError(f"none of {len(some)} images can be read")
    maps = [torch.cat(parts) for parts in zip(*seen, strict=True)]
    if not all(bool(each.isfinite().all()) for each in maps):
        raise DataError("the feature maps are not finite; check the network and its training")
    means = [each.mean(dim=(0, 2, 3)) for each in maps]
    channels = sum(map(len, means))
    moments = torch.zeros((channels, channels), device=maps[0].device)
    for image in zip(*(each.split(1) for each in maps), strict=True):
        units = [_units(each, mean) for each, mean in zip(image, means, strict=True)]
        if finer is not None:
            units[1] = _placed(units[1], geometry, units[0], onto)
        joined = torch.cat(units, dim=1)[0].flatten(1)
        moments += joined @ joined.T / joined.shape[1]
    # In float32, LAPACK does not converge for the many equal eigenvalues that few images have.
    values, vectors = (each.to(moments) for each in torch.linalg.eigh(moments.cpu().double() / len(maps[0])))
    values, vectors = values.flip(0)[:_DIM], vectors.flip(1)[:, :_DIM]
    scales = torch.where(values > 1e-6 * values[0], values.clamp(min=TINY) ** -_WHITENING, 0)
    arrays = (each.cpu().numpy() for each in (torch.cat(means), vectors * scales))
    cells = (maps[0].shape[2], maps[0].shape[3])
    return DescriptorSpace(finer or "", geometry if finer is None else onto, cells, *arrays)


def describe(space: DescriptorSpace, seen: Activations, geometry: Geometry) -> Tensor:
    """Compute descriptors.

    Args:
        space: Of the same network.
        seen: Of images, with the feature maps of `space.layer`.
        geometry: Where the cells of the feature layer lie.

    Returns:
        int8 (B, h, w, C), of which only the directions count.
    """
    maps = _layers(seen)
    device, channels = maps[0].device, [each.shape[1] for each in maps]
    means = torch.from_numpy(space.mean).to(device).split(channels)
    projections = torch.from_numpy(space.projection).to(device).split(channels)
    parts = [
        (projection.T @ _units(each, mean).flatten(2)).unflatten(2, each.shape[2:])
        for each, mean, projection in zip(maps, means, projections, strict=True)
    ]
    descriptors = parts[0] if len(parts) == 1 else parts[0] + _placed(parts[1], geometry, parts[0], space.geometry)
    largest = descriptors.abs().amax(dim=1, keepdim=True).clamp(min=TINY)
    codes: Tensor = (descriptors * (127 / largest)).round().to(torch.int8).permute(0, 2, 3, 1)
    return codes


def _layers(seen: Activations) -> list[Tensor]:
    """Return the feature maps, those of the finer layer first."""
    return [seen.maps] if seen.fine is None else [seen.fine, seen.maps]


def _units(maps: Tensor, mean: Tensor) -> Tensor:
    return functional.normalize(maps - mean[:, None, None], dim=1)


def _placed(coarse: Tensor, geometry: Geometry, fine: Tensor, onto: Geometry) -> Tensor:
    size = (fine.shape[2], fine.shape[3])
    placed: Tensor = place(coarse.flatten(0, 1), geometry, size, onto)
    return placed.view(*coarse.shape[:2], *size)
