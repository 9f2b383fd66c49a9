"""Freed memory is kept: using it again costs no page faults."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from dghlib.running.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take_and_free():
    [torch.ones(2**20) for _ in range(32)]
take_and_free()
before = faults()
for _ in range(10):
    take_and_free()
print(faults() - before)
"""


def faults(how: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", FAULTS, how], env=environment, capture_output=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_blocks_are_used_again() -> None:
    """A system that is short of memory may take pages of kept blocks away: the best of several runs counts."""
    keep, plain = min(faults("keep") for _ in range(3)), faults("plain")
    assert plain > 32 * 1000  # a block has about 1000 pages
    assert keep < plain / 5
