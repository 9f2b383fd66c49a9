"""Zip archives that a public repository packs anew for whoever asks: the same files, not always the same bytes.

What is known of such an archive is a sum over the files in it, by their names and their own sums. The folder that holds
all of them is named after a commit, or otherwise, so members are found by the end of their path.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath


class DamagedArchive(ValueError):
    """A zip archive that cannot be read, wholly or in part; the message names it and says what to do."""


def matching(archive: zipfile.ZipFile, pattern: str) -> list[str]:
    """Return the members whose path ends as the pattern says, such as "images/*.png", sorted."""
    return sorted(name for name in archive.namelist() if PurePosixPath(name).match(pattern))


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive to read from it.

    Raises:
        DamagedArchive: it is no zip archive, or, inside of the block, a member's bytes are not those that were packed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DamagedArchive(
            f"{path} is damaged or no zip archive: {error}. Delete it and get it again, with `dgh data`"
        ) from error


def contents_sha256(path: Path, patterns: Sequence[str]) -> str:
    """Return a sha256 over those files in an archive that a pattern matches, computed once while it stays the same.

    It is the sum of the lines "name sum", sorted, where the name is without its folders and the sum is the file's
    sha256 as hex digits.

    Raises:
        DamagedArchive: as `opened`.
    """
    stat = path.stat()
    return _contents_sha256(path.absolute(), tuple(patterns), stat.st_size, stat.st_mtime_ns)


@lru_cache
def _contents_sha256(path: Path, patterns: tuple[str, ...], size: int, modified: int) -> str:
    with opened(path) as archive:
        members = {name for pattern in patterns for name in matching(archive, pattern)}
        lines = sorted(
            f"{PurePosixPath(name).name} {hashlib.sha256(archive.read(name)).hexdigest()}\n" for name in members
        )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
