"""Values of sets of images, batch by batch: in memory, or, when they are many, in files of which a batch is mapped."""

import errno
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LARGEST_IN_MEMORY = 2**30  # bytes of one set of values; while images move there are three
_ITEM = 4  # bytes of a float32
_BLOCK = 512  # bytes, in which a system counts what a file holds of the disk


def reserve(file: Path, size: int) -> None:
    """Give a file `size` bytes of the disk: what it holds stays, the rest is zeros.

    Without, it would be sparse, and whoever writes to its map when the disk is full would be killed (SIGBUS).

    Raises:
        OSError: the disk has no room for it; the message says how much is wanted. The file is as it was.
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
    if size - held > disk.f_bavail * disk.f_frsize:  # asked first: others need not wait for room that is not there
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):  # macOS has no such call
        os.posix_fallocate(handle, 0, size)


class BatchedValues:
    """Float32 values of every image of a set, which are read and changed a batch at a time.

    Args:
        sizes: images in each batch.
        shape: of the values of one image.
        file: where they lie, or None for memory. What an earlier run left there is kept; a new file holds zeros.
        device: of values in memory; those in a file are on the CPU.
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
        """Return batch `index`; what is written into it stays. One in a file is mapped until nobody holds it."""
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
