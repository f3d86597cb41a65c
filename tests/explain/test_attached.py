"""A pass that runs anyway is explained as the explainer's own pass of the same images."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

import embedcam
from embedcam.builder.build import build_database
from embedcam.errors import DataError, NetworkError
from embedcam.explain import CompiledExplainer
from embedcam.nets import DenseNet

IMAGES = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(1))
ARRAYS = ("heatmaps", "raw", "embeddings", "clusters", "distances", "typicality", "anomaly", "neighbors")


class _Half(nn.Module):
    """A user's network: normalises in place, and returns a dictionary."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 12, 3, 2, 1))
        self.head = nn.Linear(12, 6)

    def forward(self, images, scale=1.0):
        if scale < 0:
            raise ValueError("scale")
        pooled = self.features(images).relu_().mean(dim=(2, 3))
        if scale == 0:
            raise ArithmeticError("after the feature layer")
        return {"z": self.head(pooled) * scale}


@pytest.fixture(scope="module", params=["cosine", "euclidean"])
def wrapped(request, folder):
    net = embedcam.wrap(_Half().eval(), output="z", metric=request.param, preprocess=embedcam.Preprocess((48, 40)))
    return net, build_database(net, f"folder:{folder}", clusters=4, top_k=6, pairs=5)


def assert_same(one, other):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.notes == other.notes


def hooks(module):
    return [hook for each in module.modules() for hook in (*each._forward_hooks, *each._forward_pre_hooks)]


def channels_last(net, images=IMAGES):
    """As the explainer itself runs the network, for results that are equal to the last bit."""
    return images.contiguous(memory_format=net.memory_format)


# At 224 pixels there are enough cells, so that no stride is undone.
@pytest.mark.parametrize("options", [{"explain_size": 224}, {"preset": "paper"}, {"transfer": "nearest"}], ids=str)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_pass_of_a_network_of_embedcam_is_explained_bit_for_bit(fused, options, mode):
    net, _ = fused
    explainer = embedcam.Explainer(*fused, **options)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with explainer.attached(net) as attached, mode():
        z = net(channels_last(net, images))
    assert_same(attached.explanation, explainer(images))
    assert explainer.last() is attached.explanation
    np.testing.assert_array_equal(attached.explanation.embeddings, z.detach())
    assert not hooks(net)


@pytest.mark.parametrize("attach_to", ["network", "module", "container"])
def test_any_module_that_contains_the_network_can_be_attached_to(wrapped, attach_to):
    net, database = wrapped
    explainer = embedcam.Explainer(net, database)
    model = {"network": net, "module": net.module, "container": nn.Sequential(net.module)}[attach_to]
    with explainer.attached(model):
        model(channels_last(net))
    assert_same(explainer.last(), explainer(IMAGES))
    assert not hooks(net)


def test_the_module_runs_once_and_its_output_is_its_own(wrapped):
    net, database = wrapped
    explainer = embedcam.Explainer(net, database)
    passes = []
    count = net.module.features.register_forward_hook(lambda *_: passes.append(1))
    with explainer.attached(net.module), torch.no_grad():
        z = net.module(channels_last(net))["z"]
    count.remove()
    assert passes == [1]
    torch.testing.assert_close(z, net.module(channels_last(net))["z"], rtol=0, atol=0)
    z.zero_()  # the explanation does not depend on what becomes of the output
    assert_same(explainer.last(), explainer(IMAGES))


def test_the_last_pass_counts(wrapped):
    net, database = wrapped
    explainer = embedcam.Explainer(net, database)
    with explainer.attached(net.module) as attached:
        net.module(channels_last(net))
        first = attached.explanation
        net.module(channels_last(net, 1 - IMAGES[:1]))
    net.module(IMAGES)  # outside, nothing is explained
    assert len(first) == 3
    assert_same(attached.explanation, explainer(1 - IMAGES[:1]))


def test_gradients_reach_the_parameters_of_the_user(wrapped):
    net, database = wrapped
    with embedcam.Explainer(net, database).attached(net.module):
        (gradient,) = torch.autograd.grad(net.module(IMAGES)["z"].sum(), net.module.head.bias)
    torch.testing.assert_close(gradient, torch.full((6,), 3.0))


def test_under_autocast_the_pass_is_explained_as_by_an_explainer_with_autocast(wrapped):
    explainer = embedcam.Explainer(*wrapped, autocast=torch.bfloat16)
    net = wrapped[0]
    with explainer.attached(net.module), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net.module(channels_last(net))
    assert_same(explainer.last(), explainer(IMAGES))


def test_a_question_is_answered(wrapped):
    net, database = wrapped
    asking = embedcam.Explainer(net, database).asking(towards=1, versus=2)
    with asking.attached(net.module):
        net.module(channels_last(net))
    answer = asking(IMAGES)
    np.testing.assert_array_equal(asking.last().signed, answer.signed)
    assert_same(asking.last(), answer)


def test_compiled_modules_run_as_plain_python_inside(wrapped):
    net, database = wrapped
    explainer = embedcam.Explainer(net, database)
    compiled = torch.compile(net.module, backend="eager")
    compiled(IMAGES)
    with explainer.attached(compiled):
        compiled(channels_last(net))
    assert_same(explainer.last(), explainer(IMAGES))


def test_of_denser_cells_those_of_the_pass_are_explained_and_a_note_says_so(spread):
    net, database = spread
    explainer = embedcam.Explainer(DenseNet(net), database, fused=False)
    images = IMAGES[:, :, :32, :32]
    with explainer.attached(net):
        net(channels_last(net, images))
    plain = embedcam.Explainer(net, database, fused=False)(images)
    np.testing.assert_array_equal(explainer.last().heatmaps, plain.heatmaps)
    assert all("the explainer's has 2 x 2 times as many" in notes[-1] for notes in explainer.last().notes)


def test_without_the_pass_of_mirrored_images_a_note_says_so(wrapped):
    net, database = wrapped
    fine = embedcam.Explainer(net, database, preset="fine")
    with fine.attached(net.module):
        net.module(channels_last(net))
    np.testing.assert_array_equal(fine.last().raw, embedcam.Explainer(net, database)(IMAGES).raw)
    assert all("averages it with that of the mirrored image" in notes[-1] for notes in fine.last().notes)


def test_one_explainer_at_a_time_is_attached_to_a_module(wrapped):
    net, database = wrapped
    outer, inner = embedcam.Explainer(net, database), embedcam.Explainer(net, database, preset="paper")
    with outer.attached(net.module):
        for explainer in (outer, inner):
            with pytest.raises(NetworkError, match="already attached to this _Half"), explainer.attached(net):
                pass
        net.module(channels_last(net))
    assert_same(outer.last(), outer(IMAGES))
    with inner.attached(net.module):
        net.module(channels_last(net))
    assert_same(inner.last(), inner(IMAGES))


@pytest.mark.parametrize("scale", [-1, 0])
def test_after_an_error_the_module_is_as_before(wrapped, scale):
    net, database = wrapped
    explainer = embedcam.Explainer(net, database)
    with pytest.raises((ValueError, ArithmeticError)), explainer.attached(net.module):
        net.module(IMAGES, scale)
    assert not hooks(net)
    assert not torch.overrides._get_current_function_mode_stack()
    with explainer.attached(net.module) as attached:
        with pytest.raises((ValueError, ArithmeticError)):
            net.module(IMAGES, scale)
        with pytest.raises(DataError, match="no forward pass has run"):
            attached.explanation  # noqa: B018
        net.module(channels_last(net))
    assert_same(attached.explanation, explainer(IMAGES))


def test_other_modules_training_mode_and_passes_without_images_are_refused(wrapped):
    net, database = wrapped
    explainer = embedcam.Explainer(net, database)
    with pytest.raises(NetworkError, match="_Half does not contain the network of this explainer, a _Half"):
        explainer.attached(_Half())
    with explainer.attached(net.module):
        net.module.head.train()
        with pytest.raises(NetworkError, match=r"_Half is in training mode.*call its eval"):
            net.module(IMAGES)
        net.module.eval()
        with pytest.raises(DataError, match="called without images"):
            net.module([IMAGES])
    assert not hooks(net)
    with pytest.raises(NetworkError, match="use Explainer"):
        CompiledExplainer(net, database).attached(net.module)


def test_each_thread_has_its_own_passes(wrapped):
    net, database = wrapped
    explainer = embedcam.Explainer(net, database)
    with pytest.raises(DataError, match="was not attached in this thread"):
        explainer.last()
    found = []

    def other():
        net.module(IMAGES)  # not explained: this thread has not attached
        with explainer.attached(net.module):
            net.module(channels_last(net, IMAGES[:1]))
        found.append(explainer.last())

    with explainer.attached(net.module) as attached:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(DataError, match="no forward pass has run"):
            attached.explanation  # noqa: B018
        net.module(channels_last(net))
    assert_same(found[0], explainer(IMAGES[:1]))
    assert_same(explainer.last(), explainer(IMAGES))
