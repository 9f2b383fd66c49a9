"""Calibration images for other tools: as arrays, as PNG files, and as onnxruntime's reader.

Generated images are real numbers: some lie beyond the darkest or brightest pixel, and none is a multiple of 1/255. PNG
files lose this precision, and the loss is reported. Arrays lose nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dghlib.export.onnx_file import INPUT
from dghlib.storage.records import write_atomically, write_folder_atomically

_LEVELS = 255


def save_npz(path: Path | str, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write normalised images (N, C, H, W) to an `.npz` file, as float32, with their `mean` and `std` (C,)."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # otherwise numpy adds an ending to the name
            np.savez_compressed(
                file, images=images.numpy(), mean=np.array(mean, np.float32), std=np.array(std, np.float32)
            )

    write_atomically(path, write)


@dataclass(frozen=True)
class PixelLoss:
    """The loss from 8-bit pixels.

    Attributes:
        clamped: share of the values beyond the darkest or brightest pixel, 0 to 1.
        rms: root mean square of the change, in levels of 255; rounding alone gives 0.29.
    """

    clamped: float
    rms: float

    def __str__(self) -> str:
        return f"{100 * self.clamped:.2f} % of the values clamped, changed by {self.rms:.2f} of 255 levels (rms)"


def save_png(folder: Path, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> PixelLoss:
    """Write normalised images (N, C, H, W) as `00000.png`, ... into a new folder; return the loss of precision.

    The folder gets its name when all images are in it.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: the images have neither 1 channel, for grey files, nor 3, for RGB.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"PNG files have 1 or 3 channels, got images of shape {tuple(images.shape[1:])}")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose a new folder")
    levels = (images * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)) * _LEVELS
    pixels = levels.round().clamp(0, _LEVELS)
    digits = max(5, len(str(len(pixels))))

    def write(temporary: Path) -> None:
        temporary.mkdir()
        for number, image in enumerate(tqdm(pixels, desc="PNG files", unit="image", delay=3, leave=False)):
            array = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(array.byte().numpy()).save(temporary / f"{number:0{digits}}.png")

    write_folder_atomically(folder, write)
    beyond = (levels < -0.5) | (levels > _LEVELS + 0.5)
    return PixelLoss(beyond.float().mean().item(), (pixels - levels).square().mean().sqrt().item())


class ImageReader(CalibrationDataReader):
    """Feeds images to onnxruntime's `quantize_static`.

    Args:
        images: normalised (N, C, H, W), as the network takes them.
        batch_size: images per batch.
        input_name: of the network; "images" in files of `export_onnx`.
    """

    def __init__(self, images: Tensor, batch_size: int = 32, input_name: str = INPUT):
        self.images, self.batch_size, self.input_name = images, batch_size, input_name
        self.rewind()

    def rewind(self) -> None:
        """Start again."""
        self.batches = iter(self.images.split(self.batch_size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by name of the input, or None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {self.input_name: batch.numpy()}

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)
