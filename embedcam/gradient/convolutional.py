"""A classifier made convolutional: it judges every place of an image of any size, without backpropagation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from .. import layers, receptive_field
from ..errors import NetworkError
from ..heatmap import Geometry

# How much larger the second image is that tells feature maps, which grow with the image, from what pooling leaves.
_MORE = 64
# Largest difference to the classifier's own logits, relative to the largest of them.
_TOLERANCE = 1e-5


class ConvolutionalClassifier(nn.Module):
    """A classifier whose head is applied at every place of the feature maps, as a convolution is.

    The classifier is cut where its feature maps end, before the pooling. Where it pools to one cell, as a ResNet, its
    head (all layers after the pooling) sees the mean of the `window` around each cell. Where it pools to a grid of
    cells, as VGG and AlexNet, the head slides over the maps as a convolution of that size.

    No architecture is known by name: the cut is where sizes stop to follow the size of the image, and the result is
    compared with the classifier before it is handed out.

    Args:
        model: A classifier from images (B, 3, H, W) to logits (B, C), such as any convolutional one of torchvision.
            Its layers are shared, not copied.
        window: Side of the averaging window in cells, odd; "whole" averages the whole map and gives the classifier's
            own logits, at one place. Heads that slide a grid use it for "whole" only.
        input_size: (H, W) of the images that the classifier was made for; at this size the two are compared.

    Attributes:
        grid: (h, w) cells that the head sees at once: (1, 1), or VGG's (7, 7).

    Raises:
        NetworkError: If the head cannot be applied place by place (ViT, MaxViT), or the window is not odd.

    Source:
        Long, Shelhamer, Darrell 2015, Fully Convolutional Networks (arXiv 1411.4038), section 3.1.
    """

    def __init__(
        self, model: nn.Module, *, window: int | Literal["whole"] = 3, input_size: tuple[int, int] = (224, 224)
    ) -> None:
        super().__init__()
        if window != "whole" and (not isinstance(window, int) or window < 1 or window % 2 == 0):
            raise NetworkError(f"the averaging window must be odd (1, 3, 5, ...) or 'whole', got {window!r}; 3 is usual")
        self.window: int | Literal["whole"] = window
        self._geometries: dict[tuple[int, int], Geometry] = {}
        try:
            with layers.evaluating(model), torch.inference_mode():
                self.trunk, self.head, self.grid = _cut(model, input_size)
                images = _noise(model, input_size)
                _compare(model(images), self._logits(images, "whole"))
                # Once more on lively maps: a network fresh from its first random weights hardly reacts to any image.
                maps = torch.rand_like(self.trunk(images))
                _compare(self.head(maps), self._judge(maps, "whole"))
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, fx.proxy.TraceError) as error:
            raise NetworkError(
                f"{type(model).__name__} cannot be made convolutional: {_reason(error)}; it must take images of any size and "
                "end in average pooling and the layers of a classifier (explain others with GradCAM)"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Judge every place.

        Args:
            images: (B, 3, H, W), normalised, of any size that gives at least one cell.

        Returns:
            Logits (B, C, h, w); (B, C, 1, 1) for the window "whole". The layers run in evaluation mode and are put back.
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

    def _logits(self, images: Tensor, window: int | Literal["whole"]) -> Tensor:
        return self._judge(self.trunk(images), window)

    def _judge(self, maps: Tensor, window: int | Literal["whole"]) -> Tensor:
        height, width = self.grid
        if window == "whole":
            maps = functional.adaptive_avg_pool2d(maps, self.grid)
        elif self.grid == (1, 1):
            maps = functional.avg_pool2d(maps, window, stride=1, padding=window // 2, count_include_pad=False)
        else:  # maps smaller than the grid are spread over it, as the classifier's own pooling does
            maps = functional.adaptive_avg_pool2d(maps, (max(maps.shape[2], height), max(maps.shape[3], width)))
        # What the head sees at each place, laid out as a batch: so its layers need no change, whatever they are.
        batch, channels = maps.shape[:2]
        rows, columns = maps.shape[2] - height + 1, maps.shape[3] - width + 1
        places = functional.unfold(maps, self.grid).transpose(1, 2)
        logits = self.head(places.reshape(batch * rows * columns, channels, height, width))
        return logits.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2)


def _noise(model: nn.Module, size: tuple[int, int]) -> Tensor:
    parameter = next(model.parameters(), torch.empty(0))
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(parameter)


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".!")


def _cut(model: nn.Module, size: tuple[int, int]) -> tuple[fx.GraphModule, fx.GraphModule, tuple[int, int]]:
    """Split a classifier behind its last feature maps: those whose size follows the size of the image."""
    larger = (size[0] + _MORE, size[1] + _MORE)
    try:
        model(_noise(model, larger))
    except Exception as error:
        raise ValueError(f"it does not take images of {larger[0]} x {larger[1]} ({_reason(error)})") from error
    traced = fx.symbolic_trace(model)
    small, large = (_shapes(traced, _noise(model, each)) for each in (size, larger))
    output = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    if not isinstance(output, fx.Node) or len(small.get(output, ())) != 2:
        raise ValueError("its output is not one tensor of logits (B, C)")
    growing = [node for node in small if len(small[node]) == 4 and small[node] != large.get(node)]
    if not growing:
        raise ValueError("it has no feature maps (B, K, h, w) whose size follows the size of the image")
    last = growing[-1]
    pooled = [large[user] for user in last.users if len(large.get(user, ())) == 4]
    grid = (pooled[0][2], pooled[0][3]) if pooled else (1, 1)
    return _part(traced, None, last), _part(traced, last, output), grid


def _shapes(traced: fx.GraphModule, images: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Run a traced network and note the shape of every tensor in it."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op != "output":
                shapes[n] = tuple(value.shape)
            return value

    Recorder(traced).run(images)
    return shapes


def _part(traced: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """Take from a traced network what works out `end`, from the image or from the value of `start`."""
    needed: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is not start and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    if start is not None:
        copied[start] = graph.placeholder("maps")
    for node in traced.graph.nodes:
        if node in needed:
            if start is not None and node.op == "placeholder":
                raise ValueError("its head needs more than the last feature maps")
            copied[node] = graph.node_copy(node, lambda source: copied[source])
    graph.output(copied[end])
    return fx.GraphModule(traced, graph)


def _compare(expected: Tensor, found: Tensor) -> None:
    if found.shape != (*expected.shape, 1, 1):
        raise ValueError(f"applied place by place it gives {tuple(found.shape)}, not {(*expected.shape, 1, 1)}")
    difference = float((found[..., 0, 0] - expected).abs().max())
    if not difference <= _TOLERANCE * float(expected.abs().max()):
        raise ValueError(f"its logits then differ by {difference:.2g}")
