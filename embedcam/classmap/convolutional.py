"""Turn an image classifier into a fully convolutional one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from ..errors import NetworkError
from ..nets import layers, receptive_field
from ..nets.geometry import Geometry
from ..nets.graph import part

Window: TypeAlias = int | Literal["whole"]
"""Side of the averaging window in cells, odd; or "whole" for the whole map."""

# The size of pooled maps does not depend on the image's size; images larger by this many pixels show which ones do.
_EXTRA_PIXELS = 64
_TOLERANCE = 1e-5  # of the logits, relative to the largest


class ConvolutionalClassifier(nn.Module):
    """A classifier whose head is applied at every position of the feature maps, like a convolution.

    The classifier is split before its pooling. If it pools to one cell, as ResNet does, the head (all layers after the
    pooling) sees the mean of the `window` around each cell. If it pools to a grid, as VGG and AlexNet do, the head
    slides over the maps as a convolution of the size of the grid.

    The split is found by tracing, where tensor sizes no longer depend on the image size, for any architecture. The
    result is checked against the classifier.

    Args:
        model: A classifier from images (B, 3, H, W) to logits (B, C), such as the convolutional ones of torchvision.
            Its layers are shared, not copied.
        names: (C,) class names; "class 0", "class 1", ... if None.
        window: Side of the averaging window in cells, odd. "whole" averages the whole map and gives the logits of the
            classifier, at one position. An odd window has no effect on heads that slide a grid.
        input_size: (H, W) of the images that the classifier was trained for; used for the check.

    Attributes:
        names: (C,) class names.
        window: As given; may be changed.
        input_size: As given.
        grid: (h, w) cells that the head sees at once: (1, 1), or (7, 7) for VGG.

    Raises:
        NetworkError: If the head cannot be applied at every position (ViT, MaxViT), the window is invalid, or the
            number of names differs from the number of classes.

    Source:
        Long, Shelhamer, Darrell 2015, Fully Convolutional Networks (arXiv 1411.4038), section 3.1.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str] | None = None,
        *,
        window: Window = 3,
        input_size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__()
        if window != "whole" and (not isinstance(window, int) or window < 1 or window % 2 == 0):
            raise NetworkError(
                f"the averaging window must be odd (1, 3, 5, ...) or 'whole', got {window!r}; the default is 3"
            )
        model = layers.original(model)
        self.window, self.input_size = window, input_size
        self._geometries: dict[tuple[int, int], Geometry] = {}
        kind = type(model).__name__
        try:
            with layers.evaluating(model), torch.inference_mode():
                self.trunk, self.head, self.grid = _cut(model, input_size)
                images = _noise(model, 1, 3, *input_size)
                logits = model(images)
                _compare(logits, self._logits(images, "whole"))
                # Again on random maps: with random weights the logits may hardly depend on the image.
                maps = _noise(model, *self.trunk(images).shape)
                _compare(self.head(maps), self._classify(maps, "whole"))
        except Exception as error:  # layers of unknown networks may raise anything
            raise NetworkError(
                f"{kind} cannot be made convolutional: {_reason(error)}; it must take images of any size and "
                "end in average pooling and a classifier head (use GradCAM for other networks)"
            ) from error
        classes = logits.shape[1]
        self.names = [f"class {index}" for index in range(classes)] if names is None else list(names)
        if len(self.names) != classes:
            raise NetworkError(f"{kind} has {classes} classes, got {len(self.names)} names; pass one name per class")

    def forward(self, images: Tensor) -> Tensor:
        """Classify every position, in evaluation mode; the mode of the layers is restored.

        Args:
            images: (B, 3, H, W), normalised, of any size that gives at least one cell.

        Returns:
            Logits (B, C, h, w); (B, C, 1, 1) for the window "whole".
        """
        with layers.evaluating(self):
            return self._logits(images, self.window)

    def geometry(self, size: tuple[int, int]) -> Geometry:
        """Compute where the positions of the output lie in an image.

        Args:
            size: (H, W) of the image.

        Returns:
            Geometry of the output of `forward`, in continuous pixels of the image.
        """
        if size not in self._geometries:
            trunk = receptive_field.geometry(self, "trunk", size)
            (sy, sx), (cy, cx) = trunk.cell_stride, trunk.first_cell_center
            # The center of the first grid of cells.
            center = (cy + sy * (self.grid[0] - 1) / 2, cx + sx * (self.grid[1] - 1) / 2)
            self._geometries[size] = Geometry(trunk.cell_stride, center)
        return self._geometries[size]

    def _logits(self, images: Tensor, window: Window) -> Tensor:
        return self._classify(self.trunk(images), window)

    def _classify(self, maps: Tensor, window: Window) -> Tensor:
        height, width = self.grid
        if window == "whole":
            maps = functional.adaptive_avg_pool2d(maps, self.grid)
        elif self.grid == (1, 1):
            maps = functional.avg_pool2d(maps, window, 1, window // 2, count_include_pad=False)
        else:  # smaller maps are enlarged to the grid, as the classifier's own pooling does
            size = (max(maps.shape[2], height), max(maps.shape[3], width))
            maps = functional.adaptive_avg_pool2d(maps, size)
        # The head takes the positions as a batch, so its layers need no change.
        batch, channels = maps.shape[:2]
        rows, columns = maps.shape[2] - height + 1, maps.shape[3] - width + 1
        windows = functional.unfold(maps, self.grid).transpose(1, 2)
        logits: Tensor = self.head(windows.reshape(batch * rows * columns, channels, height, width))
        return logits.reshape(batch, rows, columns, logits.shape[1]).permute(0, 3, 1, 2)


def _noise(model: nn.Module, *shape: int) -> Tensor:
    return layers.as_input(model, torch.rand(shape, generator=torch.Generator().manual_seed(0)))


def _cut(model: nn.Module, size: tuple[int, int]) -> tuple[fx.GraphModule, fx.GraphModule, tuple[int, int]]:
    """Split a classifier after its last feature maps, whose size depends on the size of the image."""
    small, large = (_noise(model, 1, 3, size[0] + extra, size[1] + extra) for extra in (0, _EXTRA_PIXELS))
    try:
        model(large)
    except Exception as error:
        height, width = large.shape[2:]
        raise ValueError(f"it does not take images of {height} x {width} ({_reason(error)})") from error
    traced = fx.symbolic_trace(model)
    shapes, larger = _shapes(traced, small), _shapes(traced, large)
    output = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    if not isinstance(output, fx.Node) or len(shapes.get(output, ())) != 2:
        raise ValueError("its output is not one tensor of logits (B, C)")
    last = [node for node, shape in shapes.items() if len(shape) == 4 and shape != larger.get(node)][-1]
    pooled = [larger[user] for user in last.users if len(larger.get(user, ())) == 4]
    grid = (pooled[0][2], pooled[0][3]) if pooled else (1, 1)
    return part(traced, None, last), part(traced, last, output), grid


def _shapes(traced: fx.GraphModule, images: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes of all tensors of a traced network, in order of execution."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op != "output":
                shapes[n] = tuple(value.shape)
            return value

    Recorder(traced).run(images)
    return shapes


def _compare(expected: Tensor, actual: Tensor) -> None:
    if actual.shape != (*expected.shape, 1, 1):
        raise ValueError(f"its output has shape {tuple(actual.shape)} instead of {(*expected.shape, 1, 1)}")
    difference = float((actual[..., 0, 0] - expected).abs().max())
    if not difference <= _TOLERANCE * float(expected.abs().max()):
        raise ValueError(f"its logits then differ by {difference:.2g}")


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".!")
