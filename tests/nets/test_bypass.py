import pytest
import torch
from small_networks import Block
from torch import nn

import embedcam
from embedcam.errors import LayerError
from embedcam.nets.bypass import bypassing
from embedcam.nets.passes import noise

SIZE = (16, 16)


class Stages(nn.Module):
    """The embedding joins the means of both stages, or takes that of the last alone."""

    def __init__(self, joined):
        super().__init__()
        self.one, self.two, self.joined = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3), joined

    def forward(self, x):
        one = self.one(x).relu()
        two = self.two(one).relu()
        return torch.cat([one.mean((2, 3)), two.mean((2, 3))], 1) if self.joined else two.mean((2, 3))


def test_the_share_is_that_of_what_does_not_pass_the_layer():
    torch.manual_seed(0)
    model = Stages(joined=True).eval()
    with torch.no_grad():
        embeddings = model(noise(model, SIZE, 2))
    one, two = (embeddings[0] - embeddings[1]).split(4)
    expected = float(one.norm() / torch.cat([one, two]).norm())
    assert 0.1 < expected < 0.99
    assert bypassing(model, "two", 0, SIZE) == pytest.approx(expected, rel=1e-5)
    assert bypassing(model, "one", 0, SIZE) == pytest.approx(0, abs=1e-6)
    assert bypassing(model, "two", 0, SIZE, lambda output: output[:, 4:]) == pytest.approx(0, abs=1e-6)


def test_a_class_token_passes_the_block():
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(Block(8), Block(8))
            self.token = nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x):
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            return self.blocks(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0]

    assert bypassing(Tokens(), "blocks.1.norm1", 0, SIZE) == pytest.approx(0, abs=1e-6)


def test_wrapping_refuses_a_layer_that_much_of_the_embedding_bypasses():
    torch.manual_seed(0)
    preprocess = embedcam.Preprocess(SIZE)
    with pytest.raises(LayerError, match=r"% of the embedding of Stages does not pass 'two'.*name a layer"):
        embedcam.wrap(Stages(joined=True), preprocess=preprocess)
    assert embedcam.wrap(Stages(joined=False), preprocess=preprocess).layer == "two"
    assert embedcam.wrap(Stages(joined=True), layer="two", preprocess=preprocess).layer == "two"
    part = embedcam.wrap(Stages(joined=True), output=lambda output: output[:, 4:], preprocess=preprocess)
    assert part.layer == "two"
