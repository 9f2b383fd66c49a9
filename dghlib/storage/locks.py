"""Locks: only one process writes a file, and temporary files of killed processes are removed.

A claim is a lock on a file beside the file that will be written. The system releases it when the process ends, for any
reason. Under a claim nobody else writes, so temporary files of that name belong to processes that have ended.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dghlib.storage.records import remove, temporaries, temporary_beside


class Busy(OSError):
    """Another process is writing the file; the message names it."""


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold, for a block, the right to write `path`, a file or folder that need not exist yet.

    A claim before the computation also checks that `path` can be written.

    Raises:
        Busy: another process holds the claim, and `wait` is False.
        OSError: the folder of `path` cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    handle = _locked(lock, path, wait)
    try:
        with _naming(path):
            temporary_beside(path).touch()  # this name is longer than that of the lock
        for leftover in temporaries(path):
            remove(leftover)
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is locked: a waiting process notices this, and locks the next file
        os.close(handle)


def _locked(lock: Path, path: Path, wait: bool) -> int:
    """Return the handle of a lock file that is locked and still has its name."""
    while True:
        with _naming(path):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if os.fstat(handle).st_uid == os.getuid():
                os.fchmod(handle, 0o666)  # other accounts may share the folder
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _same(lock, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise Busy(f"another process is writing {path}: wait for its end, or name another file") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _same(lock: Path, handle: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(lock.stat(), os.fstat(handle))
    return False


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise OSErrors about files beside `path` again, with a message that names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; name another place") from error
