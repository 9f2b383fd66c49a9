"""A trained network with what is needed to feed it: the type that all rooms share."""

import copy
import dataclasses
import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class FloatModel:
    """A trained network in float32, and the space its images live in.

    Args:
        name: what records and file names call it.
        net: maps normalised images (N, C, H, W) to logits; in eval mode.
        image_shape: (C, H, W).
        mean, std: of every channel, of pixels from 0 to 1; normalised is (pixel - mean) / std.
        task: what the outputs are, "classification" or "detection".
    """

    name: str
    net: nn.Module
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: str = "classification"

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3 or not all(isinstance(size, int) and size > 0 for size in self.image_shape):
            raise ValueError(
                f"{self.name}: image_shape must be (C, H, W), three positive numbers, got {self.image_shape}"
            )
        channels = self.image_shape[0]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"{self.name}: images have {channels} channels, but mean has {len(self.mean)} entries "
                f"and std {len(self.std)}"
            )
        if not all(0 < spread < math.inf for spread in self.std):
            raise ValueError(f"{self.name}: std, of pixels from 0 to 1, must be above 0, got {self.std}")

    def on(self, device: torch.device | str) -> "FloatModel":
        """Return the model with its network on a device: itself on the CPU, else with a copy of the network."""
        if torch.device(device).type == "cpu":
            return self
        return dataclasses.replace(self, net=copy.deepcopy(self.net).to(device))

    def sha256(self) -> str:
        """Return a hash of all parameters and buffers: their names, types, shapes and values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
