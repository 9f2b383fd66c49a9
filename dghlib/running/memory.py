"""What a step of generation takes in memory, known from a pass of one image before a batch is begun.

A batch that does not fit is best refused: Linux promises a process more than there is, and kills it once it uses it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from dghlib.running.allocator import freed_memory

# A step's memory over what autograd keeps of its pass: gradients under way, and what the allocator cannot reuse.
MARGIN = 1.4
_CGROUPS = (  # the limit of a container, and what it uses: version 2, then 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available(device: torch.device | str) -> int | None:
    """Return the bytes that new tensors find on a device, or None where that cannot be told.

    What this process has freed and kept for itself is among them.
    """
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu" or not os.path.exists("/proc/meminfo"):
        return None
    known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = [int(known["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in known else []
    for limit, usage in _CGROUPS:
        if os.path.exists(limit) and (most := Path(limit).read_text().strip()).isdecimal():
            free.append(max(0, int(most) - int(Path(usage).read_text())))
    return min(free) + freed_memory() if free else None


def kept_for_gradients(net: nn.Module, compute: Callable[[], Any]) -> int:
    """Return the bytes that autograd keeps, the weights of `net` apart, until what `compute` returns is forgotten."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compute()
    del result
    return sum(size for place, size in kept.items() if place not in weights)


def check_batch(title: str, per_image: int, batch_size: int, device: torch.device | str) -> None:
    """Refuse batches that need more memory than a device has free.

    Args:
        title: what is to be computed, for the error.
        per_image: bytes that autograd keeps of one image's pass.
        batch_size: images that are to move together.
        device: where.

    Raises:
        torch.OutOfMemoryError: they do; the message says how much, and which `batch_size` fits.
    """
    free, needed = available(device), MARGIN * per_image * batch_size
    if free is None or needed <= free:
        return
    fits = int(free / (MARGIN * per_image))
    advice = f"set batch_size to {1 << (fits.bit_length() - 1)}" if fits else "not even one image fits"
    raise torch.OutOfMemoryError(
        f"{title} takes some {needed / 1e9:.1f} GB for a step with batches of {batch_size} images, and "
        f"{free / 1e9:.1f} GB are free: {advice}"
    )


@contextmanager
def told_when_out(title: str) -> Iterator[None]:
    """Name what ran out of memory in this block, on a CPU as on a GPU, and what to do.

    Raises:
        torch.OutOfMemoryError: a tensor did not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # that of a CPU has no type of its own, only its words
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(f"{title} ran out of memory: lower batch_size ({error})") from error
