"""Freed memory is kept: using it again costs no page faults."""

import os
import platform
import subprocess
import sys

import pytest

ROUNDS, PAGES = 10, 2**26 // os.sysconf("SC_PAGE_SIZE")

# Blocks of 64 MiB: glibc returns blocks above 32 MiB to the system each time, whatever its heap looks like. Kept blocks
# may be followed by small ones, which leave no room for the alignment of the next tensor, so that the heap grows for
# some rounds before it has gaps enough: the first rounds do not count.
FAULTS = """
import resource, sys
import torch
from dghlib.running.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take_and_free():
    torch.ones(2**24)
rounds = int(sys.argv[2])
for _ in range(4 * rounds):
    take_and_free()
before = faults()
for _ in range(rounds):
    take_and_free()
print(faults() - before)
"""


def faults(how: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS, how, str(ROUNDS)]
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_blocks_are_used_again() -> None:
    assert faults("plain") >= ROUNDS * PAGES * 0.9
    assert faults("keep") < ROUNDS * PAGES / 5
