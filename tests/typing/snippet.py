"""A user's code, type-checked by mypy and never run."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import embedcam
from embedcam import Explainer, Explanation, OnnxExplainer, WeightDatabase
from embedcam.compat.gradcam import GradCAM as OldGradCAM
from embedcam.compat.pytorch_grad_cam import ClassifierOutputTarget, show_cam_on_image
from embedcam.compat.pytorch_grad_cam import GradCAM as PytorchGradCAM
from embedcam.explain import Answer
from embedcam.gradient import ClassScore, GradCAM, SegmentationScore, Similarity, Target, TripletMargin
from embedcam.nets import EmbeddingNet, WrappedNet
from embedcam.nets.receptive_field import Geometry
from embedcam.show import Box


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.layer4(images).mean(dim=(2, 3))
        return pooled


def build(pictures: list[tuple[NDArray[np.uint8], str]]) -> WeightDatabase:
    net = embedcam.wrap(Embedder(), layer="layer4", metric="euclidean")
    assert_type(net, WrappedNet)
    database = embedcam.build_database(net, "folder:birds", clusters=50, top_k=50, pairs=50)
    database = embedcam.build_database(net, pictures)
    database.save(Path("weights.h5"))
    assert_type(database.clusters, int)
    assert_type(database.labels_of(0), list[tuple[str, int]])
    return embedcam.WeightDatabase.load("weights.h5")


def explain(images: Tensor, pictures: NDArray[np.uint8]) -> Explanation:
    net = embedcam.EmbeddingNet("mobilenet_v2", dim=128, weights="net.safetensors")
    assert_type(net, EmbeddingNet)
    explainer = Explainer(net, "weights.h5", preset="paper", autocast=torch.bfloat16)
    explanation = explainer(images)
    assert_type(explanation, Explanation)
    assert_type(explainer(images, towards="monarch", versus=3), Answer)
    assert_type(explainer(images, versus=pictures[0]).contributions, NDArray[np.float32])
    assert_type(explanation.heatmaps, NDArray[np.float32])
    assert_type(explanation.raw, NDArray[np.float32])
    assert_type(explanation.notes, list[list[str]])
    assert_type(explanation.embeddings, NDArray[np.float32] | None)
    assert_type(explanation.clusters, NDArray[np.int64] | None)
    assert_type(explanation.distances, NDArray[np.float32] | None)
    assert_type(explanation.typicality, NDArray[np.float32] | None)
    assert_type(explanation.anomaly, NDArray[np.float32] | None)
    assert_type(explanation.neighbors, NDArray[np.int64] | None)
    assert_type(explanation.overlay(images, alpha=0.4), list[NDArray[np.uint8]])
    assert_type(explanation.boxes(0.5), list[list[Box]])
    assert_type(len(explanation), int)
    return OnnxExplainer("explainer.onnx", ["CPUExecutionProvider"])(pictures)


def differentiate(model: nn.Module, images: Tensor, other: Tensor) -> list[Explanation]:
    class Mean:
        def __call__(self, output: Tensor) -> Tensor:
            return output.mean(dim=1)

    targets: list[Target] = [ClassScore(281), Similarity(other), TripletMargin(other, other), Mean()]
    targets.append(SegmentationScore(3))
    cam = GradCAM(model, "layer4", placement="stretch")
    explanations: list[Explanation] = [cam(images, target) for target in targets]
    explanations.append(embedcam.gradient.GradCAM(model)(images, lambda output: output[:, 0]))
    return explanations


def place(model: nn.Module) -> tuple[float, float]:
    geometry = embedcam.nets.receptive_field.geometry(model, "layer4", (224, 224))
    assert_type(geometry, Geometry)
    assert_type(geometry.cell_stride, tuple[float, float])
    return geometry.first_cell_center


def as_before(model: nn.Module, layer: nn.Module, images: Tensor, rgb: NDArray[np.float32]) -> NDArray[np.uint8]:
    mask, logits = OldGradCAM(model, layer)(images, class_idx=3)
    assert_type(mask, Tensor)
    assert_type(logits, Tensor)
    with PytorchGradCAM(model=model, target_layers=[layer]) as cam:
        maps = cam(input_tensor=images, targets=[ClassifierOutputTarget(281)])
    assert_type(maps, NDArray[np.float32])
    return show_cam_on_image(rgb, maps[0], use_rgb=True)


def rescue() -> str:
    try:
        return embedcam.data.load("folder:birds").ids[0]
    except embedcam.EmbedcamError as error:
        return str(error)
