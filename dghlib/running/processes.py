"""The processes of a job, started by `torchrun`, each with its own part of the images; without torchrun, no effect.

Every process takes the same steps at the same time, because each waits for the others in every sum.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessLost(RuntimeError):
    """Another process of the job has ended."""


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device(device: str) -> None:
    """Raise ValueError unless this machine has a device by that name, and torch can compute on it."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {device} cannot be used here: {reason}; --device cpu can") from error


@contextmanager
def joined(device: torch.device | str) -> Iterator[torch.device]:
    """Join the job if `torchrun` started this process; yield the device to work on, for CUDA a device of its own."""
    device = torch.device(device)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def add_up(values: Tensor) -> None:
    """Replace `values` by its sum over all processes.

    Raises:
        ProcessLost: one of them ended.
    """
    if count() > 1:
        with _losses():
            dist.all_reduce(values)


def agreed(decision: bool) -> bool:
    """Return the decision of the first process.

    Raises:
        ProcessLost: one of them ended.
    """
    return scattered([decision] * count() if rank() == 0 else None)


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes, in the order of ranks, to the first process; the others get None for each.

    Raises:
        ProcessLost: one of them ended.
    """
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    with _losses():
        dist.gather_object(value, found if rank() == 0 else None)
    return found


def scattered(values: list[Any] | None) -> Any:
    """Return this process's part of a list that the first process provides, or None if it provides none.

    Raises:
        ProcessLost: one of them ended.
    """
    if count() == 1:
        return values and values[0]
    found = [None]
    with _losses():
        dist.scatter_object_list(found, (values or [None] * count()) if rank() == 0 else None)
    return found[0]


def shared(values: Tensor, owner: int) -> Tensor:
    """Return the values of the process `owner`; the others pass a tensor of the same shape.

    Raises:
        ProcessLost: one of them ended.
    """
    if count() > 1:
        with _losses():
            dist.broadcast(values, owner)
    return values


@contextmanager
def _losses() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"process {rank()} of {count()} lost another; start the job again, it continues from its checkpoint"
        ) from error
