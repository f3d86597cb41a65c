"""Explain images with a compiled graph of network and weight database, at the cost of compiling it first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EmbedcamError, NetworkError
from ..nets import layers
from ..onnx.record import OUTPUTS
from .explainer import Explainer
from .explanation import Explanation
from .graph import ExplainerGraph
from .notes import explanation_of


class CompiledExplainer(Explainer):
    """An `Explainer` as one graph that `torch.compile` compiled, lookup included.

    Nothing returns from a GPU before the end. Every size of images is compiled when it is first seen, which takes some
    10 to 60 seconds, and once more when a single image is followed by several; the batch may have any length. Takes
    what `Explainer` takes, but for transfers from exemplars.

    Raises:
        DatabaseError: As `Explainer`, or if the transfer is one from exemplars.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._programs: dict[tuple[int, int], Callable[[Tensor], tuple[Tensor, ...]]] = {}

    @torch.inference_mode()
    def __call__(self, images: Tensor | NDArray[np.float32]) -> Explanation:
        """Explain images.

        Args:
            images: (B, 3, H, W), normalised; moved to the network's device.

        Returns:
            As `Explainer` does.

        Raises:
            NetworkError: If the network cannot be compiled.
        """
        images = layers.as_images(self.net, torch.as_tensor(images)).contiguous(memory_format=torch.channels_last)
        size = (int(images.shape[2]), int(images.shape[3]))
        if size not in self._programs:
            self._programs[size] = self._compile(images)
        outputs = self._programs[size](images)
        found = {name: values.cpu().numpy() for name, values in zip(OUTPUTS, outputs, strict=True)}
        near = self.transfer.exemplars_near(np.nan_to_num(found["embedding"]))
        return explanation_of(found, self.net.preprocess, None if near is None else near[:, 0])

    def _compile(self, images: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
        size = (int(images.shape[2]), int(images.shape[3]))
        example = torch.zeros(2, 3, *size, device=images.device)
        try:
            with layers.evaluating(self.net, self._modules), torch.inference_mode(False), torch.no_grad():
                graph = ExplainerGraph(self, size, at_image_size=True).eval()
                batch = ({0: torch.export.Dim.DYNAMIC},)
                program = torch.compile(torch.export.export(graph, (example,), dynamic_shapes=batch).module())
            program(images)  # compiled only now, and so are its errors
        except EmbedcamError:
            raise
        except Exception as error:  # whatever the network's own code or the compiler cannot do
            raise NetworkError(
                f"{self.net.architecture} cannot be compiled: {' '.join(str(error).split())[:300]}; explain without "
                "--compile"
            ) from error
        return program
