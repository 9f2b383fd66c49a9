"""Labelled images in memory: the common form of all data sets.

Pixels stay uint8 until a batch is needed, so 10 000 images of 64x64 pixels take only 120 MB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dghlib.images import normalise
from dghlib.seeds import stream


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with their classes.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,); an index into `classes`.
        classes: the name of every class, in the order of the network's logits.

    Raises:
        TypeError: images or labels have another dtype.
        ValueError: another number of dimensions or labels, no image, or a label outside of `classes`.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_dtype("images", self.images, torch.uint8)
        _require_dtype("labels", self.labels, torch.int64)
        if self.images.ndim != 4 or 0 in self.images.shape:
            raise ValueError(f"images must have shape (N, C, H, W), none of them 0; got {tuple(self.images.shape)}")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must have shape ({len(self.images)},), one for every image; got {tuple(self.labels.shape)}"
            )
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if lowest < 0 or highest >= len(self.classes):
            raise ValueError(
                f"labels must be 0 to {len(self.classes) - 1}, an index into `classes`; got {lowest} to {highest}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: slice | Tensor) -> "LabelledImages":
        """Return the images for a slice or a tensor of indices, with their labels."""
        return LabelledImages(self.images[which], self.labels[which], self.classes)


def _require_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")


def choose(available: int, num_images: int | None, seed: int = 0) -> Tensor:
    """Return the indices of `num_images` of the `available`, drawn without replacement; of all images for None.

    Data sets are often stored class by class, so that the first images would belong to a single class.

    Raises:
        ValueError: there are fewer images, or `num_images` is below 1.
    """
    if num_images is None:
        return torch.arange(available)
    if not 1 <= num_images <= available:
        raise ValueError(f"num_images must be 1 to {available}, the size of this set; got {num_images}")
    return torch.randperm(available, generator=stream(seed, "choose"))[:num_images]


def sample(data: LabelledImages, num_images: int, seed: int) -> LabelledImages:
    """Return `num_images` drawn without replacement, the same ones for the same seed; errors as `choose`."""
    return data[choose(len(data), num_images, seed)]


def batches(
    data: LabelledImages, mean: Sequence[float], std: Sequence[float], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return an iterator over (images, labels): float32 (n, C, H, W) normalised, int64 (n,).

    `mean` and `std` are per channel, for pixels in [0, 1]. The last batch may be smaller.

    Raises:
        ValueError: `batch_size` below 1, or another number of channels than the images have.
    """
    channels = data.images.shape[1]
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not len(mean) == len(std) == channels:
        raise ValueError(f"images have {channels} channels, but mean has {len(mean)} entries and std {len(std)}")
    pairs = zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True)
    return ((normalise(images, mean, std), labels) for images, labels in pairs)
