"""A classifier made convolutional: it judges every place of an image of any size, without backpropagation."""

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
"""Side of the averaging window in cells, odd; or the whole map."""

# Feature maps grow with the image; what pooling leaves does not. So many pixels more tell them apart.
_MORE = 64
# Largest difference to the classifier's own logits, relative to the largest of them.
_TOLERANCE = 1e-5


class ConvolutionalClassifier(nn.Module):
    """A classifier whose head is applied at every place of the feature maps, as a convolution is.

    The classifier is cut where its feature maps end, before the pooling. Where it pools to one cell, as a
    ResNet, its head (all layers after the pooling) sees the mean of the `window` around each cell. Where it
    pools to a grid of cells, as VGG and AlexNet, the head slides over the maps as a convolution of that size.

    No architecture is known by name: the cut is where sizes stop to follow the size of the image, and the
    result is compared with the classifier before it is handed out.

    Args:
        model: A classifier from images (B, 3, H, W) to logits (B, C), such as any convolutional one of
            torchvision. Its layers are shared, not copied.
        names: (C,) of the classes; "class 0", "class 1", ... if None.
        window: Side of the averaging window in cells, odd; "whole" averages the whole map and gives the
            classifier's own logits, at one place. Heads that slide a grid know no other window.
        input_size: (H, W) of the images that the classifier was made for; there the two are compared.

    Attributes:
        names: (C,) of the classes.
        window: As given; it may be changed.
        input_size: As given.
        grid: (h, w) cells that the head sees at once: (1, 1), or VGG's (7, 7).

    Raises:
        NetworkError: If the head cannot be applied place by place (ViT, MaxViT), the window is not odd, or
            there is not one name a class.

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
                f"the averaging window must be odd (1, 3, 5, ...) or 'whole', got {window!r}; 3 is usual"
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
                # Again on lively maps: a network of random weights may hardly react to any image.
                maps = _noise(model, *self.trunk(images).shape)
                _compare(self.head(maps), self._judge(maps, "whole"))
        except Exception as error:  # whatever the layers of an unknown network raise
            raise NetworkError(
                f"{kind} cannot be made convolutional: {_reason(error)}; it must take images of any size and "
                "end in average pooling and the layers of a classifier (explain others with GradCAM)"
            ) from error
        classes = logits.shape[1]
        self.names = [f"class {index}" for index in range(classes)] if names is None else list(names)
        if len(self.names) != classes:
            raise NetworkError(f"{kind} has {classes} classes, got {len(self.names)} names; give one a class")

    def forward(self, images: Tensor) -> Tensor:
        """Judge every place; the layers run in evaluation mode and are put back.

        Args:
            images: (B, 3, H, W), normalised, of any size that gives at least one cell.

        Returns:
            Logits (B, C, h, w); (B, C, 1, 1) for the window "whole".
        """
        with layers.evaluating(self):
            return self._logits(images, self.window)

    def geometry(self, size: tuple[int, int]) -> Geometry:
        """Tell where the places sit in an image.

        Args:
            size: (H, W) of the image.

        Returns:
            The geometry of what `forward` gives, in continuous pixels of the image.
        """
        if size not in self._geometries:
            cells = receptive_field.geometry(self, "trunk", size)
            (sy, sx), (cy, cx) = cells.cell_stride, cells.first_cell_center
            # A place of a sliding grid lies in the middle of its cells.
            center = (cy + sy * (self.grid[0] - 1) / 2, cx + sx * (self.grid[1] - 1) / 2)
            self._geometries[size] = Geometry(cells.cell_stride, center)
        return self._geometries[size]

    def _logits(self, images: Tensor, window: Window) -> Tensor:
        return self._judge(self.trunk(images), window)

    def _judge(self, maps: Tensor, window: Window) -> Tensor:
        height, width = self.grid
        if window == "whole":
            maps = functional.adaptive_avg_pool2d(maps, self.grid)
        elif self.grid == (1, 1):
            maps = functional.avg_pool2d(maps, window, 1, window // 2, count_include_pad=False)
        else:  # maps smaller than the grid are spread over it, as the classifier's own pooling does
            at_least = (max(maps.shape[2], height), max(maps.shape[3], width))
            maps = functional.adaptive_avg_pool2d(maps, at_least)
        # What the head sees at each place, as a batch: so its layers need no change, whatever they are.
        batch, channels = maps.shape[:2]
        rows, columns = maps.shape[2] - height + 1, maps.shape[3] - width + 1
        places = functional.unfold(maps, self.grid).transpose(1, 2)
        logits: Tensor = self.head(places.reshape(batch * rows * columns, channels, height, width))
        return logits.reshape(batch, rows, columns, logits.shape[1]).permute(0, 3, 1, 2)


def _noise(model: nn.Module, *shape: int) -> Tensor:
    return layers.as_input(model, torch.rand(shape, generator=torch.Generator().manual_seed(0)))


def _cut(model: nn.Module, size: tuple[int, int]) -> tuple[fx.GraphModule, fx.GraphModule, tuple[int, int]]:
    """Split a classifier behind its last feature maps: those whose size follows the size of the image."""
    small, large = (_noise(model, 1, 3, size[0] + more, size[1] + more) for more in (0, _MORE))
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
    """Run a traced network and note the shape of every tensor in it, in the order of its making."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op != "output":
                shapes[n] = tuple(value.shape)
            return value

    Recorder(traced).run(images)
    return shapes


def _compare(expected: Tensor, found: Tensor) -> None:
    if found.shape != (*expected.shape, 1, 1):
        raise ValueError(f"place by place it gives {tuple(found.shape)}, not {(*expected.shape, 1, 1)}")
    difference = float((found[..., 0, 0] - expected).abs().max())
    if not difference <= _TOLERANCE * float(expected.abs().max()):
        raise ValueError(f"its logits then differ by {difference:.2g}")


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".!")
