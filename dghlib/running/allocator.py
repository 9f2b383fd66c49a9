"""Let the process keep the memory that tensors free.

glibc gives large blocks back to the system once they are freed, and takes them anew, zeroed page by page, for the next
tensors. On a CPU that costs as much as the arithmetic of a training step: keeping the blocks makes generation and
reconstruction one and a half to two times as fast, at the same peak.
"""

import contextlib
import ctypes
import os
from typing import ClassVar

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process and those that it starts keep what they free; elsewhere than under glibc, do nothing.

    It is for programs, which know what else the process does, not for libraries: `dgh` calls it when it starts.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(_NEVER))


class _Mallinfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns, ten sizes; the ninth are the bytes that are free in blocks it holds."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in (*"abcdefgh", "free", "trimmable")]


def freed_memory() -> int:
    """Return the bytes that this process has freed and kept, for the system not to see as free; 0 if unknown."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or one before glibc 2.33
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = _Mallinfo
        return mallinfo().free
    return 0
