"""A trained network with the description of its input: the type that all rooms share."""

import copy
import dataclasses
import hashlib
import logging
import math
from dataclasses import dataclass

import torch
from torch import nn

log = logging.getLogger(__name__)

LARGEST_STATISTIC = 2  # for pixels from 0 to 1; a larger mean or std is for pixels from 0 to 255
WIDEST_SPACE = 512  # between black and white; with pixels from 0 to 255 it is 255


@dataclass(frozen=True, kw_only=True)
class FloatModel:
    """A trained network in float32, and the space of its images.

    Args:
        name: the name in records and file names.
        net: maps normalised images (N, C, H, W) to logits; in eval mode.
        image_shape: (C, H, W). A quantized network is for images of this shape alone, unless `net` has an attribute
            `any_size` that is true: then sizes are computed in every pass, and no path may depend on them.
        mean, std: of every channel, for pixels from 0 to 1; normalised is (pixel - mean) / std. For a network without
            normalisation, the mean is 0, and the std is 1 for pixels from 0 to 1 and 1/255 for pixels from 0 to 255.
        task: the kind of the outputs, "classification" or "detection".
    """

    name: str
    net: nn.Module
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: str = "classification"

    def __post_init__(self) -> None:
        if not isinstance(self.net, nn.Module):
            raise TypeError(f"{self.name}: net must be a torch.nn.Module, got {self.net!r}")
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
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"{self.name}: mean, of pixels from 0 to 1, must be finite, got {self.mean}")
        self._check_unit()

    def _check_unit(self) -> None:
        """Raise ValueError for statistics of pixels from 0 to 255; warn of other unusual values."""
        given = f"{self.name}: got mean {self.mean} and std {self.std}"
        if max(*self.mean, *self.std) > LARGEST_STATISTIC:
            raise ValueError(
                f"{given}, which are for pixels from 0 to 255; they must be for pixels from 0 to 1: divide them by "
                "255. A network that takes pixels from 0 to 255 as they are has mean 0 and std 1/255"
            )
        usual = [0 <= mean <= 1 for mean in self.mean] + [1 / WIDEST_SPACE <= std <= 1 for std in self.std]
        if not all(usual):
            log.warning(
                "%s. For pixels from 0 to 1, most networks have a mean from 0 to 1 and a std from 1/255 to 1; with "
                "others, calibration images differ from the network's training images",
                given,
            )

    def on(self, device: torch.device | str) -> "FloatModel":
        """Return the model with its network on a device: itself on the CPU, otherwise with a copy of the network."""
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
