"""Read the preprocessing of torchvision, timm and Hugging Face into arguments of `Preprocess`; imports none of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError

logger = logging.getLogger("embedcam")

_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# Steps that change nothing, or convert to float32 (3, H, W) in [0, 1]; the last ones do not scale by themselves.
_NEUTRAL = (
    "_convert_image_to_rgb",
    "_convert_to_rgb",
    "MaybeConvertMode",
    "MaybePILToTensor",
    "PILToTensor",
    "RGB",
    "ToImage",
    "ToPureTensor",
)
_SCALING = ("ToTensor", "MaybeToTensor", "ConvertImageDtype", "ToDtype")


class _Unknown(Exception):
    """A step that a `Preprocess` cannot express."""


Fields = dict[str, Any]


def of_timm(model: Any) -> Fields:
    """Read a timm model's `pretrained_cfg`; see `Preprocess.from_timm`."""
    cfg = model.pretrained_cfg
    cfg = cfg if isinstance(cfg, dict) else cfg.to_dict()
    size = tuple(cfg.get("input_size") or (3, 224, 224))[1:]
    # The size that a vision transformer was made for, which may be another than that of its weights.
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    mode = cfg.get("crop_mode") or "center"
    crop_pct = cfg.get("crop_pct") or 0.875
    interpolation = cfg.get("interpolation") or "bilinear"
    fields = {
        "input_size": built or size,
        "mean": cfg.get("mean"),
        "std": cfg.get("std"),
        "interpolation": interpolation if interpolation in _RESAMPLING.values() else "bicubic",
        "crop_pct": None if mode == "squash" and crop_pct == 1 else crop_pct,
    }
    return {name: value for name, value in fields.items() if value is not None}


def of_transform(transform: Callable[[Image.Image], Any]) -> Fields:
    """Read a transform; see `Preprocess.from_transforms`."""
    try:
        return _read(_steps(transform))
    except _Unknown as error:
        return _called(transform, transform, str(error))


def _steps(transform: Any) -> Iterable[Any]:
    steps = getattr(transform, "transforms", None)
    if isinstance(steps, list | tuple):
        return [inner for step in steps for inner in _steps(step)]
    return [transform]


def _read(steps: Iterable[Any]) -> Fields:
    resize = crop = None
    interpolation, scaled = "bilinear", False
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for step in steps:
        name = getattr(step, "__name__", type(step).__name__)
        if name == "Resize" and resize is None and crop is None:
            resize, interpolation = step.size, _interpolation(step.interpolation)
            if getattr(step, "max_size", None) is not None:
                raise _Unknown("Resize with max_size")
        elif name == "CenterCrop" and crop is None:
            crop = step.size
        elif name in ("Normalize", "MaybeNormalize"):
            mean, std = _triple(step.mean), _triple(step.std)
        elif name == "ImageClassification":  # of torchvision's weights
            resize, crop, interpolation = step.resize_size, step.crop_size, _interpolation(step.interpolation)
            mean, std, scaled = _triple(step.mean), _triple(step.std), True
        elif name in _SCALING:
            scaled = scaled or name != "ToDtype" or bool(step.scale)
        elif name not in _NEUTRAL:
            raise _Unknown(name)
    if not scaled:
        raise _Unknown("no conversion to [0, 1]")
    return {**_sizes(resize, crop), "mean": mean, "std": std, "interpolation": interpolation}


def _sizes(resize: Any, crop: Any) -> Fields:
    """Return input size and crop_pct of a resizing (to a shorter side, or to a size) and a centre crop."""
    sides = None if resize is None else tuple(np.ravel(resize).astype(int).tolist())
    window = None if crop is None else tuple(np.ravel(crop).astype(int).tolist())
    if sides is not None and len(sides) == 2 and window in (None, sides):
        return {"input_size": sides}
    if sides is not None and window is not None and len(sides) == 1 and len(set(window)) == 1 and sides >= window[:1]:
        return {"input_size": (window[0], window[0]), "crop_pct": window[0] / sides[0]}
    raise _Unknown(f"Resize({resize}) with CenterCrop({crop})")


def _triple(values: Any) -> tuple[float, float, float]:
    numbers = [float(str(value)) for value in np.ravel(np.asarray(values))]  # timm keeps them in float32
    if len(numbers) != 3:
        raise _Unknown(f"{len(numbers)} channels")
    return numbers[0], numbers[1], numbers[2]


def _interpolation(value: Any) -> str:
    name = _RESAMPLING.get(value, value) if isinstance(value, int) else str(getattr(value, "value", value))
    if name not in _RESAMPLING.values():
        raise _Unknown(f"interpolation {name}")
    return str(name)


def of_processor(processor: Any) -> Fields:
    """Read an image processor; see `Preprocess.from_hf`."""
    try:
        return _read_processor(processor)
    except _Unknown as error:
        return _called(
            processor, lambda image: processor(images=image, return_tensors="np")["pixel_values"][0], str(error)
        )


def _read_processor(processor: Any) -> Fields:
    def get(name: str, default: Any = None) -> Any:
        value = getattr(processor, name, None)
        return default if value is None else value

    for name in ("do_pad", "rescale_offset", "do_thumbnail", "do_image_splitting", "do_color_quantize"):
        if get(name):
            raise _Unknown(name)
    scaled = get("do_rescale", True) and abs(get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
    if not scaled or not get("do_resize", True):
        raise _Unknown("no rescaling by 1 / 255, or no resizing")
    size, window = dict(get("size", {})), dict(get("crop_size", {}))
    crop = (window["height"], window["width"]) if get("do_center_crop") and window.get("height") else None
    resize: Any = (size["height"], size["width"]) if size.get("height") else size.get("shortest_edge")
    if (share := get("crop_pct")) and size.get("shortest_edge"):  # ConvNeXt's: without a crop from 384 pixels on
        side = size["shortest_edge"]
        resize, crop = (int(side / share), side) if side < 384 else ((side, side), None)
    elif size.get("longest_edge"):
        raise _Unknown("longest_edge")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if get("do_normalize", True):
        mean, std = _triple(processor.image_mean), _triple(processor.image_std)
    interpolation = _interpolation(int(get("resample", 2)))
    return {**_sizes(resize, crop), "mean": mean, "std": std, "interpolation": interpolation}


def _called(value: Any, function: Callable[[Image.Image], Any], reason: str) -> Fields:
    """Call a transform as it is; its input size is measured on a grey picture."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        shape = np.shape(function(Image.new("RGB", (256, 256), (128, 128, 128))))
    except Exception as error:
        raise DataError(f"preprocess {name} fails on an RGB Pillow image: {error!r}; correct it") from error
    if len(shape) != 3 or shape[0] != 3:
        raise DataError(f"preprocess {name} returns an array of shape {shape}; it must return (3, H, W)")
    logger.warning(
        "preprocess %s is called as it is (%s cannot be read); heat maps are placed over the whole picture, which is "
        "wrong if it crops",
        name,
        reason,
    )
    return {"input_size": (shape[1], shape[2]), "transform": name, "function": function}
