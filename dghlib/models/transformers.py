"""Architecture of the vision transformers: blocks of attention and perceptrons after layer norms.

Maps images (N, 3, H, W) to logits (N, num_classes); blocks are sub-modules, so that a quantizer can find them by path.

Source: ViT (arXiv:2010.11929), with the norms before attention and before the perceptron; with a stem, its patches are
made by convolutions and batch norms, with which small transformers learn faster (arXiv:2106.14881).
Difference: the last convolution of the stem is also a 3x3 convolution of stride 2 with a batch norm, as the others.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention of tokens (N, T, D) in several heads, with one linear map for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention, then a perceptron for each token, both after a layer norm and with a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.perceptron = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.perceptron(self.norm2(x))


def _stem(channels: tuple[int, ...]) -> nn.Sequential:
    """Return 3x3 convolutions of stride 2, each with a batch norm, and ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class VisionTransformer(nn.Module):
    """Patches as tokens, blocks, a layer norm, and a linear layer for the class token or for the mean of all tokens.

    Args:
        size, patch: of the square image and of the square patches, in pixels.
        stem: channels of the stem's convolutions except the last; each halves the image. Without a stem, tokens are
            linear in the pixels of their patch.
        class_token: whether there is a class token before the patches.
        width, depth, heads, hidden: of the tokens, blocks, their attention, and perceptrons.
        eps: added to the variance by layer norms.
    """

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        num_classes: int,
        stem: tuple[int, ...] = (),
        class_token: bool = True,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.patches = _stem((3, *stem, width)) if stem else nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + class_token, width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, eps) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        return self.head(tokens[:, 0] if self.class_token is not None else tokens.mean(1))
