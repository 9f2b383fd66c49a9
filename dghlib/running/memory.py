"""The memory of a generation step, measured with a single image before the first batch.

It is best to refuse a batch that does not fit: Linux promises a process more memory than there is, and kills the
process when it uses the memory.
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

# A step's memory relative to the tensors that autograd keeps: it adds gradients and memory that cannot be reused.
MARGIN = 1.4
_CGROUPS = (  # the memory limit of a container and its use: version 2, then version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available(device: torch.device | str) -> int | None:
    """Return the bytes that are available for new tensors on a device, or None if this is unknown.

    They include the memory that this process has freed and kept.
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
    """Return the bytes that autograd keeps for the result of `compute`, without the weights of `net`."""
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
        title: name of the computation, for the error.
        per_image: bytes that autograd keeps for the pass of an image.
        batch_size: images that are optimized together.
        device: the device of the computation.

    Raises:
        torch.OutOfMemoryError: the memory does not suffice; the message names its size and a `batch_size` that fits.
    """
    free, needed = available(device), MARGIN * per_image * batch_size
    if free is None or needed <= free:
        return
    fits = int(free / (MARGIN * per_image))
    advice = f"set batch_size to {1 << (fits.bit_length() - 1)}" if fits else "not even one image fits"
    raise torch.OutOfMemoryError(
        f"{title} takes about {needed / 1e9:.1f} GB for a step with batches of {batch_size} images, but only "
        f"{free / 1e9:.1f} GB are free: {advice}"
    )


@contextmanager
def told_when_out(title: str) -> Iterator[None]:
    """If this block runs out of memory, on a CPU or a GPU, name the computation and the remedy.

    Raises:
        torch.OutOfMemoryError: a tensor did not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # on a CPU it has no type of its own, only its message
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(f"{title} ran out of memory: lower batch_size ({error})") from error
