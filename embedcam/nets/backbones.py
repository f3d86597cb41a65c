"""Backbones by name: `tiny`, and any torchvision classifier without its classification layers."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from pathlib import Path

from torch import nn

from ..data.preprocess import Preprocess
from ..errors import NetworkError
from .weights import load_into, read_state_dict

TINY = "tiny"


def names() -> list[str]:
    """List the backbones that `create` makes.

    Returns:
        "tiny" and the names of torchvision's classification networks.
    """
    from torchvision import models

    return [TINY, *models.list_models(module=models)]


def tiny() -> nn.Module:
    """Make the small backbone of the demo: 70,000 parameters, 128 channels, and a cell every 4 pixels.

    Its last layers are dilated instead of strided: they see whole digits, and the maps stay fine enough for single
    strokes.

    Returns:
        A module from (B, 3, H, W) to (B, 128), with its feature maps at `features`.
    """

    def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
        padding = dilation * (kernel // 2)
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    blocks = [
        *block(3, 16, stride=2),
        *block(16, 32, stride=2),
        *block(32, 64, dilation=2),
        *block(64, 64, dilation=3),
        *block(64, 128, kernel=1),
    ]
    parts = {"features": nn.Sequential(*blocks), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts))


def create(name: str, weights: str | Path | None = None) -> nn.Module:
    """Make a backbone: a classifier without its classification layers.

    Layers keep torchvision's names. VGG, AlexNet and SqueezeNet, whose classifiers do not start with global average
    pooling, end in global average pooling instead.

    Args:
        name: "tiny" or the name of a torchvision classifier, such as "mobilenet_v2".
        weights: None (random), "DEFAULT" (torchvision's, downloaded), or a file with a state dict of the torchvision
            network: safetensors, or torch's own format, which is read with `weights_only`.

    Returns:
        A module from (B, 3, H, W) to (B, F).

    Raises:
        NetworkError: If the name or the weights cannot be used.
    """
    if name == TINY:
        backbone = tiny()
        if weights == "DEFAULT":
            raise NetworkError("backbone 'tiny' has no pretrained weights; leave --weights out or name a file")
    else:
        backbone = classifier(name, download=weights == "DEFAULT")
        _remove_classifier(name, backbone)
    if weights is not None and weights != "DEFAULT":
        load_into(backbone, read_state_dict(weights), weights, f"backbone {name!r}")
    return backbone


def classifier(name: str, *, download: bool = False) -> nn.Module:
    """Make a classifier of torchvision with its classification layers.

    Args:
        name: For example "mobilenet_v2".
        download: Download torchvision's weights instead of drawing random ones.

    Returns:
        The network.

    Raises:
        NetworkError: If the name is unknown, or the weights cannot be downloaded.
    """
    from torchvision import models

    _check_name(name)
    # By default these two spend minutes on drawing random weights, and have auxiliary classifiers.
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    if not download:
        model: nn.Module = models.get_model(name, weights=None, **options)
        return model
    try:
        model = models.get_model(name, weights="DEFAULT")
    except OSError as error:  # URLError is one
        raise NetworkError(
            f"cannot download the weights of {name}: {error}; "
            "without a connection, give --weights a file with its state dict"
        ) from error
    except RuntimeError as error:  # a wrong hash
        raise NetworkError(
            f"the downloaded weights of {name} are damaged: {error}; delete them and try again"
        ) from error
    if options:
        model.aux_logits = False  # type: ignore[assignment]
    return model


def parameters(name: str) -> int:
    """Count the parameters of a backbone with its classifier, without making it.

    Args:
        name: "tiny" or the name of a torchvision classifier.

    Returns:
        Number of parameters.

    Raises:
        NetworkError: If the name is unknown.
    """
    from torchvision import models

    if name == TINY:
        return sum(parameter.numel() for parameter in tiny().parameters())
    _check_name(name)
    return int(models.get_model_weights(name).DEFAULT.meta["num_params"])


def preprocess(name: str) -> Preprocess:
    """Return the preprocessing of torchvision's weights, without their centre crop.

    Args:
        name: The name of a torchvision classifier.

    Returns:
        From an image to an input.

    Raises:
        NetworkError: If the name is unknown.
    """
    from torchvision import models

    _check_name(name)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    side = transforms.crop_size[0]
    return Preprocess((side, side), transforms.mean, transforms.std, transforms.interpolation.value)


def _check_name(name: str) -> None:
    from torchvision import models

    classifiers = models.list_models(module=models)
    if name not in classifiers:
        close = difflib.get_close_matches(str(name), [TINY, *classifiers], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "use a torchvision classifier, such as resnet50"
        raise NetworkError(f"unknown backbone {name!r}; {hint}")


def _remove_classifier(name: str, model: nn.Module) -> None:
    if name.startswith(("vgg", "alexnet")):
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
        return
    if name.startswith("squeezenet"):
        model.classifier = nn.AdaptiveAvgPool2d(1)
        return
    # All other classifiers end in one linear layer; norms and pooling before it stay.
    last, _ = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, leaf = last.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
