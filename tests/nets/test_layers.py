import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torchvision import models

from embedcam.errors import LayerError
from embedcam.nets import layers
from embedcam.nets.choice import suggest


def tiny():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, stride=2))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("network", "name", "dotted"),
    [
        ("alexnet", "features_11", "features.11"),
        ("alexnet", "features_0", "features.0"),
        ("alexnet", "classifier_0", "classifier.0"),
        ("vgg16", "features_29", "features.29"),
        ("vgg16", "classifier_0", "classifier.0"),
        ("resnet101", "layer4", "layer4"),
        ("resnet101", "layer1_bottleneck0_conv1", "layer1.0.conv1"),
        ("resnet101", "layer1_bottleneck0_downsample_0", "layer1.0.downsample.0"),
        ("resnet18", "layer1_basicblock1_relu", "layer1.1.relu"),
        ("densenet161", "features_norm5", "features.norm5"),
        ("densenet161", "features_norm0", "features.norm0"),
        ("densenet161", "features_transition1_norm", "features.transition1.norm"),
        ("densenet161", "features_denseblock2_denselayer12_norm1", "features.denseblock2.denselayer12.norm1"),
        ("squeezenet1_1", "features_12_expand3x3_activation", "features.12.expand3x3_activation"),
        ("squeezenet1_1", "features_3_expand3x3_activation", "features.3.expand3x3_activation"),
        ("squeezenet1_1", "features_12_expand3x3", "features.12.expand3x3"),
        ("mobilenet_v2", "features.18.0", "features.18.0"),
    ],
)
def test_names_of_pytorch_gradcam_are_understood(network, name, dotted):
    with torch.device("meta"):
        model = models.get_model(network, weights=None)
    assert layers.path(model, name) == dotted
    assert layers.resolve(model, name) is model.get_submodule(dotted)


def test_names_of_torch_are_never_shadowed():
    model = nn.Module()
    model.add_module("a_b", nn.Conv2d(3, 1, 1))
    model.add_module("a", nn.ModuleDict({"b": nn.ReLU()}))
    assert layers.resolve(model, "a_b") is model.a_b


def test_ambiguous_underscores_are_refused_with_both_readings():
    model = nn.Module()
    model.add_module("a_b", nn.ModuleDict({"c": nn.ReLU()}))
    model.add_module("a", nn.ModuleDict({"b_c": nn.ReLU()}))
    with pytest.raises(LayerError, match=r"'a_b_c' can be read as a_b\.c or a\.b_c"):
        layers.resolve(model, "a_b_c")


def test_a_block_is_not_found_under_another_class():
    with torch.device("meta"):
        model = models.resnet18(weights=None)
    with pytest.raises(LayerError, match="no layer 'layer1_bottleneck0'"):
        layers.resolve(model, "layer1_bottleneck0")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("layer5", "did you mean layer"), ("zzz", "outermost layers are conv1, bn1"), ("", "outermost")],
)
def test_unknown_layer_names_the_nearest(name, hint):
    with torch.device("meta"), pytest.raises(LayerError, match=hint):
        layers.resolve(models.resnet18(weights=None), name)


def test_an_attribute_that_is_no_layer_is_not_found():
    model = nn.Sequential(nn.Conv2d(3, 1, 1))
    with pytest.raises(LayerError, match="no layer"):
        layers.resolve(model, "0.weight")


def test_evaluating_puts_every_layer_back():
    model = tiny()
    model.train()
    model[0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), layers.evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before


def test_threads_inside_see_evaluation_mode_until_the_last_one_leaves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()).eval()
    images = torch.rand(2, 3, 6, 6)
    with torch.no_grad():
        expected = model(images)
    model.train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    step = threading.Barrier(4, timeout=600)

    def visit(number):
        outputs = []
        with contextlib.ExitStack() as stack:
            for turn in range(4):  # enter one after the other
                if turn == number:
                    stack.enter_context(layers.evaluating(model))
                step.wait()
            for turn in range(4):  # leave one after the other, while those who stay run the model
                if turn == number:
                    stack.close()
                step.wait()
                if turn < number:
                    outputs.append(model(images))
                step.wait()
        return outputs

    with ThreadPoolExecutor(4) as threads:
        outputs = [output for of_thread in threads.map(visit, range(4)) for output in of_thread]
    assert len(outputs) == 6
    for output in outputs:
        assert torch.equal(output, expected)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_evaluating_a_part_inside_evaluating_the_whole_keeps_the_mode():
    model = tiny().train()
    with layers.evaluating(model):
        with layers.evaluating(model[0]):
            pass
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_capture_clones_what_a_later_layer_overwrites():
    model = tiny()
    images = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        wanted = model[0][0](images)
        with layers.capture({"conv": model[0][0]}) as grabbed:
            model(images)
    assert (wanted < 0).any()  # which the ReLU after it, in place, makes zero
    torch.testing.assert_close(grabbed["conv"], wanted)


def test_capture_removes_hooks_and_restores_grad_mode_after_an_error():
    model = tiny()
    with torch.no_grad():
        with pytest.raises(ZeroDivisionError), layers.capture({"0": model[0]}, differentiable=True):
            model(torch.rand(1, 3, 8, 8))
            assert torch.is_grad_enabled()
            raise ZeroDivisionError
        assert not torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in model.modules())


def test_nothing_before_the_first_captured_layer_is_in_the_graph():
    model = tiny()
    seen = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.requires_grad}))
        for name, module in model.named_modules()
    ]
    with torch.no_grad(), layers.capture({"conv": model[0][2]}, differentiable=True) as grabbed:
        output = model(torch.rand(1, 3, 8, 8))
    for handle in handles:
        handle.remove()
    assert not seen["0.0"] and not seen["0.1"] and seen["3"] and output.requires_grad
    assert grabbed["conv"].is_leaf and grabbed["conv"].requires_grad


def test_a_layer_that_runs_twice_is_refused():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 2, 1), shared, nn.Conv2d(2, 2, 1), shared)
    with pytest.raises(LayerError, match="runs twice"), layers.capture({"relu": shared}):
        model(torch.rand(1, 3, 4, 4))


def test_a_layer_whose_output_is_a_tuple_is_refused():
    attention = nn.MultiheadAttention(4, 1)
    tokens = torch.rand(5, 1, 4)
    with (
        pytest.raises(LayerError, match="the output of layer .attention. is a tuple"),
        layers.capture({"attention": attention}),
    ):
        attention(tokens, tokens, tokens)


def compiled_whole(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_inside(model):
    model[0] = torch.compile(model[0], backend="eager")
    return model


@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_inside])
def test_compiled_models_are_captured_too(compiled):
    model = tiny()
    images = torch.rand(1, 3, 8, 8)
    wanted = model[0](images).detach()
    model = compiled(model)
    with torch.no_grad():
        model(images)  # compiles it without our hook
        with layers.capture({"0.2": layers.resolve(model, "0.2")}) as grabbed:
            model(images)
    torch.testing.assert_close(grabbed["0.2"], wanted)
    assert suggest(model, (16, 16)) == "0"


def test_a_compiled_model_keeps_its_names():
    model = tiny()
    assert layers.names(torch.compile(model, backend="eager")) == layers.names(model)


def test_passes_of_two_threads_through_one_network_do_not_mix():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    images = [torch.full((1, 3, 8, 8), float(value)) for value in range(2)]
    meet = threading.Barrier(2, timeout=600)

    def passing(image):
        with torch.no_grad(), layers.capture({"0": net[0]}) as grabbed:
            meet.wait()  # both have put their hooks in
            net(image)
            meet.wait()
        return grabbed["0"]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(passing, images))
    with torch.no_grad():
        for image, maps in zip(images, found, strict=True):
            torch.testing.assert_close(maps, net[0](image))


def test_threads_that_overlap_leave_compiling_as_it_was():
    compilations = []

    def backend(graph, _):
        compilations.append(1)
        return graph

    torch.compile(nn.ReLU(), backend=backend)(torch.zeros(1))
    first, second = layers.uncompiled(), layers.uncompiled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    torch.compile(nn.Tanh(), backend=backend)(torch.zeros(1))
    second.__exit__(None, None, None)
    assert len(compilations) == 1
    torch.compile(nn.Sigmoid(), backend=backend)(torch.zeros(1))
    assert len(compilations) == 2
