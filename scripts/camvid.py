"""Train a small DeepLab on CamVid, print its IoU, and draw Grad-CAM of four layers.

    python scripts/camvid.py --data data/camvid --weights mobilenet_v2.safetensors --out runs/camvid

The backbone is an ImageNet MobileNetV2. Its first blocks are frozen, and their activations of a few random views per
picture are computed once and used by all epochs, so that two CPU cores are enough.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from segmentation_figures import layers_figure
from torch import Tensor, nn
from torch.nn import functional

from embedcam.data.preprocess import Preprocess
from embedcam.data.sets.camvid import CLASSES, COLORS, UNLABELLED, CamVidSamples, camvid
from embedcam.errors import EmbedcamError, NetworkError
from embedcam.gradient import GradCAM, SegmentationScore
from embedcam.nets import layers
from embedcam.nets.backbones import create
from embedcam.nets.weights import read_state_dict
from embedcam.show.grid import save_png
from embedcam.utils import progress
from embedcam.utils.files import require_writable, write_bytes

FROZEN = 4  # frozen blocks of the backbone: up to stride 4
WIDTH = 128  # channels after the backbone
OUTPUT_STRIDE = 16
RATES = (3, 6, 9)  # dilations of the pyramid, for 15 x 20 cells
BATCH = 8
ZOOM = 1.5  # maximum zoom of a random view
EXPLAINED = ("Road", "Car")
DEPTHS = {"features.3": "early", "features.13": "middle", "features.17": "late", "decoder": "last"}
METADATA = "embedcam-camvid"


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabv3, arXiv 1706.05587), with depthwise convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_unit(inputs, outputs), *(_separable(inputs, outputs, r) for r in RATES)])
        # No batch norm after pooling: there is one value per channel and picture.
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1), nn.ReLU())
        self.project = _unit((2 + len(RATES)) * outputs, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, K, h, w) to (B, outputs, h, w)."""
        branches = [branch(maps) for branch in self.branches]
        branches.append(self.pooled(maps).expand_as(branches[0]))
        projected: Tensor = self.project(torch.cat(branches, dim=1))
        return projected


class SegmentationNet(nn.Module):
    """A small DeepLabv3+ (arXiv 1802.02611) on a dilated MobileNetV2."""

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        self.preprocess = Preprocess((240, 320))
        backbone: Any = create("mobilenet_v2", weights)
        self.features = backbone.features[:18]  # without the convolution to 1280 channels
        _dilate(self.features, OUTPUT_STRIDE)
        self.features[:FROZEN].requires_grad_(False)
        self.aspp = Pyramid(320, WIDTH)
        self.skip = _unit(24, 32)
        self.decoder = _separable(WIDTH + 32, WIDTH)
        self.classifier = nn.Conv2d(WIDTH, len(CLASSES), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, classes, H, W)."""
        return functional.interpolate(self.decode(self.encode(images)), images.shape[2:], mode="bilinear")

    def encode(self, images: Tensor) -> Tensor:
        """Run the frozen blocks, from (B, 3, H, W) to (B, 24, H / 4, W / 4)."""
        maps: Tensor = self.features[:FROZEN](images)
        return maps

    def decode(self, shallow: Tensor) -> Tensor:
        """Run the trained layers, from (B, 24, h, w) to logits (B, classes, h, w)."""
        deep = self.aspp(self.features[FROZEN:](shallow))
        deep = functional.interpolate(deep, shallow.shape[2:], mode="bilinear")
        logits: Tensor = self.classifier(self.decoder(torch.cat([deep, self.skip(shallow)], dim=1)))
        return logits

    def train(self, mode: bool = True) -> SegmentationNet:
        """Set the mode, but keep the batch norms of the backbone in evaluation mode."""
        super().train(mode)
        self.features.eval()
        return self

    def save(self, path: Path) -> None:
        """Write weights and configuration to a safetensors file, atomically."""
        state = {key: value.contiguous() for key, value in self.state_dict().items()}
        write_bytes(path, save(state, metadata={METADATA: json.dumps(self._config(), sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> SegmentationNet:
        """Read a file of `save`; raises NetworkError if it is missing or does not fit."""
        net, state = cls(), read_state_dict(path)
        try:
            with safe_open(path, framework="pt") as file:
                config = (file.metadata() or {}).get(METADATA)
            if config is None or json.loads(config) != json.loads(json.dumps(net._config())):
                raise NetworkError(f"{path} was written by another version of this script; train again")
            net.load_state_dict(state)
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise NetworkError(f"{path} is damaged: {error}; train again") from error
        return net.eval()

    def _config(self) -> dict[str, Any]:
        architecture = {"width": WIDTH, "rates": RATES, "output_stride": OUTPUT_STRIDE}
        return {"classes": CLASSES, "preprocess": asdict(self.preprocess), **architecture}


def _unit(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(_unit(inputs, inputs, 3, dilation, inputs), _unit(inputs, outputs))


def _dilate(features: nn.Module, output_stride: int) -> None:
    """Replace strides beyond `output_stride` by dilations, which keeps what every filter sees."""
    stride = dilation = 1
    for module in features.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            step = module.stride[0] if stride * module.stride[0] > output_stride else 1
            stride *= module.stride[0] // step
            module.stride = (module.stride[0] // step,) * 2
            module.dilation = module.padding = (dilation, dilation)
            dilation *= step


def view(
    picture: Image.Image, labels: Image.Image, size: tuple[int, int], random: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Zoom and flip a picture and its labels at random, and change the picture's colours."""
    zoom, x, y = random.uniform((1, 0, 0), (ZOOM, 1, 1))
    width, height = picture.width / zoom, picture.height / zoom
    left, top = x * (picture.width - width), y * (picture.height - height)
    box = (left, top, left + width, top + height)
    picture = picture.resize(size, Image.Resampling.BILINEAR, box)
    labels = labels.resize(size, Image.Resampling.NEAREST, box)
    if random.random() < 0.5:
        picture, labels = (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in (picture, labels))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(random.uniform(0.6, 1.4))
    return picture, labels


def shallow_views(net: SegmentationNet, samples: CamVidSamples, views: int, seed: int) -> tuple[Tensor, Tensor]:
    """Run the frozen blocks on random views: float16 activations (N, views, 24, h, w) and labels."""
    height, width = net.preprocess.input_size
    shallow = torch.empty(len(samples), views, 24, height // 4, width // 4, dtype=torch.float16)
    labels = torch.empty(len(samples), views, height, width, dtype=torch.uint8)
    for index in progress.track(range(len(samples)), "caching", len(samples)):
        picture, truth = samples.image(index), Image.fromarray(samples.label_image(index))
        random = np.random.default_rng([seed, index])
        pairs = [view(picture, truth, (width, height), random) for _ in range(views)]
        images = torch.from_numpy(np.stack([net.preprocess(image) for image, _ in pairs]))
        with layers.evaluating(net), torch.inference_mode():
            shallow[index] = net.encode(images)
        labels[index] = torch.from_numpy(np.stack([np.asarray(image) for _, image in pairs]))
    return shallow, labels


def class_weights(labels: Tensor) -> Tensor:
    """Class weights: the square root of median-frequency balancing (arXiv 1411.4734)."""
    counts = torch.bincount(labels.flatten(), minlength=len(CLASSES) + 1)[: len(CLASSES)].clamp(min=1)
    return (counts.median() / counts).sqrt()


def train(
    net: SegmentationNet,
    training: CamVidSamples,
    validation: CamVidSamples,
    out: Path,
    options: argparse.Namespace,
) -> None:
    """Train, and write the network of the best epoch on the validation pictures to `out`."""
    random = np.random.default_rng(options.seed)
    shallow, labels = shallow_views(net, training, options.views, options.seed)
    weight = class_weights(labels)
    backbone = [p for p in net.features.parameters() if p.requires_grad]
    head = [p for part in (net.aspp, net.skip, net.decoder, net.classifier) for p in part.parameters()]
    optimizer = torch.optim.AdamW([{"params": backbone}, {"params": head}], weight_decay=1e-3)
    steps = options.epochs * -(-len(training) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, [5e-4, 5e-3], steps, pct_start=0.1, cycle_momentum=False)
    best = -1.0
    for epoch in range(1, options.epochs + 1):
        net.train()
        losses = []
        for rows in np.array_split(random.permutation(len(training)), steps // options.epochs):
            views = random.integers(options.views, size=len(rows))
            logits = net.decode(shallow[rows, views].float().contiguous(memory_format=torch.channels_last))
            logits = functional.interpolate(logits, labels.shape[2:], mode="bilinear")
            truth = labels[rows, views].long()
            loss = functional.cross_entropy(logits, truth, weight, ignore_index=UNLABELLED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            losses.append(loss.item())
        score = iou(confusion(net, validation)).mean()
        progress.say(f"epoch {epoch}: loss {np.mean(losses):.3f}, validation mean IoU {score:.3f}")
        if score > best:
            best = score
            net.save(out)


def predict(net: SegmentationNet, picture: Image.Image) -> NDArray[np.int64]:
    """Predict the class of every pixel (H, W) of a picture of any size."""
    with layers.evaluating(net), torch.inference_mode():
        logits = net.decode(net.encode(torch.from_numpy(net.preprocess(picture))[None]))
        logits = functional.interpolate(logits, (picture.height, picture.width), mode="bilinear")
    classes: NDArray[np.int64] = logits[0].argmax(dim=0).numpy()
    return classes


def confusion(net: SegmentationNet, samples: CamVidSamples) -> NDArray[np.int64]:
    """Count the labelled pixels (classes, classes): true class by predicted class."""
    counts = np.zeros(len(CLASSES) ** 2, dtype=np.int64)
    for index in range(len(samples)):
        truth, predicted = samples.label_image(index).astype(np.int64), predict(net, samples.image(index))
        pairs = (truth * len(CLASSES) + predicted)[truth != UNLABELLED]
        counts += np.bincount(pairs, minlength=len(counts))
    return counts.reshape(len(CLASSES), len(CLASSES))


def iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of every class; 0 for a class that is neither present nor predicted."""
    intersection = np.diagonal(counts)
    scores: NDArray[np.float64] = intersection / np.maximum(counts.sum(axis=0) + counts.sum(axis=1) - intersection, 1)
    return scores


def explain(net: SegmentationNet, samples: CamVidSamples, index: int, region: str | None) -> Image.Image:
    """Draw the segmentation of a picture and the Grad-CAM of each explained class, per layer."""
    picture = samples.image(index)
    images = torch.from_numpy(net.preprocess(picture))[None]
    classes = tuple(CLASSES.index(name) for name in EXPLAINED)
    explanations = GradCAM(net, tuple(DEPTHS))(images, SegmentationScore(classes, region=region))
    heatmaps = {
        f"{layer}\n{depth}": {CLASSES[label]: explanations[layer][label].heatmaps[0] for label in classes}
        for layer, depth in DEPTHS.items()
    }
    labellings: dict[str, NDArray[Any]] = {
        "prediction": predict(net, picture),
        "ground truth": samples.label_image(index),
    }
    return layers_figure(np.asarray(picture), labellings, heatmaps, CLASSES, COLORS[:UNLABELLED], UNLABELLED)


def with_explained(samples: CamVidSamples, count: int) -> list[int]:
    """Choose evenly spread pictures in which every explained class covers at least 3 %."""
    classes = [CLASSES.index(name) for name in EXPLAINED]
    shares = [min(np.mean(samples.label_image(index) == label) for label in classes) for index in range(len(samples))]
    candidates = [index for index, share in enumerate(shares) if share >= 0.03] or [int(np.argmax(shares))]
    return sorted({candidates[i] for i in np.linspace(0, len(candidates) - 1, count).round().astype(int)})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a small DeepLab on CamVid and explain it by Grad-CAM.")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/<split> and labels/<split>")
    parser.add_argument("--weights", help="state dict of torchvision's mobilenet_v2; DEFAULT downloads it")
    parser.add_argument("--out", type=Path, default=Path("runs/camvid"), help="output folder")
    parser.add_argument("--epochs", type=_positive, default=10)
    parser.add_argument("--views", type=_positive, default=6, help="random views per training picture")
    parser.add_argument("--limit", type=_positive, help="maximum number of pictures per split")
    parser.add_argument("--figures", type=_positive, default=4, help="number of test pictures to explain")
    parser.add_argument("--region", choices=["predicted", "image"], default="predicted", help="pixels to explain")
    parser.add_argument("--eval-only", action="store_true", help="use the network in --out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not options.eval_only and options.weights is None:
        parser.error("training needs --weights")
    progress.show()
    start, path = time.monotonic(), options.out / "net.safetensors"
    try:
        training, validation, test = (
            _limited(camvid(options.data, s), options.limit) for s in ("train", "val", "test")
        )
        if not options.eval_only:
            require_writable(path)
            torch.manual_seed(options.seed)
            train(SegmentationNet(options.weights), training, validation, path, options)
        net = SegmentationNet.load(path)
        scores = iou(confusion(net, test))
        for name, score in zip((*CLASSES, "mean IoU"), (*scores, scores.mean()), strict=True):
            print(f"{name:<12}{score:.3f}")
        region = None if options.region == "image" else options.region
        for index in with_explained(test, options.figures):
            save_png(explain(net, test, index, region), options.out / f"gradcam_{Path(test.ids[index]).stem}.png")
        print(f"wrote the network and figures to {options.out} in {(time.monotonic() - start) / 60:.1f} minutes")
    except EmbedcamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; use the best network so far with --eval-only", file=sys.stderr)
        return 130
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _limited(samples: CamVidSamples, limit: int | None) -> CamVidSamples:
    return samples.subset(range(len(samples))[:limit])


if __name__ == "__main__":
    sys.exit(main())
