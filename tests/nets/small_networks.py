"""Small networks in the shapes that libraries use, with random weights."""

import torch
from torch import nn
from torch.nn import functional


class Does(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    def __init__(self, dim, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj, self.q_norm = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Identity()
        self.attn_drop = nn.Identity()

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = self.attend(self.q_norm(q), k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))

    def attend(self, q, k, v):
        return functional.scaled_dot_product_attention(q, k, v)


class AttentionByHand(Attention):
    def attend(self, q, k, v):
        return self.attn_drop((q @ k.transpose(-2, -1) / 3).softmax(dim=-1)) @ v


class AttentionOfThree(nn.Module):
    """Queries, keys and values of layers of their own."""

    def __init__(self, dim):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        return functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class Block(nn.Module):
    def __init__(self, dim, attention=Attention):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = attention(dim), nn.Linear(dim, dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Tokens with any number of further ones before and after them; of any input size, or of one only."""

    def __init__(
        self, before=1, after=0, patch=8, dim=12, size=None, sequence_first=False, stem=None, attention=Attention
    ):
        super().__init__()
        self.stem = stem or nn.Conv2d(3, dim, patch, patch)
        self.before, self.after = nn.Parameter(torch.randn(1, before, dim)), nn.Parameter(torch.randn(1, after, dim))
        self.blocks = nn.ModuleList(Block(dim, attention) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.last = Does(lambda x: x.transpose(0, 1) if sequence_first else x)
        self.size = size

    def tokens(self, x):
        assert self.size in (None, tuple(x.shape[2:]))
        x = self.stem(x)
        x = x if x.ndim == 3 else x.flatten(2).transpose(1, 2)
        x = torch.cat([self.before.expand(len(x), -1, -1), x, self.after.expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x))

    def forward(self, x):
        return self.tokens(x)[:, 0]


class MeanOfTokens(Transformer):
    def forward(self, x):
        return self.tokens(x).mean(dim=1)


class Dictionary(Transformer):
    def forward(self, x):
        tokens = self.tokens(x)
        return {"last_hidden_state": tokens, "pooler_output": tokens[:, 0]}


class Convolutional(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.project = nn.Linear(8, 4)

    def forward(self, x):
        return self.project(self.trunk(x).mean(dim=(2, 3)))
