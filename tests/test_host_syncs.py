"""The host waits for a GPU only for results: no step of a batch reads a number that the GPU computes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import embedcam
from embedcam.database.record import NetworkRecord
from embedcam.gallery.format import GalleryRecord
from embedcam.gallery.writer import _stored
from embedcam.nets import layers
from embedcam.nets.geometry import Geometry

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique", "aten::equal"}


class NoWaiting(TorchDispatchMode):
    """Refuse the operators that would wait for a GPU, on any device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().partition(".")[0] not in WAITING, func
        masks = args[1] if func.name() == "aten::index.Tensor" else ()
        assert not any(mask is not None and mask.dtype == torch.bool for mask in masks), func
        return func(*args, **(kwargs or {}))


def test_the_guard_finds_what_waits():
    values = torch.ones(3)
    for wait in (lambda: values.sum().item(), lambda: bool(values.any()), lambda: values[values > 0]):
        with pytest.raises(AssertionError), NoWaiting():
            wait()


@pytest.mark.parametrize("options", [{}, {"transfer": "soft-contrast", "fused": True}, {"preset": "paper"}])
def test_no_explanation_waits_before_its_end(fused, options):
    explainer = embedcam.Explainer(*fused, **options)
    images = torch.rand(2, 3, 64, 64)
    explainer(images)  # what is measured once
    with torch.inference_mode(), NoWaiting():
        explainer._explain(images)


def test_neither_embedding_nor_indexing_waits_before_its_end(fused):
    net, images = fused[0], torch.rand(2, 3, 64, 64)
    geometry = Geometry.stretch(net.map_size, net.preprocess.input_size)
    record = GalleryRecord(NetworkRecord.of(net), geometry, net.map_size, "2026-01-01T00:00:00Z")
    with layers.evaluating(net), torch.inference_mode():
        _stored(net, record, images)
        with NoWaiting():
            _stored(net, record, images)
            net.activations(images).maps.mean(dim=(2, 3))
