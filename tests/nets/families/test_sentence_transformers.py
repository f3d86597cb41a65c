"""CLIP networks of Sentence Transformers, with random weights, saved as the library does and as it used to."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import embedcam
from embedcam.errors import NetworkError

library = pytest.importorskip("sentence_transformers")
transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network as the library writes it."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**SMALL, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(folder / "parts")
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokens = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    transformers.CLIPProcessor(images, tokens).save_pretrained(folder / "parts")
    library.SentenceTransformer(str(folder / "parts"), device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture
def older(saved, tmp_path):
    """The same in the layout of published networks, such as clip-ViT-B-32."""
    shutil.copytree(saved, tmp_path / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    return tmp_path


def test_images_have_the_library_s_embeddings(saved, older):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 32, 3), dtype=np.uint8))
    (expected,) = library.SentenceTransformer(str(saved), device="cpu").encode([picture])
    for folder in (saved, older):
        net = embedcam.load_network(f"sentence-transformers:{folder}", metric="euclidean")
        with torch.no_grad():
            (embedding,) = net(torch.from_numpy(net.preprocess(picture))[None]).numpy()
        np.testing.assert_allclose(embedding, expected, atol=1e-3 * np.abs(expected).max())
        assert net.layer.endswith("layers.1.layer_norm1")
        assert net.map_size == (4, 4)


def test_a_network_of_texts_is_refused(tmp_path):
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=8, **SMALL)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with pytest.raises(NetworkError, match="takes no images; use a CLIP network"):
        embedcam.load_network(f"sentence-transformers:{tmp_path}")
