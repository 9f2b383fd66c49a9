"""Large sets in files: their space on the disk is allocated before they are mapped."""

import errno
import os
from pathlib import Path

import pytest
import torch

from dghlib.storage import large_sets
from dghlib.storage.large_sets import BatchedValues, reserve


def test_a_file_is_not_sparse_and_keeps_its_content(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "values"
    values = BatchedValues([2, 1], (1000,), file)
    assert file.stat().st_blocks * 512 >= 3 * 1000 * 4 == file.stat().st_size
    assert not values.whole().any()
    values[1].copy_(torch.ones(1, 1000))
    assert BatchedValues([2, 1], (1000,), file).whole().sum() == 1000


def test_a_full_disk_is_reported_before_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(large_sets, "_allocate", full)
    with pytest.raises(OSError, match=r"no room for .*values of 4 MB: No space left on device; make room"):
        reserve(tmp_path / "values", 4_000_000)
    assert not list(tmp_path.iterdir())
    (tmp_path / "values").write_bytes(b"of an earlier run")
    with pytest.raises(OSError, match="No space left"):
        reserve(tmp_path / "values", 4_000_000)
    assert (tmp_path / "values").read_bytes() == b"of an earlier run"


def test_no_space_is_allocated_on_a_disk_with_too_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *arguments: pytest.fail("it was filled"), raising=False)
    with pytest.raises(OSError, match="No space left"):
        reserve(tmp_path / "values", 2**60)


def test_batches_are_contiguous_in_the_file(tmp_path: Path) -> None:
    values = BatchedValues([2, 3], (4, 5), tmp_path / "values")
    for index in range(2):
        values[index].fill_(index + 1)
    assert values.whole()[:, 0, 0].tolist() == [1, 1, 2, 2, 2]
    assert values[0].shape == (2, 4, 5)
    assert torch.equal(values.whole()[2:], values[1])
