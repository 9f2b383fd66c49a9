"""Let the process keep the memory that tensors free.

glibc returns large freed blocks to the system and requests them again, zeroed page by page, for the next tensors. On a
CPU this costs as much as the arithmetic of a training step: keeping the blocks makes generation and reconstruction 1.5
to 2 times as fast, at the same peak memory.
"""

import contextlib
import ctypes
import os
from typing import ClassVar

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process and those that it starts keep the memory that they free; do nothing without glibc.

    This is for programs, which know what else their process does, not for libraries: `dgh` calls it at its start.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(_NEVER))


class _Mallinfo(ctypes.Structure):
    """The result of glibc's `mallinfo2`, 10 sizes; the ninth is the number of free bytes in blocks that it keeps."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in (*"abcdefgh", "free", "trimmable")]


def freed_memory() -> int:
    """Return the bytes that this process has freed but kept, which the system does not count as free; 0 if unknown."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or glibc before 2.33
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = _Mallinfo
        return mallinfo().free
    return 0
