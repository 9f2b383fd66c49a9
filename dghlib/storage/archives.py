"""Zip archives that a public repository creates anew for every request: the same files, but not always the same bytes.

Such an archive is identified by a checksum over the files in it, from their names and their own checksums. The
archive's top folder may have any name (it contains a commit), so members are found by the end of their path.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath


class DamagedArchive(ValueError):
    """A zip archive that cannot be read, completely or in part; the message names it and the remedy."""


def matching(archive: zipfile.ZipFile, pattern: str) -> list[str]:
    """Return the members whose path ends with a match of the pattern, such as "images/*.png", sorted."""
    return sorted(name for name in archive.namelist() if PurePosixPath(name).match(pattern))


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive for reading.

    Raises:
        DamagedArchive: it is not a zip archive, or, inside the block, a member's bytes are not those that were packed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DamagedArchive(
            f"{path} is damaged or not a zip archive: {error}. Delete it and get it again, with `dgh data`"
        ) from error


def contents_sha256(path: Path, patterns: Sequence[str]) -> str:
    """Return a sha256 over the files in an archive that match a pattern, computed once while the archive is unchanged.

    It is the checksum of the sorted lines "name checksum", where the name has no folders and the checksum is the file's
    sha256 in hex digits.

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
