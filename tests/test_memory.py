"""The memory of a batch is estimated before it starts, and reported if it was too much."""

import platform
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from dghlib import models
from dghlib.generators import dgh
from dghlib.running import memory

SMALL = dgh.Config(num_images=4, batch_size=4, steps=1)


def test_the_memory_of_a_pass_by_hand() -> None:
    """A linear layer keeps its weights, which do not count; a product keeps both factors, once if they are equal."""
    net, images = nn.Linear(8, 4), torch.zeros(2, 8, requires_grad=True)
    net.requires_grad_(False)
    assert memory.kept_for_gradients(net, lambda: net(images)) == 0
    assert memory.kept_for_gradients(net, lambda: images * images) == 4 * 16
    assert memory.kept_for_gradients(net, lambda: (images * 2) * (images * 3)) == 2 * 4 * 16


def test_memory_is_proportional_to_the_pixels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())

    def kept(side: int) -> int:
        return memory.kept_for_gradients(net, lambda: net(torch.zeros(1, 3, side, side, requires_grad=True)))

    assert kept(16) == 4 * kept(8) > 0


def test_too_large_a_batch_is_refused_with_a_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 10**9)
    memory.check_batch("DGH", 10**7, 64, "cpu")
    with pytest.raises(
        torch.OutOfMemoryError,
        match=re.escape("with batches of 128 images, but only 1.0 GB are free: set batch_size to 64"),
    ):
        memory.check_batch("DGH", 10**7, 128, "cpu")
    with pytest.raises(torch.OutOfMemoryError, match="not even one image fits"):
        memory.check_batch("DGH", 10**9, 1, "cpu")
    monkeypatch.setattr(memory, "available", lambda device: None)
    memory.check_batch("DGH", 10**12, 128, "cpu")


def test_free_memory_is_reported() -> None:
    free = memory.available("cpu")
    assert free is None or 0 < free < 10**15
    assert memory.available("meta") is None


def test_memory_that_the_process_keeps_counts_as_free() -> None:
    """`dgh` keeps freed memory, so the set after a large one would otherwise be refused."""
    program = (
        "import torch; from dghlib.running import allocator, memory; allocator.keep_freed_memory();"
        "before = allocator.freed_memory(); large = torch.ones(1 << 26); del large;"
        "print(allocator.freed_memory() - before)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    if platform.libc_ver()[0] == "glibc" and tuple(map(int, platform.libc_ver()[1].split("."))) >= (2, 33):
        assert int(found) > 2**27
    else:
        assert int(found) == 0


def test_dgh_refuses_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load("shapes_inverted")
    monkeypatch.setattr(memory, "kept_for_gradients", lambda net, compute: 10**6)
    monkeypatch.setattr(memory, "available", lambda device: 3 * 10**6)
    monkeypatch.setattr(dgh._Run, "begin", lambda self: pytest.fail("generation began"))
    with pytest.raises(torch.OutOfMemoryError, match=r"DGH on shapes_inverted takes about .* set batch_size to 2"):
        dgh.generate(model, SMALL, progress=False)


def test_running_out_of_memory_is_reported_alike_on_cpu_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dgh._Run, "advance", lambda self: torch.empty(1 << 50))
    with pytest.raises(torch.OutOfMemoryError, match="DGH on shapes_inverted ran out of memory: lower batch_size"):
        dgh.generate(models.load("shapes_inverted"), SMALL, progress=False)


def test_other_errors_are_raised_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory.told_when_out("DGH"):
        raise RuntimeError("a wrong shape")
