"""The embedding network that embedcam trains: a backbone and a head, saved as one file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from ..errors import NetworkError
from ..utils.files import write_bytes
from ..utils.limits import LARGEST_INPUT, allowance
from . import backbones, layers
from .choice import suggest
from .family import NETWORKS, NetworkOptions
from .network import Network
from .weights import read_state_dict

# One metadata key only: safetensors writes several in no fixed order, and files must not differ between runs.
_KEY = "embedcam"
_FORMAT = 1
# Far more than any network of torchvision needs: characters of a file's configuration, and tensors.
_MAX_CONFIG, _MAX_TENSORS = 2**16, 2**14


class EmbeddingNet(Network):
    """A backbone with a linear head.

    Args:
        backbone: "tiny", the name of a torchvision classifier, or the SPEC of a network as in `load_network`, such as
            "timm:resnet50".
        dim: Number D of dimensions of the embedding.
        weights: None; "DEFAULT" (torchvision's, downloaded); a file with a state dict of the torchvision network; or
            a file written by `save` for the same backbone and dim.
        hidden: Width of a hidden layer (with ReLU) before the last linear layer; None for a linear head.
        metric: "cosine" normalises embeddings to length 1; "euclidean" leaves them as they are.
        image_size: Side of the square input in pixels.
        layer: Dotted name of the feature layer; the backbone's last spatial layer if None.

    Raises:
        NetworkError: If the backbone, the weights or an option cannot be used.
    """

    def __init__(
        self,
        backbone: str,
        dim: int = 128,
        *,
        weights: str | Path | None = None,
        hidden: int | None = None,
        metric: str = "cosine",
        image_size: int = 224,
        layer: str | None = None,
    ) -> None:
        largest = math.isqrt(LARGEST_INPUT)
        if dim < 1 or not 8 <= image_size <= largest or (hidden is not None and hidden < 1):
            raise NetworkError(
                f"dim and hidden must be at least 1 and image_size 8 to {largest}, got {dim}, {hidden}, {image_size}"
            )
        super().__init__(backbone, metric, Preprocess((image_size, image_size), IMAGENET_MEAN, IMAGENET_STD))
        saved = None if weights in (None, "DEFAULT") else _read_config(Path(str(weights)))
        self.backbone, trained_with = _backbone(backbone, None if saved else weights, self.preprocess.input_size)
        self.preprocess = trained_with or self.preprocess
        with torch.no_grad(), layers.evaluating(self.backbone):
            width = self.backbone(torch.zeros(1, 3, image_size, image_size)).shape[1]
        self.hidden = hidden
        self.head: nn.Module = (
            nn.Linear(width, dim)
            if hidden is None
            else nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        )
        if saved:
            self._load_saved(Path(str(weights)), saved, dim)
        self.layer = layer or (saved or {}).get("layer") or suggest(self.backbone, self.preprocess.input_size)

    @property
    def body(self) -> nn.Module:
        """The backbone, whose layers have torchvision's names."""
        return self.backbone

    def embed(self, images: Tensor) -> Tensor:
        """Embed images."""
        return self.head_embed(self.backbone(images))

    def finish(self, output: Tensor) -> Tensor:
        """Compute embeddings from the backbone's output."""
        return self.head_embed(output)

    def head_embed(self, vector: Tensor) -> Tensor:
        """Compute embeddings from the backbone's output.

        Args:
            vector: (B, F), of any number type.

        Returns:
            float32 (B, D), of length 1 if the metric is cosine.
        """
        embeddings: Tensor = self.head(layers.as_input(self.head, vector)).float()
        return functional.normalize(embeddings) if self.metric == "cosine" else embeddings

    def config(self) -> dict[str, Any]:
        """Return the configuration from which `load` builds this network.

        Returns:
            A dictionary that JSON can store.
        """
        last = self.head if isinstance(self.head, nn.Linear) else self.head[-1]  # type: ignore[index]
        return {
            "format": _FORMAT,
            "backbone": self.architecture,
            "dim": last.out_features,
            "hidden": self.hidden,
            "metric": self.metric,
            "layer": self.layer,
            "preprocess": self.preprocess.record(),
        }

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to one safetensors file.

        Args:
            path: The file; it is written completely or not at all.

        Raises:
            OutputError: If it cannot be written.
        """
        from safetensors.torch import save

        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_bytes(path, save(state, metadata={_KEY: json.dumps(self.config(), sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path) -> EmbeddingNet:
        """Read a network written by `save`.

        Args:
            path: A safetensors file.

        Returns:
            The network, in evaluation mode, on the CPU.

        Raises:
            NetworkError: If the file is missing, damaged, or not written by `save`.
        """
        path = Path(path)
        config = _read_config(path)
        if config is None:
            raise NetworkError(
                f"{path} is not a network of embedcam; if it is a plain state dict, "
                f"make a network with `embedcam train --weights {path}`"
            )
        try:
            _require_plausible(path, config)
            net = cls(
                config["backbone"],
                config["dim"],
                weights=path,
                hidden=config["hidden"],
                metric=config["metric"],
                image_size=config["preprocess"]["input_size"][0],
            )
        except NetworkError:
            raise
        except OSError as error:  # torch needs a folder for temporary files
            raise NetworkError(
                f"cannot load {path}: {error.strerror or error}; check that the file can be read and that TMPDIR is a "
                "folder that can be written"
            ) from error
        except Exception as error:  # an invalid configuration can raise anything
            raise NetworkError(
                f"the configuration in {path} is damaged: {error!r}; train or export the network again"
            ) from error
        return net.eval()

    def _load_saved(self, path: Path, saved: dict[str, Any], dim: int) -> None:
        own = {"backbone": self.architecture, "dim": dim, "hidden": self.hidden, "metric": self.metric}
        for key, value in own.items():
            if saved.get(key) != value:
                raise NetworkError(
                    f"{path} holds a network with {key} {saved.get(key)!r}, not {value!r}; use EmbeddingNet.load"
                )
        try:
            self.load_state_dict(read_state_dict(path))
            self.preprocess = Preprocess.recorded({**saved["preprocess"], "input_size": self.preprocess.input_size})
        except (RuntimeError, TypeError, ValueError) as error:
            raise NetworkError(
                f"{path} does not match its own configuration: {' '.join(str(error).split())}; "
                "train or export the network again"
            ) from error


def _backbone(name: str, weights: str | Path | None, size: tuple[int, int]) -> tuple[nn.Module, Preprocess | None]:
    """Make a backbone, and return the preprocessing that its weights were trained with, if that is known."""
    prefix, colon, argument = name.partition(":")
    if not colon:
        return backbones.create(name, weights), None
    family = NETWORKS[prefix]
    if family.backbone is None:
        raise NetworkError(
            f"{name} cannot be trained; use a backbone of timm, hf, open_clip or torchvision by its name"
        )
    backbone = family.backbone(argument, size)
    if weights is None:
        return backbone, None
    trained = family.load(argument, NetworkOptions(weights=str(weights), input_size=size))
    backbone.load_state_dict(trained.body.state_dict())
    return backbone, trained.preprocess


def _parameters(name: str, size: tuple[int, int]) -> int:
    """Count the parameters of a backbone without memory for them."""
    if ":" not in name:
        return backbones.parameters(name)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _backbone(name, None, size)[0].parameters())


def _require_plausible(path: Path, config: dict[str, Any]) -> None:
    # Before the network is made in memory, which a small file could make very large.
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) > _MAX_TENSORS:
            raise ValueError(f"it has {len(names)} tensors, at most {_MAX_TENSORS} are read")
        heads = ["head"] if config["hidden"] is None else ["head.0", "head.2"]
        rows = [file.get_slice(f"{head}.weight").get_shape()[0] for head in heads if f"{head}.weight" in names]
    configured = [config["dim"]] if config["hidden"] is None else [config["hidden"], config["dim"]]
    if rows != configured:
        raise ValueError(f"its head has {rows} rows, the configuration says {configured}")
    size, needed = path.stat().st_size, 4 * _parameters(config["backbone"], tuple(config["preprocess"]["input_size"]))
    if needed > allowance(size):
        raise ValueError(f"{config['backbone']} needs {needed:,} bytes, too many for a file of {size:,}")


def _read_config(path: Path) -> dict[str, Any] | None:
    """Read the configuration stored by `save`; None for a plain state dict."""
    if path.suffix != ".safetensors" and path.is_file():
        return None
    from safetensors import safe_open

    if not path.is_file():
        raise NetworkError(f"no network file {path}; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except Exception as error:  # safetensors raises a type of its own
        raise NetworkError(
            f"{path} is not a readable safetensors file: {' '.join(str(error).split())}; "
            "it may be damaged, copy or train it again"
        ) from error
    if text is None:
        return None
    try:
        config = json.loads(text[:_MAX_CONFIG])
    except (json.JSONDecodeError, RecursionError) as error:
        raise NetworkError(
            f"the configuration in {path} is damaged: {error}; train or export the network again"
        ) from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        version = config.get("format") if isinstance(config, dict) else config
        raise NetworkError(f"{path} has network format {version!r}, this embedcam reads {_FORMAT}; update embedcam")
    return config
