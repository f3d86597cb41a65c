"""Image towers of OpenCLIP, with random weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

import embedcam
from embedcam.errors import NetworkError

open_clip = pytest.importorskip("open_clip")
IMAGES = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Register a small model; return it and the file of its weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "small.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("small").eval()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "w.safetensors")
    return model, folder / "w.safetensors"


def test_the_image_tower_is_loaded_from_the_weights_of_the_whole_network(small):
    model, weights = small
    net = embedcam.load_network("open_clip:small", weights=weights, layer="transformer.resblocks.0")
    with torch.no_grad():
        torch.testing.assert_close(net(IMAGES), model.encode_image(IMAGES, normalize=True))
    assert (net.dim, net.preprocess.crop_pct, net.preprocess.interpolation) == (16, 1.0, "bicubic")
    assert not any("text" in name or "token_embedding" in name for name in net.state_dict())


@pytest.mark.parametrize(
    ("spec", "weights", "message"),
    [
        ("open_clip:small", None, "alone has random weights; write open_clip:small/PRETRAINED"),
        ("open_clip:small/laion", "w.pth", "names its weights; write open_clip:small with other --weights"),
        ("open_clip:small/laion", None, "cannot load open_clip:small/laion: .*see open_clip.list_pretrained"),
        ("open_clip:nothing/laion", None, "cannot load open_clip:nothing/laion"),
    ],
)
@pytest.mark.usefixtures("small")
def test_what_cannot_be_loaded_is_one_line(spec, weights, message):
    with pytest.raises(NetworkError, match=message):
        embedcam.load_network(spec, weights=weights)
