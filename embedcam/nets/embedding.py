"""The embedding network: a backbone, a head, one file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, usable
from ..errors import NetworkError
from ..utils.files import write_bytes
from ..utils.limits import LARGEST_INPUT, allowance
from . import backbones, layers
from .network import Network

# One metadata key only: safetensors writes several in no fixed order, and files must not differ between runs.
_KEY = "embedcam"
_FORMAT = 1
# Characters of the configuration, and tensors, of a file: far more than any network of torchvision needs.
_LONGEST, _MOST = 2**16, 2**14


class EmbeddingNet(Network):
    """A backbone of torchvision, average pooling, and a linear head.

    Args:
        backbone: "tiny" or the name of a torchvision classifier.
        dim: Number D of dimensions of the embedding.
        weights: None; "DEFAULT" (torchvision's, downloaded); a file with a state dict of the torchvision network; or
            a file that `save` wrote, whose backbone and dim must be the ones given here.
        hidden: Width of a hidden layer (with ReLU) before the last linear layer; None for a linear head.
        metric: "cosine" makes embeddings of length 1; "euclidean" leaves them as they are.
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
        self.backbone = backbones.create(backbone, None if saved else weights)
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
        self.layer = layer or (saved or {}).get("layer") or layers.suggest(self.backbone, self.preprocess.input_size)

    @property
    def body(self) -> nn.Module:
        """The backbone: layers bear torchvision's names."""
        return self.backbone

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed images.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            Embeddings, float32 (B, D), and the pooled vector (B, F) that enters the head.
        """
        vector = self.backbone(images)
        return self.head_embed(vector), vector

    def head_embed(self, vector: Tensor) -> Tensor:
        """Compute embeddings from the backbone's output.

        Args:
            vector: (B, F), of any number type.

        Returns:
            float32 (B, D), of length 1 if the metric is cosine.
        """
        embeddings: Tensor = self.head(layers.as_input(self.head, vector)).float()
        return functional.normalize(embeddings) if self.metric == "cosine" else embeddings

    def head_along(self, vectors: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Linearise the head at given vectors, along directions of the embedding space.

        Before normalising, direction . head(u) = weights . u + constant: everywhere for a linear head, and for a head
        with a hidden layer wherever the same units are active. No gradient is computed.

        Args:
            vectors: Inputs of the head, float32 (B, F) or (1, F).
            directions: float32 (B, D).

        Returns:
            Weights, float32 (B, F), and constants, float32 (B,).

        Raises:
            NetworkError: If the head was replaced by one of another kind.
        """
        match list(self.head) if isinstance(self.head, nn.Sequential) else [self.head]:
            case [nn.Linear() as last]:
                weights, constants = _along(last, directions)
            case [nn.Linear() as first, nn.ReLU(), nn.Linear() as last]:
                active = first(layers.as_input(first, vectors)) > 0
                hidden, constants = _along(last, directions)
                weights, inner = _along(first, hidden * active)
                constants = constants + inner
            case parts:
                kinds = ", ".join(type(part).__name__ for part in parts)
                raise NetworkError(
                    f"the head of {self.architecture} is {kinds}; only a linear one, or two linear layers with a ReLU "
                    "between them, can be read as a linear map"
                )
        return weights, constants

    def config(self) -> dict[str, Any]:
        """Describe how to build this network again.

        Returns:
            A dictionary fit for JSON.
        """
        last = self.head if isinstance(self.head, nn.Linear) else self.head[-1]  # type: ignore[index]
        return {
            "format": _FORMAT,
            "backbone": self.architecture,
            "dim": last.out_features,
            "hidden": self.hidden,
            "metric": self.metric,
            "layer": self.layer,
            "preprocess": asdict(self.preprocess),
        }

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as one safetensors file.

        Args:
            path: Where to; written whole or not at all.

        Raises:
            OutputError: If it cannot be written.
        """
        from safetensors.torch import save

        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_bytes(path, save(state, metadata={_KEY: json.dumps(self.config(), sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path) -> EmbeddingNet:
        """Read a network that `save` wrote.

        Args:
            path: A safetensors file.

        Returns:
            The network, in evaluation mode, on the CPU.

        Raises:
            NetworkError: If the file is missing, damaged, or not of embedcam.
        """
        path = Path(path)
        config = _read_config(path)
        if config is None:
            raise NetworkError(
                f"{path} is a plain state dict, not a network of embedcam; "
                f"make one with `embedcam train --weights {path}`"
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
        except Exception as error:  # whatever a made-up configuration leads to
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
            self.load_state_dict(backbones.read_state_dict(path))
            self.preprocess = usable(Preprocess(**{**saved["preprocess"], "input_size": self.preprocess.input_size}))
        except (RuntimeError, TypeError, ValueError) as error:
            raise NetworkError(
                f"{path} does not match its own configuration: {' '.join(str(error).split())}; "
                "train or export the network again"
            ) from error


def _along(layer: nn.Linear, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (B, F) and constants (B,) with direction . layer(u) = weights . u + constant."""
    bias = torch.zeros_like(directions) if layer.bias is None else layer.bias.float()
    return directions @ layer.weight.float(), (directions * bias).sum(dim=1)


def _require_plausible(path: Path, config: dict[str, Any]) -> None:
    """Refuse a network that its file cannot fill, before it is made in memory.

    Raises:
        ValueError: Saying what does not fit.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) > _MOST:
            raise ValueError(f"it has {len(names)} tensors, at most {_MOST} are read")
        heads = ["head"] if config["hidden"] is None else ["head.0", "head.2"]
        rows = [file.get_slice(f"{head}.weight").get_shape()[0] for head in heads if f"{head}.weight" in names]
    wanted = [config["dim"]] if config["hidden"] is None else [config["hidden"], config["dim"]]
    if rows != wanted:
        raise ValueError(f"its head has {rows} rows, the configuration says {wanted}")
    size, needed = path.stat().st_size, 4 * backbones.parameters(config["backbone"])
    if needed > allowance(size):
        raise ValueError(f"{config['backbone']} needs {needed:,} bytes, too many for a file of {size:,}")


def _read_config(path: Path) -> dict[str, Any] | None:
    """Read the configuration that `save` stored; None for a plain state dict."""
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
        config = json.loads(text[:_LONGEST])
    except (json.JSONDecodeError, RecursionError) as error:
        raise NetworkError(
            f"the configuration in {path} is damaged: {error}; train or export the network again"
        ) from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        found = config.get("format") if isinstance(config, dict) else config
        raise NetworkError(f"{path} has network format {found!r}, this embedcam reads {_FORMAT}; update embedcam")
    return config
