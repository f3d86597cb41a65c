"""Check networks of every family without a layer named: the layer, its grid, and everything that is built on it."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import network_zoo
import numpy as np
import torch
from measure import about
from PIL import Image

import embedcam
import embedcam.data
from embedcam.errors import EmbedcamError
from embedcam.nets import layers
from embedcam.nets.network import Network
from embedcam.onnx.explainer import OnnxExplainer
from embedcam.onnx.export import export
from embedcam.utils.files import write_text

SECTION = ("<!-- networks: begin -->", "<!-- networks: end -->")
BUILD: dict[str, Any] = {"clusters": 2, "top_k": 5, "pairs": 5}
IMAGES = 12
# Networks with fewer parameters also build their refinement, which runs images at a larger size.
SMALL = 8_000_000
# Relative difference of two results that are called equal.
TOLERANCE = 1e-4


@dataclass
class Row:
    """What was found about one network; an empty text is a check that was not made.

    Attributes:
        network: Its name.
        family: Of its architecture.
        layer: The chosen layer.
        grid: Its rows x columns.
        cells: How the embedding is decomposed, or why not.
        command_line: Whether it agrees with Python.
        export: Whether the ONNX file agrees, or why it cannot be written.
        verdict: "right", "refused: reason" or "WRONG: what".
        notes: Warnings of embedcam.
        seconds: Of processor time that it took.
    """

    network: str
    family: str = ""
    layer: str = ""
    grid: str = ""
    cells: str = ""
    command_line: str = ""
    export: str = ""
    verdict: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0


class Wrong(Exception):
    """A result that is not right."""


def check(name: str, *, exported: bool = True, command_line: bool = True) -> Row:
    """Check one network.

    Args:
        name: One of `network_zoo.names`.
        exported: Also export it.
        command_line: Also build with the command line, if it has a SPEC.

    Returns:
        What was found.
    """
    row, start = Row(name), time.process_time()
    with tempfile.TemporaryDirectory() as folder, noted(row.notes), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case = network_zoo.make(name)
            row.family = case.family
            _check(case, row, Path(folder), exported=exported, command_line=command_line)
            row.verdict = "right"
        except Wrong as error:
            row.verdict = f"WRONG: {error}"
        except EmbedcamError as error:
            row.verdict = f"refused: {_line(error)}"
        except ModuleNotFoundError:
            raise
        except Exception as error:  # anything else is no answer to a user
            row.verdict = f"WRONG: {type(error).__name__}: {_line(error)}"
    row.seconds = round(time.process_time() - start, 1)
    return row


def _check(case: network_zoo.Case, row: Row, folder: Path, *, exported: bool, command_line: bool) -> None:
    preprocess = embedcam.Preprocess(case.input_size)
    net = embedcam.wrap(case.module, preprocess=preprocess, **case.wrap).eval()
    row.layer, row.grid = net.layer, " x ".join(map(str, net.map_size))
    check_grid(net, case.reduction)
    check_movement(net, case.module)
    check_gradient(net)
    check_cut(net)
    row.cells = check_cells(net)
    data = pictures(folder / "pictures", case.input_size)
    small = sum(parameter.numel() for parameter in net.parameters()) < SMALL
    options = {**BUILD, "refinement": small}
    db = embedcam.build_database(net, data, **options)
    explainer = embedcam.Explainer(net, db)
    chosen = [Image.open(file) for file in sorted((folder / "pictures").rglob("*.png"))[:3]]
    images = torch.stack([torch.from_numpy(explainer.preprocess(picture)) for picture in chosen])
    check_maps(explainer(images).heatmaps, images.shape[2:])
    if command_line and case.spec:
        row.command_line = check_command_line(case, net, data, folder, options)
    if exported:
        row.export = check_export(explainer, images, folder)


def check_grid(net: Network, reduction: int | None) -> None:
    """Compare the grid with the input: its aspect, and what the library says about its stride."""
    height, width = net.preprocess.input_size
    rows, columns = net.map_size
    if abs(np.log(rows / columns * width / height)) > np.log(1.35):
        raise Wrong(f"the grid {rows} x {columns} is not as wide as high for an input of {height} x {width}")
    if reduction is not None and rows * columns < (height // reduction - 2) * (width // reduction - 2):
        raise Wrong(f"the grid {rows} x {columns} is coarser than the library's, {reduction} pixels per cell")
    with layers.evaluating(net), torch.inference_mode():
        try:
            maps = net.activations(torch.randn(1, 3, height, 2 * width)).maps
        except Exception:  # networks of a fixed size raise anything
            return
    if maps.shape[2] != rows or abs(maps.shape[3] - 2 * columns) > 2:
        raise Wrong(f"an input of twice the width has a grid of {maps.shape[2]} x {maps.shape[3]}")


def check_gradient(net: Network) -> None:
    """The embedding must depend on nearly every cell of the layer."""
    image = torch.randn(1, 3, *net.preprocess.input_size, generator=torch.Generator().manual_seed(4))
    outputs: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> Any:
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        leaf = tensor.detach().requires_grad_()
        outputs[:] = [leaf]
        changed = leaf.clone()  # what follows may work in place
        return changed if isinstance(output, torch.Tensor) else type(output)((changed, *output[1:]))

    with layers.evaluating(net), torch.enable_grad():
        handle = net.feature_layer.register_forward_hook(keep)
        embedding = net(image)
        handle.remove()
        direction = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(5))
        (gradient,) = torch.autograd.grad((embedding * direction).sum(), outputs)
    strength = net.as_maps(gradient, image).abs().amax(dim=(0, 1))
    used = float((strength > 1e-6 * strength.max()).float().mean()) if strength.max() > 0 else 0.0
    if used < 0.9:
        raise Wrong(f"the embedding depends on {used:.0%} of the layer's cells")


def check_movement(net: Network, module: Any) -> None:
    """Move a bright square; the centre of what changes in the maps must move with it, in the same direction.

    Attention with random weights may mix all places: then timm's own features, whose layout is known, tell no more.
    """
    height, width = net.preprocess.input_size
    images = 0.3 * torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1)).repeat(5, 1, 1, 1)
    for image, (y, x) in zip(images[1:], ((y, x) for y in (0.25, 0.75) for x in (0.25, 0.75)), strict=True):
        top, left = int(height * (y - 0.125)), int(width * (x - 0.125))
        image[:, top : top + height // 4, left : left + width // 4] += 2
    with layers.evaluating(net), torch.inference_mode():
        maps = net.activations(images).maps
        if (problem := _movement(maps)) and hasattr(module, "forward_features"):
            features = module.forward_features(images)
            same_grid = isinstance(features, torch.Tensor) and features.shape[2:] == maps.shape[2:]
            problem = None if same_grid and _movement(features) else problem
    if problem:
        raise Wrong(problem)


def _movement(maps: torch.Tensor) -> str | None:
    """Say how maps do not follow the square; the first are those without it."""
    change = (maps[1:] - maps[:1]).square().sum(dim=1).numpy()
    if not (change.sum(axis=(1, 2)) > 0).all():
        return "the layer's maps do not change with the image"
    change /= change.sum(axis=(1, 2), keepdims=True)
    change = np.maximum(change - change.mean(axis=0), 0)  # what changes wherever the square is says nothing
    weight = change / change.sum(axis=(1, 2), keepdims=True)
    rows, columns = ((np.arange(size) + 0.5) / size for size in weight.shape[1:])
    centers = np.stack([weight.sum(axis=2) @ rows, weight.sum(axis=1) @ columns], axis=1).reshape(2, 2, 2)
    for axis, moved in ((0, centers[1] - centers[0]), (1, centers[:, 1] - centers[:, 0])):
        y, x = moved.mean(axis=0)
        if not (y, x)[axis] > max(0.1, 1.5 * abs((y, x)[1 - axis])):
            return f"the square moves by 0.5 along axis {axis}, the layer's maps by {y:.2f}, {x:.2f} (y, x)"
    return None


def check_cut(net: Network) -> None:
    """Give the network the layer's output of another image: the embedding must be that of the other image.

    The class token of a vision transformer passes the layer by in the last block; then its input is given instead.
    """
    a, b = torch.randn(2, 1, 3, *net.preprocess.input_size, generator=torch.Generator().manual_seed(2))
    around = net.layer.rpartition(".")[0]
    block = net.body.get_submodule(around) if around else None
    with layers.evaluating(net), torch.inference_mode():
        own, other = net(a), net(b)
        left = []
        for module in filter(None, (net.feature_layer, block)):
            kept: list[Any] = []
            hook = _input_hook if module is block else _output_hook
            for image, values, replay in ((a, kept, False), (b, kept, True)):
                handle = hook(module, values, replay)
                embedding = net(image)
                handle.remove()
            left.append(float((embedding - own).norm() / (other - own).norm()))
            if left[-1] < 0.01:
                return
    raise Wrong(f"the embedding depends on more than the layer and its block: {min(left):.2f} of a difference stays")


def _output_hook(module: torch.nn.Module, values: list[Any], replay: bool) -> Any:
    """Keep the outputs of a module, or replace them by those kept."""
    if replay:
        return module.register_forward_hook(lambda *_: values.pop(0))
    return module.register_forward_hook(lambda *call: values.append(_copy(call[2])))


def _input_hook(module: torch.nn.Module, values: list[Any], replay: bool) -> Any:
    """Keep the inputs of a module, or replace them by those kept."""
    if replay:
        return module.register_forward_pre_hook(lambda *_: values.pop(0))
    return module.register_forward_pre_hook(lambda _, inputs: values.append(_copy(inputs)))


def _copy(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.clone()
    if isinstance(output, dict):
        return type(output)(**{key: _copy(value) for key, value in output.items()})
    return type(output)(map(_copy, output)) if isinstance(output, tuple | list) else output


def check_cells(net: Network) -> str:
    """Add the cells' embeddings; return how exact they are, or why there are none."""
    images = torch.randn(2, 3, *net.preprocess.input_size, generator=torch.Generator().manual_seed(3))
    with layers.evaluating(net), torch.inference_mode():
        seen = net.activations(images)
        try:
            cells = net.cells(seen)
        except EmbedcamError as error:
            return f"no: {_line(error)}"
    if tuple(cells.embeddings.shape[2:]) != tuple(seen.maps.shape[2:]):
        raise Wrong(f"cell embeddings {tuple(cells.embeddings.shape)} of maps {tuple(seen.maps.shape)}")
    total = cells.embeddings.double().mean(dim=(2, 3)) + cells.rest
    difference = float((total - seen.embeddings).abs().max() / seen.embeddings.abs().max())
    if difference > 1e-3:
        raise Wrong(f"the cells add up to something else, {difference:.1e} away")
    share = float(cells.rest.norm() / seen.embeddings.norm())
    return f"{difference:.0e}, rest {share:.2f}"


def check_maps(heatmaps: Any, size: Sequence[int]) -> None:
    """Check that heat maps are finite, of the input's size, and not flat."""
    maps = np.asarray(heatmaps)
    if maps.shape[1:] != tuple(size) or not np.isfinite(maps).all():
        raise Wrong(f"heat maps {maps.shape} for inputs of {size}, or not finite")
    if (np.ptp(maps, axis=(1, 2)) == 0).all():
        raise Wrong("all heat maps are flat")


def check_command_line(case: network_zoo.Case, net: Network, data: str, folder: Path, options: dict[str, Any]) -> str:
    """Build with the command line, and compare layer and embeddings with those of Python."""
    from safetensors.torch import save_file

    from embedcam.cli import app
    from embedcam.cli.console import run

    spec, weights = case.spec, folder / "weights.safetensors"
    if case.folder is not None:
        case.folder(folder / "model")
        spec += str(folder / "model")
        given: list[str] = []
    else:
        state = case.module.state_dict() if case.state is None else case.state
        save_file({name: value.contiguous().clone() for name, value in state.items()}, weights)
        given = ["--weights", str(weights)]
    out = folder / "weights.h5"
    size = "x".join(map(str, case.input_size))
    command = ["build", "--net", spec, *given, "--input-size", size, "--data", data, "--out", str(out)]
    for name, value in options.items():
        flag = name.replace("_", "-")
        command += ([] if value else [f"--no-{flag}"]) if isinstance(value, bool) else [f"--{flag}", str(value)]
    errors, argv = io.StringIO(), sys.argv
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ["embedcam", *command]
        try:
            code = run(app, debug=False)
        finally:
            sys.argv = argv
    if code:
        last = errors.getvalue().strip().splitlines()[-1:]
        raise Wrong(f"the command line ends with {code}: {' '.join(last)[:300]}")
    read = embedcam.WeightDatabase.load(out)
    assert read.exemplars is not None
    if not f".{read.network.layer}".endswith(f".{net.layer}"):  # a family may put the module into another
        raise Wrong(f"the command line chooses the layer {read.network.layer}")
    samples = embedcam.data.load(data)
    pictures = [read.network.preprocess(samples.image(samples.ids.index(name))) for name in read.exemplars.path]
    with layers.evaluating(net), torch.inference_mode():
        difference = net(torch.from_numpy(np.stack(pictures))).numpy() - read.exemplars.embeddings
    if np.abs(difference).max() > TOLERANCE:
        raise Wrong(f"embeddings of the command line differ by {np.abs(difference).max():.1e}")
    return "yes"


def check_export(explainer: embedcam.Explainer, images: torch.Tensor, folder: Path) -> str:
    """Export, and compare heat maps and embeddings; return the largest relative difference, or the refusal."""
    try:
        export(explainer, folder / "explainer.onnx")
    except EmbedcamError as error:
        return f"refused: {_line(error)}"
    ours, theirs = explainer(images), OnnxExplainer(folder / "explainer.onnx")(images.numpy())
    nudged = explainer(torch.from_numpy(np.nextafter(images.numpy(), np.float32(np.inf))))
    worst = max(_apart(ours.raw, theirs.raw), _apart(ours.embeddings, theirs.embeddings))
    # A nearly flat map of a network without training changes more with the last bit of the image.
    if worst > max(TOLERANCE, 10 * _apart(ours.raw, nudged.raw)):
        raise Wrong(f"the ONNX file differs by {worst:.1e}")
    return f"{worst:.0e}"


def _apart(a: Any, b: Any) -> float:
    """Return the largest difference of two results, relative to the largest value."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(np.abs(a - b).max() / np.abs(a).max())


def pictures(folder: Path, size: tuple[int, int]) -> str:
    """Write a dozen pictures of two classes: a square or a disc on noise; return their SPEC."""
    rng = np.random.default_rng(0)
    height, width = size
    y, x = np.mgrid[:height, :width]
    for number in range(IMAGES):
        pixels = rng.integers(60, 130, (height, width, 3))
        radius = min(size) // 5
        cy, cx = (int(rng.integers(radius, side - radius)) for side in size)
        shape = (abs(y - cy), abs(x - cx))
        inside = np.maximum(*shape) < radius if number % 2 else np.hypot(*shape) < radius
        pixels[inside] = (230, 200, 40) if number % 2 else (30, 60, 220)
        path = folder / "images" / f"class{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return f"folder:{folder}@all"


@contextlib.contextmanager
def noted(notes: list[str]) -> Iterator[None]:
    """Collect embedcam's warnings."""
    logger, handler = logging.getLogger("embedcam"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def table(rows: list[Row]) -> str:
    """Format the results for `README.md`."""
    right = sum(row.verdict.startswith("right") for row in rows)
    refused = [row for row in rows if row.verdict.startswith("refused")]
    wrong = [row for row in rows if row.verdict.startswith("WRONG")]
    lines = [
        f"{len(rows)} networks of {len({row.family for row in rows})} families: {right} right, {len(refused)} refused "
        f"with a reason, {len(wrong)} wrong.",
        "",
        "| network | family | layer | grid | cells | command line | export | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        texts = (row.network, row.family, row.layer, row.grid, row.cells, row.command_line, row.export, row.verdict)
        lines.append("| " + " | ".join(text.replace("|", "/") for text in texts) + " |")
    return "\n".join(lines)


def main() -> None:
    """Check the networks that are asked for and not done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="check networks whose name contains this")
    parser.add_argument("--chunk", default="0/1", help="I/N: the I-th of N parts of the list, from 0")
    parser.add_argument("--no-export", action="store_true", help="leave the export out")
    parser.add_argument("--no-command-line", action="store_true", help="leave the command line out")
    parser.add_argument("--done", type=Path, help="JSON lines with finished networks, which are not checked again")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    parser.add_argument("--readme", type=Path, help="write the table between the marks in this file")
    args = parser.parse_args()
    number, parts = map(int, args.chunk.split("/"))
    asked = [name for name in network_zoo.names() if args.only in name]
    rows = {}
    if args.done and args.done.exists():
        rows = {row["network"]: Row(**row) for row in map(json.loads, args.done.read_text().splitlines())}
    for name in asked[number::parts]:
        if name in rows:
            continue
        row = rows[name] = check(name, exported=not args.no_export, command_line=not args.no_command_line)
        print(*(value for value in asdict(row).values() if value), sep="; ", flush=True)
        if args.done:
            with args.done.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        gc.collect()
    finished = [rows[name] for name in asked if name in rows]
    if args.json:
        made_with = about("torch", "timm", "transformers", "open_clip_torch")
        write_text(args.json, json.dumps({**made_with, "rows": list(map(asdict, finished))}, indent=2) + "\n")
    if args.readme:
        before, _, rest = args.readme.read_text().partition(SECTION[0])
        _, _, after = rest.partition(SECTION[1])
        write_text(args.readme, f"{before}{SECTION[0]}\n{table(finished)}\n{SECTION[1]}{after}")
    sys.exit(any(row.verdict.startswith("WRONG") for row in finished))


if __name__ == "__main__":
    main()
