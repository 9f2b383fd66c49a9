"""DGH for vision transformers: layer norms replace batch norms, with statistics that follow from their weights.

DGH matches the statistics that batch norms store, and a transformer has no batch norms. A layer norm stores no
statistics, but its weights show what the later layers expect: they are a scale and a shift for each channel, applied to
values that are normalised over all channels of a token. If the tokens of the training set together were also normalised
in each channel, the output of a norm would have the shift as its mean and the scale as its standard deviation. These
are the statistics here. The lab notes have their distance from the statistics of real images.

Therefore each layer norm is replaced by a layer norm without scale and shift and a batch norm of mean 0 and variance 1
that has them. The network computes the same function, and DGH is used without changes: the statistics of the whole set,
the preprocessing, and the rule for the reward of wide outputs (`dgh.Config.output_share`).

Source: DGH is Dikstein et al., "Data Generation for Hardware-Friendly Post-Training Quantization"; transformers are its
authors' future work, and this extension is ours.

Differences from the paper:
1. Statistics are those that follow from weights. Batch norms in the network are matched as well.
2. All others are those of `dgh`.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from dghlib.generators import dgh
from dghlib.models import FloatModel
from dghlib.running.batchnorm import NoBatchNorm
from dghlib.running.copies import private_copy

VERSION = 1
Config = dgh.Config
PRESETS = {"default": Config(num_images=32, batch_size=32)}


def generate(
    model: FloatModel,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
) -> Tensor:
    """Return images (num_images, C, H, W), float32 in the normalised space of `model`, on the CPU.

    The model is not changed. Raises as `dgh.generate`, and NoBatchNorm if the network has neither layer norms over the
    last axis with a scale and a shift nor batch norms.
    """
    twin = dataclasses.replace(model, net=with_batch_norms(model.net))
    return dgh.generate(twin, config, device=device, progress=progress, checkpoint=checkpoint)


def with_batch_norms(net: nn.Module) -> nn.Module:
    """Return a copy of a network that computes the same function, with a batch norm in each of its layer norms.

    Raises:
        NoBatchNorm: it has neither kind of norm.
    """
    net = private_copy(net)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1 and module.weight is not None:
            net.set_submodule(name, _NormOfTokens(module), strict=True)
    if not any(getattr(module, "running_mean", None) is not None for module in net.modules()):
        raise NoBatchNorm(
            f"{type(net).__name__} has neither layer norms over channels with a scale and a shift nor batch norms, "
            "from whose statistics images are made: calibrate with real images, or with those of another network for "
            "the same task"
        )
    return net


class _NormOfTokens(nn.Module):
    """A layer norm (N, ..., C) without scale and shift, and a batch norm of mean 0 and variance 1 that has them."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        (channels,) = norm.normalized_shape
        self.alone = nn.LayerNorm(channels, eps=norm.eps, elementwise_affine=False)
        self.matched = nn.BatchNorm2d(channels, eps=0.0)
        self.matched.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        if norm.bias is not None:
            self.matched.bias = nn.Parameter(norm.bias.detach().clone(), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.alone(x).reshape(len(x), -1, 1, x.shape[-1])
        normed = self.matched(tokens.movedim(3, 1))
        return normed.movedim(1, 3).reshape(x.shape)
