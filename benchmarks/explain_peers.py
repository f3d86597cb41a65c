"""Compare the time of explanations with the plain forward pass, and with grad-cam, torchcam and captum.

    pip install "embedcam[test]"
    python benchmarks/explain_peers.py [--weights mobilenet_v2.safetensors] [--compile] [--int8] [--json FILE]

All methods explain the same images with the same network and feature layer; the default of embedcam also uses a finer
layer. "embedcam, attached" is the plain forward pass in the channels-last format, with an explainer attached to it.
Every method has its own copy of the network and runs once per round. Ratios are medians over the rounds:

- "x torch": relative to the plain forward pass in torch;
- "x channels last": relative to the forward pass in the channels-last format, which embedcam uses;
- "x compiled": relative to the same compiled with `torch.compile`, for compiled methods only;
- "x ONNX": relative to the float32 forward pass in onnxruntime, for ONNX methods only;
- "grad-cam / this", "torchcam / this": time of these methods relative to this one.

Images are float32 and contiguous. embedcam and grad-cam return heat maps at image size; torchcam and captum return one
value per cell, which takes less time. Methods with backpropagation explain the similarity to a fixed vector.
onnxruntime uses as many threads as torch, and a pause precedes every call.

With random weights, int8 leaves many convolutions in float (their number is reported), so the result does not apply to
trained networks.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import captum.attr
import onnxruntime
import pytorch_grad_cam
import torch
import torchcam.methods
from measure import Median, about, interleaved, ratio, report
from torch import Tensor, nn
from torch.nn import functional

import embedcam
from embedcam.data.arrays import as_samples
from embedcam.explain import CompiledExplainer
from embedcam.gradient import GradCAM, Proxy
from embedcam.onnx.export import OPSET, export
from embedcam.onnx.quantise import QuantiseReport, quantise

PRESETS = ("default", "paper")  # "fast" is the default at a smaller size, "fine" two passes
DIM, TRAINING, CALIBRATING = 128, 60, 16
TORCH, CHANNELS_LAST = "torch forward", "torch forward, channels last"
COMPILED, ONNX = "torch forward, channels last, compiled", "ONNX forward"
# Seconds. Idle threads spin, in onnxruntime for 30 ms and in torch for 5 ms: without a pause, a forward pass in torch
# after one in onnxruntime took twice as long.
PAUSE = 0.05
COLUMNS = {
    **dict.fromkeys(("backbone", "batch", "method", "backprop"), ""),
    "ms": ".1f",
    **dict.fromkeys(
        ("x torch", "x channels last", "x compiled", "x ONNX", "grad-cam / this", "torchcam / this"), ".2f"
    ),
}

Method = Callable[[Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "resnet50", "timm:vit_small_patch14_dinov2"])
    parser.add_argument("--weights", type=Path, help="state dict of torchvision's mobilenet_v2; random by default")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=40, help="timed calls per method")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument(
        "--compile", action="store_true", help="also with torch.compile; takes minutes, and a C++ compiler"
    )
    parser.add_argument("--int8", action="store_true", help="also in int8, which takes minutes to prepare")
    parser.add_argument("--json", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    rows, float_layers = [], {}
    for backbone in args.backbones:
        torch.manual_seed(0)
        training = torch.rand(TRAINING, 3, args.image_size, args.image_size)
        net = network(backbone, args.weights if backbone == "mobilenet_v2" else None, training)
        explaining, small = explainers(net, training, args.compile, args.int8)
        if small is not None:
            float_layers[backbone] = f"{len(small.float_layers)} of {small.layers}"
        without, backprop = {**plain(net, args.compile), **explaining}, with_backprop(net)
        for batch in args.batches:
            images = torch.rand(batch, *training.shape[1:])
            rows += [
                {"backbone": backbone, "batch": batch, "backprop": row["method"] in backprop, **row}
                for row in measure({**without, **backprop}, images, args.rounds)
            ]
    made_with = about("torch", "onnxruntime", "grad-cam", "torchcam", "captum")
    made_with |= {"threads": torch.get_num_threads(), "image size": args.image_size, "rounds": args.rounds}
    made_with |= {"convolutions left in float by int8": float_layers} if args.int8 else {}
    report(COLUMNS, rows, made_with, args.json)


def measure(methods: dict[str, Method], images: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Time every method once per round, each after a pause."""
    calls: dict[str, Callable[[], object]] = {}
    for name, method in methods.items():
        calls[f"pause before {name}"] = partial(time.sleep, PAUSE)
        calls[name] = partial(method, images)
    seconds = interleaved(calls, rounds)
    return [
        {
            "method": name,
            "ms": Median.of(1000 * each for each in seconds[name]),
            "x torch": ratio(seconds[name], seconds[TORCH]),
            "x channels last": ratio(seconds[name], seconds[CHANNELS_LAST]),
            "x compiled": ratio(seconds[name], seconds[COMPILED]) if "compiled" in name else None,
            "x ONNX": ratio(seconds[name], seconds[ONNX]) if "ONNX" in name else None,
            "grad-cam / this": ratio(seconds["grad-cam"], seconds[name]),
            "torchcam / this": ratio(seconds["torchcam"], seconds[name]),
        }
        for name in methods
    ]


def network(backbone: str, weights: Path | None, training: Tensor) -> embedcam.EmbeddingNet:
    """The network that all methods explain."""
    net = embedcam.EmbeddingNet(backbone, DIM, weights=weights, image_size=training.shape[-1])
    if weights is None:
        # Else activations vanish with random weights, and all embeddings are in one cluster.
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            net.train()(training)
    return net.eval()


def plain(net: embedcam.EmbeddingNet, compiled: bool) -> dict[str, Method]:
    """Forward passes without an explanation, as baselines."""
    session = onnx_session(net)
    methods = {
        TORCH: forward(copy.deepcopy(net), torch.contiguous_format),
        CHANNELS_LAST: forward(copy.deepcopy(net), torch.channels_last),
        ONNX: lambda images: session.run(None, {"images": images.numpy()}),
    }
    if compiled:
        methods[COMPILED] = forward(torch.compile(copy.deepcopy(net)), torch.channels_last)
    return methods


def forward(model: Callable[[Tensor], object], memory_format: torch.memory_format) -> Method:
    @torch.inference_mode()
    def embed(images: Tensor) -> object:
        return model(images.contiguous(memory_format=memory_format))

    return embed


def onnx_session(net: embedcam.EmbeddingNet) -> onnxruntime.InferenceSession:
    """Export the embedding alone, with the settings of embedcam."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        program = torch.onnx.export(
            net,
            (torch.zeros(2, 3, *net.preprocess.input_size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            verbose=False,
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def explainers(
    net: embedcam.EmbeddingNet, training: Tensor, compiled: bool, int8: bool
) -> tuple[dict[str, Method], QuantiseReport | None]:
    """Explainers with a database of random images, per preset, in torch and in onnxruntime."""
    labelled = [(image, number % 2) for number, image in enumerate(training)]
    database = embedcam.build_database(net, labelled, pairs=5)
    own = copy.deepcopy(net)
    methods: dict[str, Method] = {"embedcam, attached": attached(embedcam.Explainer(own, database), own)}
    with tempfile.TemporaryDirectory() as folder:
        files = {preset: Path(folder) / f"{preset}.onnx" for preset in PRESETS}
        for preset, path in files.items():
            explainer = embedcam.Explainer(copy.deepcopy(net), database, preset=preset)
            export(explainer, path, size=net.preprocess.input_size)
            methods[f"embedcam, {preset}"] = explainer
            if compiled:
                methods[f"embedcam, {preset}, compiled"] = CompiledExplainer(
                    copy.deepcopy(net), database, preset=preset
                )
        small = None
        if int8:
            files["default, int8"] = Path(folder) / "int8.onnx"
            small = quantise(files["default"], as_samples(labelled[:CALIBRATING]), files["default, int8"])
        for name, path in files.items():
            methods[f"embedcam ONNX, {name}"] = on_arrays(embedcam.OnnxExplainer(path, threads=torch.get_num_threads()))
    return methods, small


def attached(explainer: embedcam.Explainer, net: embedcam.EmbeddingNet) -> Method:
    embed = forward(net, torch.channels_last)

    def explain(images: Tensor) -> object:
        with explainer.attached(net):
            embed(images)
        return explainer.last()

    return explain


def on_arrays(explainer: embedcam.OnnxExplainer) -> Method:
    return lambda images: explainer(images.numpy())


def with_backprop(net: embedcam.EmbeddingNet) -> dict[str, Method]:
    """Gradient methods for the similarity to a fixed vector."""
    proxy = functional.normalize(torch.randn(DIM), dim=0)
    ours, for_torchcam, for_captum, for_grad_cam = (copy.deepcopy(net) for _ in range(4))
    extractor = torchcam.methods.GradCAM(for_torchcam, for_torchcam.feature_layer)
    attribution = captum.attr.LayerGradCam(lambda images: for_captum(images) @ proxy, for_captum.feature_layer)
    grad_cam = pytorch_grad_cam.GradCAM(
        for_grad_cam,
        [for_grad_cam.feature_layer],
        reshape_transform=lambda output: net.reading().maps(output, net.preprocess.input_size),
    )
    return {
        "embedcam, Grad-CAM": partial(GradCAM(ours), target=Proxy(proxy)),
        "torchcam": lambda images: extractor(0, for_torchcam(images) @ proxy[:, None]),
        "captum": lambda images: attribution.attribute(images, relu_attributions=True),
        "grad-cam": lambda images: grad_cam(images, [lambda embedding: embedding @ proxy] * len(images)),
    }


if __name__ == "__main__":
    main()
