"""Values of sets of images, batch by batch: in memory, or, if they are large, in files that are mapped by batches."""

import errno
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LARGEST_IN_MEMORY = 2**30  # bytes of a set of values; 3 such sets exist while images are optimized
_ITEM = 4  # bytes of a float32
_BLOCK = 512  # bytes, in which a system counts what a file holds of the disk


def reserve(file: Path, size: int) -> None:
    """Reserve `size` bytes on the disk for a file: its content stays, and the rest is filled with zeros.

    Otherwise the file would be sparse, and a process that writes to its map on a full disk would be killed (SIGBUS).

    Raises:
        OSError: the disk does not have enough space; the message names the size. The file is left as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.stat().st_size if file.exists() else None
    with file.open("ab") as handle:
        try:
            if size:
                _allocate(handle.fileno(), size)
        except OSError as error:
            handle.truncate(before or 0)
            if before is None:
                file.unlink()
            raise OSError(
                error.errno,
                f"no room for {file} of {size / 1e6:.0f} MB: {error.strerror}; make room, or take fewer images",
            ) from error
        handle.truncate(size)


def _allocate(handle: int, size: int) -> None:
    disk, held = os.fstatvfs(handle), os.fstat(handle).st_blocks * _BLOCK
    if size - held > disk.f_bavail * disk.f_frsize:  # before anything is taken, which other processes would lack
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):  # macOS has no such call
        os.posix_fallocate(handle, 0, size)


class BatchedValues:
    """Float32 values of every image of a set, which are read and changed 1 batch at a time.

    Args:
        sizes: images in each batch.
        shape: shape of the values of an image.
        file: the file for the values, or None for memory. Values of an earlier run are kept; a new file holds zeros.
        device: the device of values in memory; values in a file are on the CPU.
    """

    def __init__(
        self, sizes: Sequence[int], shape: Sequence[int], file: Path | None, device: torch.device | str = "cpu"
    ):
        self.sizes, self.shape, self.file = list(sizes), tuple(shape), file
        if file is None:
            self.values = torch.zeros(sum(sizes), *shape, device=device)
            self.batches = self.values.split(self.sizes)
        else:
            reserve(file, _ITEM * sum(sizes) * prod(shape))

    def __getitem__(self, index: int) -> Tensor:
        """Return batch `index`; changes to it are kept. A batch in a file is mapped while references to it exist."""
        if self.file is None:
            return self.batches[index]
        return self._mapped(sum(self.sizes[:index]), self.sizes[index])

    def whole(self) -> Tensor:
        """Return the values of all images, (N, ...)."""
        return self.values if self.file is None else self._mapped(0, sum(self.sizes))

    def _mapped(self, first: int, size: int) -> Tensor:
        assert self.file is not None
        start = _ITEM * first * prod(self.shape)
        return torch.from_numpy(np.memmap(self.file, np.float32, "r+", start, (size, *self.shape)))
