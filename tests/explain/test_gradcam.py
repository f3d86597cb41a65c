import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models

import embedcam
from embedcam.errors import LayerError, TargetError
from embedcam.gradient import (
    WEIGHTINGS,
    ClassScore,
    GradCAM,
    Scalar,
    SegmentationScore,
    Similarity,
    TripletMargin,
    Weighting,
)

A = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[4.0, 0.0], [0.0, 2.0]]])
G = torch.tensor([[[1.0, 0.0], [1.0, 2.0]], [[-2.0, 0.0], [0.0, 1.0]]])


def golden():
    """A network whose feature maps are the image's first two channels, and whose gradients there are G."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 1, bias=False))
    model[0].weight.data = torch.eye(3)[:2, :, None, None]
    model[2].weight.data = G.reshape(1, 8)
    return model, torch.cat([A, torch.zeros(1, 2, 2)])[None]


def network():
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
    deep = [nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    head = nn.Linear(8, 4)
    nn.init.uniform_(head.weight, -0.1, 1)  # mostly positive, so that every class has a map
    return nn.Sequential(nn.Sequential(*stem), nn.Sequential(*deep), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def pictures(count=2, height=16, width=16):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def same(one, other, tolerance=0.0):
    assert other.heatmaps.any(axis=(1, 2)).all()
    np.testing.assert_allclose(one.heatmaps, other.heatmaps, rtol=0, atol=tolerance)
    np.testing.assert_allclose(one.raw, other.raw, rtol=0, atol=tolerance * (1 + np.abs(other.raw).max()))


def test_gradcam_of_a_network_worked_by_hand():
    model, image = golden()
    found = GradCAM(model, "0")(image, ClassScore(0))
    # The mean gradients are 1 and -1/4, so the map is relu(A0 - A1 / 4).
    np.testing.assert_allclose(found.raw[0], [[0, 2], [3, 3.5]], rtol=1e-6)
    np.testing.assert_allclose(found.heatmaps[0], np.array([[0, 2], [3, 3.5]]) / 3.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        # ΣA is 10 and 6: 1 / (2 + 10) twice and 2 / (2 + 20), and 1 / (2 + 6); negative gradients do not count.
        ("gradcam++-exact", [2 / 12 + 2 / 22, 1 / 8]),
        ("gradcam++", [2 / (12 + 1e-6) + 2 * 4 / (88 + 1e-6), 1 / (8 + 1e-6)]),
        # ΣA g³ is 1 + 3 + 32 = 36 and -32 + 2 = -30.
        ("gradcam++-elementwise", [2 / (38 + 1e-7) + 2 * 4 / (44 + 1e-7), 1 / (-28 + 1e-7)]),
    ],
)
def test_gradcam_plus_plus_of_a_network_worked_by_hand(method, weights):
    model, image = golden()
    found = GradCAM(model, "0", method=method)(image, ClassScore(0))
    wanted = np.maximum(weights[0] * A[0].numpy() + weights[1] * A[1].numpy(), 0)
    np.testing.assert_allclose(found.raw[0], wanted, rtol=1e-6)


def test_each_image_of_a_batch_is_explained_by_itself():
    model, images = network(), pictures(3)
    for method in ("gradcam", "gradcam++"):
        batch = GradCAM(model, "1", method=method)(images, ClassScore([0, 1, 2]))
        for index in range(3):
            alone = GradCAM(model, "1", method=method)(images[index : index + 1], ClassScore(index))
            np.testing.assert_allclose(batch.heatmaps[index], alone.heatmaps[0], atol=1e-5)


def test_no_index_explains_each_image_s_best_class():
    model, images = network(), pictures()
    best = model.eval()(images).argmax(dim=1)
    same(GradCAM(model, "1")(images, ClassScore()), GradCAM(model, "1")(images, ClassScore(best)))


def test_several_layers_cost_one_pass_and_equal_one_by_one():
    model, images = network(), pictures()
    calls = []
    names = ["1", "0", "0.0"]
    cam = GradCAM(model, names, placement="stretch")
    cam(images, ClassScore(2))  # measures the layouts
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    together = cam(images, ClassScore(2))
    handle.remove()
    assert len(calls) == 1 and list(together) == names
    for name in names:
        same(together[name], GradCAM(model, name, placement="stretch")(images, ClassScore(2)))


def test_cells_are_placed_where_the_network_looked():
    model, images = network().eval(), pictures()
    with torch.no_grad():
        cells = torch.einsum("k,bkyx->byx", model[4].weight[1] / 16, model[1](model[0](images))).clip(min=0)
    # Two convolutions of stride 2 with padding put cell (i, j) on pixel (4 i, 4 j); plain resizing between pixels.
    looked = GradCAM(model, "1")(images, ClassScore(1))
    np.testing.assert_allclose(looked.raw[:, ::4, ::4], cells, atol=1e-6)
    stretched = GradCAM(model, "1", placement="stretch")(images, ClassScore(1))
    resized = functional.interpolate(cells[:, None], (16, 16), mode="bilinear")[:, 0]
    np.testing.assert_allclose(stretched.raw, resized, atol=1e-6)


def test_mode_gradients_buffers_and_hooks_are_left_as_they_were():
    model, images = network().train(), pictures()
    model[0][1].eval()
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    for method in ("gradcam", "gradcam++"):
        GradCAM(model, ["0", "1"], method=method)(images, ClassScore(0))
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[4].weight.grad, torch.ones(4, 8))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "4.weight")
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_an_error_inside_leaves_everything_as_it_was():
    model, images = network().train(), pictures()

    def fail(output):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        GradCAM(model, ["0", "1"])(images, Scalar(fail))
    assert model.training and all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_frozen_networks_are_explained_alike():
    model, images = network(), pictures()
    wanted = GradCAM(model, "1")(images, ClassScore(0))
    model.requires_grad_(False)
    same(GradCAM(model, "1")(images, ClassScore(0)), wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_do_not_matter(mode):
    model, images = network(), pictures()
    wanted = GradCAM(model, "1")(images, ClassScore(0))
    with mode():
        same(GradCAM(model, "1")(images * 1, ClassScore(0)), wanted)


@pytest.mark.parametrize("place", ["whole", "in place", "inside"])
def test_compiled_networks_are_explained_alike_and_stay_compiled(place):
    model, images = network().eval(), pictures()
    wanted = GradCAM(model, "1")(images, ClassScore(0))
    compilations = []

    def backend(graph, _):
        compilations.append(1)
        return graph

    if place == "whole":
        model = torch.compile(model, backend=backend)
    elif place == "in place":
        model.compile(backend=backend)
    else:
        model[1] = torch.compile(model[1], backend=backend)
    with torch.no_grad():
        model(images)
        count = len(compilations)
        if place == "in place" and count == 0:
            pytest.skip("this torch compiles nothing in place")
        same(GradCAM(model, "1")(images, ClassScore(0)), wanted)
        model(images)
    assert len(compilations) == count == 1


def test_under_autocast_only_the_network_runs_in_half_precision():
    model, images = network(), pictures()
    wanted = GradCAM(model, "1")(images, ClassScore(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = GradCAM(model, "1")(images, ClassScore(0))
    assert found.raw.dtype == np.float32
    same(found, wanted, 0.05)
    assert not np.array_equal(torch.from_numpy(found.raw).bfloat16().float(), found.raw)


def test_networks_in_half_precision_give_maps_in_float32():
    model, images = network(), pictures()
    wanted = GradCAM(model, "1")(images, ClassScore(0))
    found = GradCAM(model.bfloat16(), "1")(images.bfloat16(), ClassScore(0))
    assert found.raw.dtype == np.float32
    same(found, wanted, 0.1)


def test_embedding_networks_give_their_embeddings_too():
    net = embedcam.EmbeddingNet("tiny", dim=8, image_size=32)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeddings = net.eval()(images)
    found = GradCAM(net)(images, Similarity(embeddings.flip(0)))
    np.testing.assert_allclose(found.embeddings, embeddings, atol=1e-6)
    assert found.preprocess == net.preprocess


def test_an_easy_triplet_has_a_map_but_under_its_hinge_none():
    net = embedcam.EmbeddingNet("tiny", dim=8, image_size=32)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = net.eval()(image)
    positive, negative = functional.normalize(z.roll(1) * 0.1 + z), functional.normalize(-z)
    assert GradCAM(net)(image, TripletMargin(positive, negative)).heatmaps.any()
    hinged = GradCAM(net)(image, TripletMargin(positive, negative, hinge=True))
    assert not hinged.heatmaps.any() and "flat" in hinged.notes[0][0]


def test_both_signs_of_a_scalar_explain_different_pixels():
    model, image = golden()
    raises = GradCAM(model, "0")(image, Scalar(lambda output: output[:, 0]))
    lowers = GradCAM(model, "0")(image, Scalar(lambda output: -output[:, 0]))
    # A0 - A1 / 4 is [[0, 2], [3, 3.5]]: nothing there is negative.
    assert raises.raw.max() == pytest.approx(3.5) and not lowers.raw.any()


class Segmenter(nn.Module):
    """Logits at half resolution ("head"), brought to image size."""

    def __init__(self, dictionary=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 7, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(7, 4, 1)
        nn.init.normal_(self.head.weight)
        self.dictionary = dictionary

    def forward(self, images):
        logits = functional.interpolate(self.head(self.body(images)), images.shape[-2:], mode="bilinear")
        return {"out": logits, "aux": logits * 0} if self.dictionary else logits


@pytest.mark.parametrize("dictionary", [False, True])
def test_segmentation_explains_several_classes_and_layers_in_one_call(dictionary):
    model, images = Segmenter(dictionary), pictures()
    names, classes = ["body.1", "body"], [3, 0]
    found = GradCAM(model, names)(images, SegmentationScore(classes))
    assert list(found) == names and all(list(of_layer) == classes for of_layer in found.values())
    for name, index in itertools.product(names, classes):
        alone = GradCAM(model, name)(images, SegmentationScore(index))
        same(found[name][index], alone, 1e-6)
        probability = Scalar(
            lambda output, index=index: (output["out"] if dictionary else output).softmax(1)[:, index].sum((1, 2))
        )
        same(alone, GradCAM(model, name)(images, probability), 1e-6)


def test_segmentation_can_be_reduced_at_the_logits_or_at_any_layer():
    model, images = Segmenter(), pictures()
    cam = GradCAM(model, "body", placement="stretch")
    at_logits = cam(images, SegmentationScore(0, reduction_layer="logits"))
    same(at_logits, cam(images, Scalar(lambda output: output[:, 0].sum((1, 2)))))
    at_head = cam(images, SegmentationScore(0, reduction_layer="head"))
    # A 1 x 1 convolution summed over space has its own weights as gradients.
    with torch.no_grad():
        cells = torch.einsum("k,bkyx->byx", model.head.weight[0, :, 0, 0], model.body(images)).clip(min=0)
    resized = functional.interpolate(cells[:, None], (16, 16), mode="bilinear")[:, 0]
    np.testing.assert_allclose(at_head.raw, resized, atol=1e-5)
    assert at_head.raw.any()


def test_a_reduction_layer_before_the_feature_layer_is_refused():
    with pytest.raises(LayerError, match="does not depend on layer 'head'"):
        GradCAM(Segmenter(), "head")(pictures(), SegmentationScore(1, reduction_layer="body"))


def vision_transformer():
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3)
    nn.init.normal_(model.heads.head.weight)
    return model


def swin():
    torch.manual_seed(0)
    return models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=3)


@pytest.mark.parametrize(
    ("make", "layer", "reshape"),
    [
        (
            vision_transformer,
            "encoder.layers.encoder_layer_1.ln_1",
            lambda tokens: tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2),
        ),
        (swin, "features.3", lambda output: output.permute(0, 3, 1, 2)),
        (swin, "norm", lambda output: output.permute(0, 3, 1, 2)),
    ],
)
@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
def test_transformers_are_explained_as_with_an_explicit_reshape(make, layer, reshape, method):
    model, images = make(), pictures(2, 32, 32)
    found = GradCAM(model, layer, method=method)(images, ClassScore(1))
    assert found.raw.any()
    same(found, GradCAM(model, layer, method=method, reshape=reshape)(images, ClassScore(1)))


def test_swin_s_permute_gives_the_same_map_as_the_layer_before_it():
    model, images = swin(), pictures(2, 32, 64)
    found = GradCAM(model, ["norm", "permute"])(images, ClassScore(1))
    same(found["norm"], found["permute"])


def test_non_square_tokens_are_explained_like_the_maps_they_came_from():
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def forward(self, maps):
            return maps.flatten(2).transpose(1, 2)

    class Mean(nn.Module):
        def forward(self, tokens):
            return tokens.mean(dim=1)

    patches = nn.Conv2d(3, 6, 8, stride=8)
    model = nn.Sequential(patches, Tokens(), nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU(), Mean(), nn.Linear(6, 3))
    images = pictures(2, 32, 48)
    # 4 x 6 patches without overlap tile the image evenly, so that both placements agree.
    for placement in ("receptive-field", "stretch"):
        found = GradCAM(model, ["0", "1"], placement=placement)(images, ClassScore(2))
        same(found["0"], found["1"], 1e-6)


def test_a_reshape_that_gives_no_maps_is_refused():
    with pytest.raises(LayerError, match="to_maps must return feature maps"):
        GradCAM(network(), "1", reshape=lambda maps: maps.flatten(2))(pictures(), ClassScore(0))


@pytest.mark.parametrize(
    "net", [network(), embedcam.EmbeddingNet("tiny", dim=4, image_size=16)], ids=["module", "network"]
)
def test_no_target_is_an_error_that_lists_the_targets(net):
    with pytest.raises(TargetError, match="ClassScore, SegmentationScore, TripletMargin, Similarity, Proxy, Scalar"):
        GradCAM(net)(pictures())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda output: output, r"one scalar per image \(2,\), got \(2, 4\)"),
        (lambda output: output.sum(), r"got \(\)"),
        (lambda output: output[:1, 0], r"got \(1,\)"),
        (lambda output: 1.0, "got float"),
        (lambda output: output[:, 0].detach(), "no gradient"),
    ],
)
def test_a_target_that_is_not_one_differentiable_scalar_an_image_is_refused(function, message):
    with pytest.raises(TargetError, match=message):
        GradCAM(network(), "1")(pictures(), Scalar(function))


@pytest.mark.parametrize(
    ("layer", "message"),
    [("9", "no layer '9'"), ([], "empty list"), ("4", "is no grid of cells"), (["1", "spare"], "did not run")],
)
def test_layers_that_cannot_be_explained_are_named(layer, message):
    model = network()
    model.register_module("spare", nn.ReLU())
    model.forward = lambda images: nn.Sequential(*list(model.children())[:5])(images)
    with pytest.raises(LayerError, match=message):
        GradCAM(model, layer)(pictures(), ClassScore(0))


def test_a_layer_that_the_target_does_not_depend_on_is_named():
    model = Segmenter()
    model.side = nn.Conv2d(7, 1, 1)
    model.body.register_forward_hook(lambda _, __, output: (model.side(output), output)[1])
    with pytest.raises(LayerError, match="does not depend on layer 'side'"):
        GradCAM(model, ["body", "side"])(pictures(), SegmentationScore(0))


def test_a_weighting_from_outside_is_taken_by_name(monkeypatch):
    monkeypatch.setitem(WEIGHTINGS._parts, "largest", Weighting(lambda maps, gradients: gradients.amax(dim=(-2, -1))))
    model, image = golden()
    found = GradCAM(model, "0", method="largest")(image, ClassScore(0))
    np.testing.assert_allclose(found.raw[0], 2 * A[0] + A[1], rtol=1e-6)


@pytest.mark.parametrize("option", ["method", "placement"])
def test_unknown_options_list_the_known_ones(option):
    with pytest.raises(TargetError, match=f"unknown {option} 'other'; use one of"):
        GradCAM(network(), "1", **{option: "other"})


def test_the_default_layer_is_the_last_spatial_one():
    assert GradCAM(network()).layers == ("1",)


def test_a_picture_that_is_not_finite_is_noted_and_shown_as_zero():
    images = pictures()
    images[1, 0, 3, 3] = float("nan")
    found = GradCAM(network(), "1")(images, ClassScore(0))
    assert np.isfinite(found.heatmaps).all() and not found.heatmaps[1].any()
    assert not found.notes[0] and "not finite" in found.notes[1][0]
