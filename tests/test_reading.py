"""Damaged files: all errors of readers become one error that names the file and the remedy."""

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
def test_errors_of_readers_become_one_line(error: Exception, tmp_path: Path) -> None:
    name = type(error).__name__
    with (
        pytest.raises(Unreadable, match=rf"f is not a picture \({name}.*\); draw it again") as told,
        reading(tmp_path / "f", "a picture", "draw it again"),
    ):
        raise error
    assert "\n" not in str(told.value)


def test_errors_of_the_system_are_unchanged(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), reading(tmp_path, "a picture", "draw it again"):
        pytest.fail("a folder was read")
    with pytest.raises(FileNotFoundError), reading(tmp_path / "f", "a picture", "draw it again"):
        (tmp_path / "f").read_text()


def test_the_inner_file_of_an_archive_is_named() -> None:
    with (
        pytest.raises(Unreadable, match=r"^inner is not .*; mend it$"),
        reading("outer", "an archive", "download it"),
        reading("inner", "a picture", "mend it"),
    ):
        raise ValueError("torn")
