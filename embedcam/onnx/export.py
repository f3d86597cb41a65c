"""Write an explainer as one ONNX file, which is compared with the explainer."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._version import __version__
from ..data.preprocess import Preprocess
from ..errors import DatabaseError, EmbedcamError, MissingDependencyError, NetworkError
from ..explain.explainer import Explainer
from ..explain.explanation import Explanation
from ..nets import layers
from ..utils.files import atomic_path, require_writable
from .explainer import LARGEST, OnnxExplainer, with_checksum
from .quantise import lowest_ir_version
from .record import HEATMAPS, INPUT, KEY, OUTPUTS, OnnxRecord

if TYPE_CHECKING:
    import onnx

# The first operator set with antialiased resizing.
OPSET = 18
# Prefix of inputs and outputs during the export, since the exporter may give other values the same names.
_OWN = "embedcam."
# Largest allowed difference between a heat map of the file and the explainer's, at any pixel. Where the explainer's own
# map changes more with the last bit of the image (a nearly flat map of few cells, whose small deviations `spread`
# follows), differences up to so many times its change are rounding.
_TOLERANCE, _ROUNDINGS = 1e-4, 10
# Distances of two clusters that differ by less, or by less than this share, differ by rounding.
_TIE = 1e-5


@dataclass(frozen=True)
class ExportReport:
    """A written file, and its agreement with the explainer.

    Attributes:
        path: The file.
        size: Of the file in bytes.
        images: Number of compared images.
        map_difference: Largest difference of two heat maps at any pixel.
        embedding_difference: Largest difference of two embeddings in any dimension.
    """

    path: Path
    size: int
    images: int
    map_difference: float
    embedding_difference: float


def export(
    explainer: Explainer,
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    heatmap: str = "image",
    uint8_input: bool = False,
    dynamic: bool = False,
    images: NDArray[np.float32] | None = None,
) -> ExportReport:
    """Write an explainer as one ONNX file that `OnnxExplainer` and any other ONNX runtime can run.

    The file takes a batch of any length; `record.OUTPUTS` lists its outputs. Equal explainers give equal bytes. Nothing
    is written if the file's results differ from the explainer's.

    Args:
        explainer: The explainer, with a transfer from clusters.
        path: The file.
        size: (H, W) of the images; that of the explainer's preprocess if None.
        heatmap: "image" for maps at image size, "map" for one value per cell of the feature map.
        uint8_input: The graph takes pictures, uint8 (B, H', W', 3) of any size, and resizes and normalises them. It
            resizes as Pillow does, except for the last row and column, which may differ by a few levels.
        dynamic: The graph takes images of any height and width; the file's preprocess makes `size`. Such a graph
            computes its matrices for every batch, and not every network can be exported.
        images: float32 (B, 3, H, W), normalised, to compare on besides synthetic images.

    Returns:
        A description of the file.

    Raises:
        DatabaseError: If the explainer uses exemplars.
        NetworkError: If the network cannot be written as a graph, is too large for a file, runs in low precision, or
            the graph's maps or clusters differ.
        MissingDependencyError: If onnx, onnxscript or onnxruntime is not installed.
        OutputError: If the file cannot be written.
    """
    if heatmap not in HEATMAPS:
        raise DatabaseError(f"unknown size of the maps {heatmap!r}; use one of {', '.join(HEATMAPS)}")
    if explainer.module.autocast is not None:
        raise NetworkError(
            "an ONNX file computes in float32; export an explainer without autocast (--precision float32)"
        )
    if uint8_input and (explainer.preprocess.crop_pct is not None or explainer.preprocess.transform):
        raise DatabaseError(
            "a graph that takes uint8 pictures resizes them whole, and this network's preprocessing does more; leave "
            "out uint8_input (--uint8-input), the file's own preprocess prepares pictures"
        )
    if uint8_input and dynamic:
        raise DatabaseError("pictures of any size are resized to one size in the graph; leave out the dynamic size")
    require_writable(path)
    if explainer.net.device.type != "cpu":  # a GPU may multiply in TF32, whose maps differ by more than the tolerance
        explainer = explainer.to("cpu")
    options: dict[str, Any] = {"heatmap": heatmap, "uint8_input": uint8_input, "dynamic": dynamic}
    record = replace(_record(explainer, size or explainer.preprocess.input_size), **options)
    model = _model(explainer, record)
    with atomic_path(path) as temporary:
        temporary.write_bytes(with_checksum(model))
        agreement = _compare(explainer, temporary, images)
    return ExportReport(Path(path), Path(path).stat().st_size, *agreement)


def _record(explainer: Explainer, size: tuple[int, int]) -> OnnxRecord:
    db = explainer.database
    described = ("sha256", "architecture", "layer", "channels", "dim", "metric")
    network = {key: getattr(db.network, key) for key in described}
    network["input_size"] = list(db.network.preprocess.input_size)
    database = {key: getattr(db, key) for key in ("created", "embedcam_version", "method", "target", "pairs", "seed")}
    fusion = explainer.module.fusion
    geometry = explainer.module.geometry if fusion is None else fusion.geometry
    labels = () if db.label_names is None else map(explainer.labels_of, range(db.clusters))
    return OnnxRecord(
        embedcam_version=__version__,
        preprocess=explainer.preprocess.resized_to(size),
        geometry=None if explainer.module.placement == "stretch" else geometry,
        transfer=explainer.transfer,
        fused=None if fusion is None else fusion.layer,
        network=network,
        database={**database, "clusters": db.clusters, "images": int(db.counts.sum())},
        labels=tuple(map(tuple, labels)),
    )


def _model(explainer: Explainer, record: OnnxRecord) -> bytes:
    """Export the graph with its record."""
    size = sum(p.numel() * p.element_size() for p in (*explainer.net.parameters(), *explainer.net.buffers()))
    if size > LARGEST:
        raise NetworkError(
            f"{explainer.net.architecture} has {size / 1e9:.1f} GB of parameters; an ONNX file holds 2 GB, so use a "
            "smaller backbone"
        )
    model = _traced(explainer, record)
    _name(model)
    if record.uint8_input:
        _take_pictures(model, record)
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        # Source locations, which differ between machines.
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for initializer in model.graph.initializer:
        initializer.ClearField("doc_string")
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    model.graph.name = model.producer_name = "embedcam"
    model.producer_version, model.ir_version = __version__, lowest_ir_version(model)
    model.metadata_props.add(key=KEY, value=record.to_json())
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _traced(explainer: Explainer, record: OnnxRecord) -> onnx.ModelProto:
    height, width = record.preprocess.input_size
    size = None if record.dynamic else (height, width)
    # The sides differ, so that the exporter does not treat them as equal.
    example = torch.zeros(2, 3, height, width + 32 * record.dynamic, device=explainer.net.device)
    free = (0, 2, 3) if record.dynamic else (0,)
    try:
        with layers.evaluating(explainer.net), _quiet():
            module = explainer.module.fixed(size, at_image_size=record.heatmap == "image").eval()
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[_OWN + INPUT],
                output_names=[_OWN + name for name in OUTPUTS],
                dynamic_shapes=(dict.fromkeys(free, torch.export.Dim.DYNAMIC),),
                verbose=False,
            )
    except EmbedcamError:
        raise
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'writing an ONNX file needs {error.name}; install it with `pip install "embedcam[export]"`'
        ) from error
    except Exception as error:  # whatever the network's own code or the exporter cannot do
        reason = next((line for line in reversed(str(error.__cause__ or error).splitlines()) if line.strip()), "")
        raise NetworkError(
            f"{explainer.net.architecture} cannot be written as an ONNX graph: {reason.strip()}; use another backbone, "
            "or change the module so that torch.export can follow it"
        ) from error
    assert program is not None
    return program.model_proto


def _name(model: onnx.ModelProto) -> None:
    """Name inputs, outputs and open sides; rename other values of the same names."""
    graph = model.graph

    def final(name: str) -> str:
        return name.removeprefix(_OWN) if name.startswith(_OWN) else f"{name}_" if name in (INPUT, *OUTPUTS) else name

    for node in graph.node:
        node.input[:], node.output[:] = map(final, node.input), map(final, node.output)
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.name = final(item.name)
    sides = zip(graph.input[0].type.tensor_type.shape.dim, ("batch", "", "height", "width"), strict=True)
    names = {side.dim_param: name for side, name in sides if side.dim_param}
    for item in (*graph.input, *graph.output):
        for side in item.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = names.get(side.dim_param, side.dim_param)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages, which are meant for developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _take_pictures(model: onnx.ModelProto, record: OnnxRecord) -> None:
    """Insert resizing and normalising before the graph."""
    from onnx import TensorProto, helper, numpy_helper

    preprocess = record.preprocess
    mode = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}[preprocess.interpolation]
    options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.5}
    options |= {"nearest_mode": "round_prefer_ceil"} if mode == "nearest" else {"antialias": 1}
    scale, shift = preprocess.scale_and_shift
    constants: dict[str, NDArray[Any]] = {
        "pictures_size": np.array(preprocess.input_size, dtype=np.int64),
        "pictures_scale": scale,
        "pictures_shift": shift,
    }
    nodes = [
        helper.make_node("Resize", ["pictures", "", "", "pictures_size"], ["resized"], axes=[1, 2], **options),
        helper.make_node("Cast", ["resized"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "pictures_scale"], ["scaled_numbers"]),
        helper.make_node("Sub", ["scaled_numbers", "pictures_shift"], ["normalised"]),
        helper.make_node("Transpose", ["normalised"], ["prepared"], perm=[0, 3, 1, 2]),
    ]
    for node in model.graph.node:
        node.input[:] = ["prepared" if name == INPUT else name for name in node.input]
    nodes[0].input[0] = INPUT
    rest = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*nodes, *rest])
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    shape: list[str | int | None] = ["batch", "height", "width", 3]
    model.graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))


def _compare(explainer: Explainer, path: Path, images: NDArray[np.float32] | None) -> tuple[int, float, float]:
    """Return the number of compared images and the largest differences of maps and embeddings."""
    written = OnnxExplainer(path)
    height, width = written.preprocess.input_size
    others = [(height + 32, width), (height, width + 64)] if written.record.dynamic else []
    batches = [_synthetic_images(replace(written.preprocess, input_size=size)) for size in ((height, width), *others)]
    batches += [] if images is None else [images]
    maps = embeddings = 0.0
    for batch in batches:
        ours, nudged, theirs = explainer(batch), explainer(np.nextafter(batch, np.float32(np.inf))), written(batch)
        allowed = max(_TOLERANCE, _ROUNDINGS * _difference(ours.heatmaps, nudged.heatmaps))
        difference = _difference(ours.heatmaps, theirs.heatmaps)
        maps = max(maps, difference)
        embeddings = max(embeddings, _difference(ours.embeddings, theirs.embeddings))
        different = _elsewhere(ours, theirs)
        if not difference <= allowed or different:
            raise NetworkError(
                f"the results of the exported graph differ from the explainer's: heat maps by {difference:.1e} (at "
                f"most {allowed:.0e} is allowed), {different} of {len(batch)} images have another cluster; nothing was "
                "written, update torch, onnxscript and onnxruntime or use another backbone"
            )
    return sum(map(len, batches)), maps, embeddings


def _difference(ours: NDArray[np.float32] | None, theirs: NDArray[np.float32] | None) -> float:
    assert ours is not None
    assert theirs is not None
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else math.inf


def _elsewhere(ours: Explanation, theirs: Explanation) -> int:
    """Count images that lie in different clusters; of two clusters at the same distance, rounding chooses one."""
    assert ours.distances is not None
    assert theirs.distances is not None
    differ = np.asarray(ours.clusters != theirs.clusters)
    return int(np.sum(differ & (np.abs(ours.distances - theirs.distances) > _TIE * np.maximum(ours.distances, 1))))


def _synthetic_images(preprocess: Preprocess) -> NDArray[np.float32]:
    """Make 8-bit images of a few soft spots of colour."""
    from PIL import Image

    height, width = preprocess.input_size
    rng = np.random.default_rng(0)
    spots = rng.integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    pictures = [Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC) for few in spots]
    return np.stack([preprocess(picture) for picture in pictures])
