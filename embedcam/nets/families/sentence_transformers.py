"""`sentence-transformers:NAME`: the image part of a CLIP network of Sentence Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import NETWORKS, NetworkFamily, NetworkOptions

if TYPE_CHECKING:
    from ..network import Network


def load(name: str, options: NetworkOptions) -> Network:
    """Load the image part of a network of Sentence Transformers.

    Args:
        name: Such as "clip-ViT-B-32", or a folder.
        options: By default, the metric is cosine and the preprocessing that of the image processor.

    Returns:
        The network.

    Raises:
        NetworkError: If the name or an option cannot be used, it takes no images, or it cannot be downloaded.
        LayerError: If there is no such layer.
        MissingDependencyError: If sentence_transformers is not installed.
    """
    from ...data.preprocess import Preprocess
    from ...errors import NetworkError
    from ..libraries import loading, require
    from ..wrapped import wrap
    from .hf import image_part

    options.refuse("weights", reason=f"they belong to {name}")
    library = require("sentence_transformers", "sentence-transformers")
    with loading(f"sentence-transformers:{name}", "without a connection, give a folder that holds the network"):
        fixed = {"model_kwargs": {"use_safetensors": True}, "trust_remote_code": False, "device": "cpu"}
        first, *others = library.SentenceTransformer(name, **fixed)
    model = getattr(first, "model", getattr(first, "auto_model", None))
    if not hasattr(model, "get_image_features"):
        raise NetworkError(f"sentence-transformers:{name} takes no images; use a CLIP network, such as clip-ViT-B-32")
    if unknown := [type(module).__name__ for module in others if type(module).__name__ != "Normalize"]:
        raise NetworkError(
            f"sentence-transformers:{name} has {', '.join(unknown)} behind its image tower, which is not supported; "
            "wrap it in Python"
        )
    preprocess = Preprocess.from_hf(first.processor.image_processor)
    if options.input_size is not None:
        preprocess = preprocess.resized_to(options.input_size)
    module = image_part(model, options.output, preprocess.input_size)
    return wrap(module, options.layer, metric=options.metric or "cosine", preprocess=preprocess)


NETWORKS.register("sentence-transformers")(NetworkFamily(load, library="sentence-transformers", safe=True))
