"""Compare gradient-free maps of a vision transformer's class token with attention rollout and Grad-CAM.

Example: python benchmarks/class_tokens.py --weights dinov2_vits14.safetensors --data folder:butterflies

Each image is explained against its own embedding z: e are its cell embeddings, m is their mean over other images, r is
what no cell adds. Every map is the positive part, one value per cell.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import about, report
from torch import Tensor, nn
from torch.nn import functional

from embedcam.data import load
from embedcam.data.loading import batches
from embedcam.data.samples import Samples
from embedcam.evaluate.localization import Localization
from embedcam.explain.explanation import Explanation
from embedcam.gradient import GradCAM
from embedcam.nets import load_network
from embedcam.nets.network import Network

SCORES = ("mean_ratio", "pointing", "best_iou", "pixel_ap")
BATCH = 8


def along(cells: Tensor, embeddings: Tensor) -> Tensor:
    """From (B, D, h, w) and (B, D) to (B, h, w)."""
    return torch.einsum("bdhw,bd->bhw", cells, embeddings)


@contextmanager
def attention(model: Any) -> Iterator[list[Tensor]]:
    """Collect the attention of all blocks of a timm network, (B, n, n), averaged over heads."""
    found: list[Tensor] = []
    handles = [
        block.attn.attn_drop.register_forward_hook(lambda *hooked: found.append(hooked[2].mean(dim=1)))
        for block in model.blocks
    ]
    for block in model.blocks:
        block.attn.fused_attn = False
    try:
        yield found
    finally:
        for block, handle in zip(model.blocks, handles, strict=True):
            block.attn.fused_attn = True
            handle.remove()


def rollout(net: Network, images: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): attention and identity, multiplied."""
    model: Any = net.body
    with torch.inference_mode(), attention(model) as layers:
        net(images)
    flow = torch.eye(layers[0].shape[1])
    for weights in layers:
        flow = (weights + torch.eye(weights.shape[1])) / 2 @ flow
    cells = flow[:, 0, model.num_prefix_tokens :]
    maps: Tensor = cells.unflatten(1, net.map_size)
    return maps


def methods(net: Network, mean: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """From images to signed maps, by name."""

    def cellwise(formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        @torch.inference_mode()
        def explain(images: Tensor) -> Tensor:
            seen = net.activations(images)
            cells = net.cells(seen)
            return formula(cells.embeddings, cells.rest[:, :, None, None], seen.embeddings)

        return explain

    # Of the module, since the cosine of an embedding with itself has no gradient.
    cam = GradCAM(net.body, net.layer, placement="stretch")
    unit: Callable[[Tensor], Tensor] = functional.normalize
    return {
        "(e - m) . z": cellwise(lambda e, r, z: along(e - mean, z)),
        "cos(e - m, z)": cellwise(lambda e, r, z: along(unit(e - mean), z)),
        "e . z": cellwise(lambda e, r, z: along(e, z)),
        "cos(e, z)": cellwise(lambda e, r, z: along(unit(e), z)),
        "(e + r) . z": cellwise(lambda e, r, z: along(e + r, z)),
        "cos(e + r, z)": cellwise(lambda e, r, z: along(unit(e + r), z)),
        "attention rollout": lambda images: rollout(net, images),
        "Grad-CAM, last block": lambda images: torch.from_numpy(cam(images, lambda z: (z * z.detach()).sum(dim=1)).raw),
    }


def mean_cell(net: Network, samples: Samples) -> Tensor:
    """Average the cell embeddings of images, (D, 1, 1)."""
    with torch.inference_mode():
        cells = [
            net.cells(net.activations(torch.from_numpy(images))).embeddings.mean(dim=(2, 3))
            for _, images in batches(samples, net.preprocess, BATCH)
        ]
    return torch.cat(cells).mean(dim=0)[:, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="timm:vit_small_patch14_dinov2", help="SPEC of a vision transformer of timm")
    parser.add_argument("--weights", help="file with its state dict")
    parser.add_argument("--data", required=True, help="SPEC of images with masks")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--json", type=Path, help="JSON file for the scores")
    args = parser.parse_args()

    net = load_network(args.net, weights=args.weights, input_size=(args.size, args.size))
    samples = load(args.data)
    step = max(1, len(samples) // args.images)
    mean = mean_cell(net, samples.subset(np.arange(len(samples))[step // 2 :: step][: args.images]))
    held = samples.subset(np.arange(len(samples))[::step][: args.images])
    found = {name: Localization() for name in methods(net, mean)}
    correlations: dict[str, list[float]] = {name: [] for name in found}
    seconds = dict.fromkeys(found, 0.0)
    shares: list[float] = []
    for indices, pictures in batches(held, net.preprocess, BATCH):
        images = torch.from_numpy(pictures)
        masks = np.stack([net.preprocess.mask(mask) for i in indices.tolist() if (mask := held.mask(i)) is not None])
        shares += masks.mean(axis=(1, 2)).tolist()
        for name, explain in methods(net, mean).items():
            start = time.perf_counter()
            maps = explain(images).clamp(min=0)
            seconds[name] += time.perf_counter() - start
            if maps.shape[-1] != args.size:
                maps = nn.functional.interpolate(maps[:, None], pictures.shape[2:], mode="bilinear")[:, 0]
            heat = Explanation.of(maps.numpy()).heatmaps
            found[name].add(heat, masks)
            pairs = zip(heat, masks, strict=True)
            correlations[name] += [float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) for one, other in pairs]
    rows = []
    for name, localization in found.items():
        scores = {key: localization.result()[key] for key in SCORES}
        row = {
            "method": name,
            "anti_correlated": sum(each < 0 for each in correlations[name]),
            "correlation": float(np.mean(correlations[name])),
            "ratio_over_share": scores["mean_ratio"] / float(np.mean(shares)),
            **scores,
            "ms": 1000 * seconds[name] / len(shares),
        }
        rows.append(row)
    columns = {"method": "", "anti_correlated": "d", "correlation": ".3f", "ratio_over_share": ".2f"}
    report({**columns, **dict.fromkeys(SCORES, ".3f"), "ms": ".0f"}, rows, about("torch", "timm"), args.json)


if __name__ == "__main__":
    main()
