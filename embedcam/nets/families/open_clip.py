"""`open_clip:MODEL/PRETRAINED`: the image tower of a network of OpenCLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..family import NETWORKS, NetworkFamily, NetworkOptions

if TYPE_CHECKING:
    from ...data.preprocess import Preprocess
    from ..network import Network


def load(name: str, options: NetworkOptions) -> Network:
    """Load the image tower of OpenCLIP, with its projection.

    Args:
        name: "MODEL/PRETRAINED", such as "ViT-B-32/laion2b_s34b_b79k"; "MODEL" alone with `weights`; or
            "hf-hub:ORG/NAME".
        options: `weights` is a file with a state dict of the whole network or of its image tower. By default, the
            metric is cosine and the preprocessing that of the weights.

    Returns:
        The network.

    Raises:
        NetworkError: If the name, the weights or an option cannot be used, or the weights cannot be downloaded.
        LayerError: If there is no such layer.
        MissingDependencyError: If open_clip is not installed.
    """
    from ...errors import NetworkError
    from ..libraries import loading
    from ..weights import load_into, read_state_dict
    from ..wrapped import wrap

    hub = name.startswith("hf-hub:")
    model_name, _, tag = (name, "", "") if hub else name.partition("/")
    if options.weights not in (None, "DEFAULT") and tag:
        raise NetworkError(f"open_clip:{name} names its weights; write open_clip:{model_name} with other --weights")
    if options.weights in (None, "DEFAULT") and not (tag or hub):
        raise NetworkError(
            f"open_clip:{name} alone has random weights; write open_clip:{name}/PRETRAINED, as in "
            "open_clip.list_pretrained(), or give --weights FILE"
        )
    with loading(f"open_clip:{name}", "see open_clip.list_pretrained(); without a connection, give --weights FILE"):
        visual, preprocess = create(model_name, tag or None, options.input_size)
    if options.weights not in (None, "DEFAULT"):
        state = read_state_dict(str(options.weights))
        state = {key.partition("visual.")[2] or key: value for key, value in state.items()}
        load_into(visual, state, options.weights, f"open_clip:{name}")
    return wrap(visual, options.layer, output=options.output, metric=options.metric or "cosine", preprocess=preprocess)


def create(name: str, tag: str | None, size: tuple[int, int] | None) -> tuple[Any, Preprocess]:
    """Make an image tower.

    Args:
        name: Of the model.
        tag: Of its weights; None for random ones, or for those of "hf-hub:".
        size: (height, width) of the input; None for the model's own.

    Returns:
        The module, and its preprocessing.
    """
    from ...data.preprocess import Preprocess
    from ..libraries import require

    open_clip = require("open_clip", "open-clip")
    model = open_clip.create_model(name, pretrained=tag, force_image_size=size, require_pretrained=tag is not None)
    visual = model.visual
    cfg = open_clip.get_model_preprocess_cfg(model)
    side = cfg.get("size", 224)
    given = (side, side) if isinstance(side, int) else tuple(side)
    whole = cfg.get("resize_mode", "shortest") == "squash"
    preprocess = Preprocess(given, cfg["mean"], cfg["std"], cfg["interpolation"], None if whole else 1.0)
    return visual, preprocess


def backbone(name: str, size: tuple[int, int]) -> Any:
    """Make an image tower with random weights."""
    return create(name if name.startswith("hf-hub:") else name.partition("/")[0], None, size)[0]


NETWORKS.register("open_clip")(
    NetworkFamily(load, "MODEL/PRETRAINED", library="open_clip_torch", safe=True, backbone=backbone)
)
