"""The networks of `networks.py`: one or more of every family that timm, torchvision, transformers and OpenCLIP have."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

TIMM = (
    *("beit_base_patch16_224", "halonet_h1", "mobileone_s1", "cait_xxs24_224", "coat_tiny", "convit_tiny"),
    *("convmixer_768_32", "convnext_atto_rms", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s"),
    *("cspnext_tiny", "davit_tiny", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224", "densenet121"),
    *("dla34", "dpn68", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "mnasnet_small"),
    *(
        "efficientvim_m1",
        "efficientvit_b0",
        "efficientvit_m0",
        "eva02_tiny_patch14_224",
        "vit_pe_core_tiny_patch16_384",
    ),
    *("fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0"),
    *("hiera_tiny_224", "hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_v3", "lcnetv2_small"),
    *("levit_128s", "lowformer_b0", "mambaout_femto", "maxvit_pico_rw_256", "coatnet_nano_rw_224", "caformer_s18"),
    *("mixer_s16_224", "resmlp_12_224", "mobilenetv3_small_050", "mobilevit_xxs", "mvitv2_tiny", "nest_tiny_jx"),
    *("nextvit_small", "nf_seresnet26", "pit_xs_224", "pvt_v2_b0", "regnetx_002", "repghostnet_050", "repvit_m0_9"),
    *("res2net50_14w_8s", "resnest14d", "resnet18", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18"),
    *("sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s1", "swiftformer_xs", "swin_tiny_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small"),
    *("visformer_tiny", "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"),
    *("vit_tiny_r_s16_p8_224", "vit_relpos_small_patch16_rpn_224", "vitamin_small_224", "volo_d1_224"),
    *("ese_vovnet19b_slim_dw", "legacy_xception", "xcit_nano_12_p16_224"),
)
# Sides of the input: less than the usual one for plain transformers, which cost most; a multiple that some others need.
SIDES = {
    **dict.fromkeys(("beit_base_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224"), 112),
    **dict.fromkeys(("vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_pe_core_tiny_patch16_384"), 112),
    **dict.fromkeys(("vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"), 112),
    **dict.fromkeys(("halonet_h1", "csatv2", "efficientvim_m1", "selecsls42", "shvit_s1"), 256),
}
TORCHVISION = (
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "densenet121", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_16", "maxvit_t", "alexnet"),
)
# Configurations of transformers, by prefix of the class names.
_SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
_VIT = {**_SMALL, "image_size": 112, "patch_size": 16}
_STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64]}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViT": _VIT,
    "DeiT": _VIT,
    "Beit": _VIT,
    "Dinov2": {**_VIT, "patch_size": 14},
    "Dinov2WithRegisters": {**_VIT, "patch_size": 14, "num_register_tokens": 4},
    "DINOv3ViT": {**_VIT, "num_register_tokens": 4},
    "DINOv3ConvNext": {**_STAGES, "image_size": 224},
    "CLIPVision": {**_VIT, "projection_dim": 32},
    "SiglipVision": _VIT,
    "Swin": {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4], "image_size": 224},
    "Swinv2": {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4], "image_size": 256},
    "ConvNext": _STAGES,
    "ConvNextV2": _STAGES,
    "ResNet": {"embedding_size": 16, **_STAGES, "layer_type": "basic"},
    "RegNet": {"embedding_size": 16, "depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64], "groups_width": 8},
}
OPEN_CLIP = ("ViT-S-32", "ViT-S-16-alt", "RN50", "convnext_tiny", "ViTamin-S", "MobileCLIP-S1", "ViT-B-16-SigLIP")
REID = {"osnet": "osnet_x0_25", "hacnn": "HACNN", "pcb": "pcb_p6"}


@dataclass
class Case:
    """A network to check.

    Attributes:
        name: With the prefix of its source, such as "timm:resnet18".
        family: What its architecture is called.
        module: From images to embeddings, with random weights.
        input_size: (height, width).
        reduction: Pixels per cell of its last feature map, as its library says; None if unknown.
        wrap: Arguments of `embedcam.wrap`.
        spec: `--net` of the command line; "" if there is none.
        state: What `--weights` is given; the module's own state if None.
        folder: Writes a folder, which is then the SPEC's argument.
    """

    name: str
    family: str
    module: nn.Module
    input_size: tuple[int, int]
    reduction: int | None = None
    wrap: dict[str, Any] = field(default_factory=dict)
    spec: str = ""
    state: dict[str, Any] | None = None
    folder: Callable[[Path], object] | None = None


def names() -> list[str]:
    """List the networks."""
    sources = {
        "timm": TIMM,
        "torchvision": TORCHVISION,
        "hf": TRANSFORMERS,
        "open_clip": OPEN_CLIP,
        "facenet-pytorch": ("InceptionResnetV1",),
        "torchreid": REID,
    }
    return [f"{source}:{name}" for source, members in sources.items() for name in members]


def make(name: str) -> Case:
    """Make a network with random weights that behaves as a trained one.

    Args:
        name: One of `names`.

    Returns:
        The network.

    Raises:
        ModuleNotFoundError: If its library is not installed.
    """
    source, _, own = name.partition(":")
    torch.manual_seed(0)
    case: Case = globals()[f"_{source.replace('-', '_')}"](name, own)
    enliven(case.module, case.input_size)
    return case


def enliven(module: nn.Module, size: tuple[int, int]) -> None:
    """Replace weights that only training makes useful: branches scaled by zero, and statistics of batches.

    Args:
        module: The network.
        size: (height, width) of its input.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 and not name.endswith("bias") and parameter.abs().max() < 1e-2:
            nn.init.uniform_(parameter, 0.3, 0.5)
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            module(torch.randn(4, 3, *size))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    module.eval()


def _timm(name: str, own: str) -> Case:
    from timm import create_model, get_pretrained_cfg

    config: Any = get_pretrained_cfg(own)
    side = SIDES.get(own, config.input_size[1] if config.fixed_input_size else 160)
    sized: dict[str, Any] = {"img_size": side} if config.fixed_input_size and side != config.input_size[1] else {}
    module = create_model(own, num_classes=0, **sized).eval()
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    reductions = [info["reduction"] for info in getattr(module, "feature_info", []) or []]
    reduction = reductions[-1] if reductions else patch[0] if isinstance(patch, tuple) else patch
    family = type(module).__module__.rpartition(".")[2]
    return Case(name, family, module, (side, side), reduction, spec=f"timm:{own}")


def _torchvision(name: str, own: str) -> Case:
    import torchvision

    module = torchvision.models.get_model(own, weights=None, num_classes=16).eval()
    state = module.state_dict()
    parent, last = next(
        (path.rpartition(".")[0], path.rpartition(".")[2])
        for path, each in reversed(list(module.named_modules()))
        if isinstance(each, nn.Linear) or (own.startswith("squeezenet") and isinstance(each, nn.Conv2d))
    )
    if own.startswith("squeezenet"):
        module.classifier = nn.Identity()
        module.forward = lambda images: module.features(images).mean(dim=(2, 3))
    else:
        setattr(module.get_submodule(parent), last, nn.Identity())
    family = re.split(r"[_\d]", own)[0]
    size = 256 if own.startswith("swin_v2") else 224
    reduction = {"vit_b_16": 16, "squeezenet1_1": 16}.get(own, 32)
    return Case(name, family, module, (size, size), reduction, spec=name, state=state)


def _hf(name: str, own: str) -> Case:
    import transformers

    config = getattr(transformers, f"{own}Config")(**TRANSFORMERS[own])
    suffix = "ModelWithProjection" if own == "CLIPVision" else "Model"
    model = getattr(transformers, f"{own}{suffix}")(config).eval()
    output: Any = "image_embeds" if own == "CLIPVision" else "pooler_output"
    if own in ("ResNet", "RegNet"):
        output = lambda result: result.pooler_output.flatten(1)  # noqa: E731
    size = getattr(config, "image_size", 224)
    reduction = 32 if getattr(config, "depths", None) else config.patch_size
    return Case(
        name,
        own,
        model,
        (size, size),
        reduction,
        {"output": output},
        "hf:",
        folder=lambda path: model.save_pretrained(path),
    )


def _open_clip(name: str, own: str) -> Case:
    import open_clip

    module = open_clip.create_model(own, pretrained=None).visual.eval()
    size = module.image_size if isinstance(module.image_size, tuple) else (module.image_size,) * 2
    patch = re.search(r"-(16|32)", own)
    reduction = int(patch[1]) if patch else {"ViTamin-S": 16}.get(own, 32)
    return Case(name, "CLIP", module, size, reduction, spec=name)


def _facenet_pytorch(name: str, own: str) -> Case:
    import facenet_pytorch

    return Case(name, own, facenet_pytorch.InceptionResnetV1(pretrained=None).eval(), (160, 160))


def _torchreid(name: str, own: str) -> Case:
    # The package as a whole imports libraries that its networks do not need.
    package = importlib.util.find_spec("torchreid")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'torchreid'", name="torchreid")
    file = Path(package.origin).parent / "reid" / "models" / f"{own}.py"
    spec = importlib.util.spec_from_file_location(f"torchreid_{own}", file)
    assert spec is not None and spec.loader is not None
    models = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    more = {"use_gpu": False} if own == "hacnn" else {"pretrained": False, "loss": "softmax"}
    module = getattr(models, REID[own])(num_classes=10, **more).eval()
    size, reduction = {"osnet": ((256, 128), 16), "hacnn": ((160, 64), 16), "pcb": ((384, 128), 16)}[own]
    return Case(name, own, module, size, reduction)
