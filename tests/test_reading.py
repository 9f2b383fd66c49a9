"""Damaged files: whatever a reader raises is one error that names the file and what to do."""

import pickle
import zlib
from pathlib import Path

import pytest

from dghlib.storage.reading import Unreadable, reading


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        EOFError(),
        pickle.UnpicklingError("a\nb"),
        zlib.error("x"),
        MemoryError(),
        OSError("unidentified"),
    ],
)
def test_what_readers_raise_becomes_one_line(error: Exception, tmp_path: Path) -> None:
    name = type(error).__name__
    with (
        pytest.raises(Unreadable, match=rf"f is not a picture \({name}.*\); draw it again") as told,
        reading(tmp_path / "f", "a picture", "draw it again"),
    ):
        raise error
    assert "\n" not in str(told.value)


def test_what_the_system_says_of_a_file_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), reading(tmp_path, "a picture", "draw it again"):
        pytest.fail("a folder was read")
    with pytest.raises(FileNotFoundError), reading(tmp_path / "f", "a picture", "draw it again"):
        (tmp_path / "f").read_text()


def test_of_a_file_in_a_file_the_inner_one_is_named() -> None:
    with (
        pytest.raises(Unreadable, match=r"^inner is not .*; mend it$"),
        reading("outer", "an archive", "download it"),
        reading("inner", "a picture", "mend it"),
    ):
        raise ValueError("torn")
