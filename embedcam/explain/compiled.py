"""Explain images with the method compiled into one program, at the cost of compiling it first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import EmbedcamError, NetworkError
from ..nets import layers
from .attached import Attached
from .explainer import Explainer
from .explanation import Outputs


class CompiledExplainer(Explainer):
    """An `Explainer` whose module, lookup included, is compiled by `torch.compile`.

    Nothing returns from a GPU before the end. Each size of images is compiled when it first occurs, which takes some
    10 to 60 seconds, and once more when a single image is followed by several; the batch may have any length.

    Args:
        args: As of `Explainer`.
        options: As of `Explainer`, but for transfers from exemplars.

    Raises:
        DatabaseError: As `Explainer`, or if the transfer needs exemplars.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._programs: dict[tuple[int, int], Callable[[Tensor], Outputs]] = {}

    def asking(self, *, towards: Any = None, versus: Any = None) -> Explainer:
        """Refuse: nothing but the default is compiled.

        Args:
            towards: Of `Explainer.asking`.
            versus: Likewise.

        Raises:
            NetworkError: Always.
        """
        raise NetworkError("a compiled explainer cannot be asked towards or versus anything; use Explainer")

    def attached(self, model: nn.Module) -> Attached:
        """Refuse: hooks cannot read a compiled pass.

        Args:
            model: Of `Explainer.attached`.

        Raises:
            NetworkError: Always.
        """
        raise NetworkError("a compiled explainer cannot be attached to another forward pass; use Explainer")

    def _explain(self, images: Tensor) -> tuple[Outputs, NDArray[np.int64] | None]:
        size = (int(images.shape[2]), int(images.shape[3]))
        if size not in self._programs:
            self._programs[size] = self._compile(images, size)
        return Outputs(*self._programs[size](images)), None

    def _compile(self, images: Tensor, size: tuple[int, int]) -> Callable[[Tensor], Outputs]:
        example = torch.zeros(2, 3, *size, device=images.device, dtype=images.dtype)
        try:
            with layers.evaluating(self.net, self._modules), torch.inference_mode(False), torch.no_grad():
                module = self.module.fixed(size).eval()
                batch = ({0: torch.export.Dim.DYNAMIC},)
                program = torch.compile(torch.export.export(module, (example,), dynamic_shapes=batch).module())
            program(images)  # compiled only now, and so are its errors
        except EmbedcamError:
            raise
        except Exception as error:  # whatever the network's own code or the compiler cannot do
            raise NetworkError(
                f"{self.net.architecture} cannot be compiled: {' '.join(str(error).split())[:300]}; explain without "
                "--compile"
            ) from error
        return program
