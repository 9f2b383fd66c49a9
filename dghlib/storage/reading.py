"""Files from elsewhere, which may be damaged or be something else: whatever their readers raise becomes one error."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 200  # characters of a reader's own words


class Unreadable(ValueError):
    """A file is damaged or something else; the message names it and what to do."""


@contextmanager
def reading(path: Path | str, what: str, remedy: str) -> Iterator[None]:
    """Turn what a block raises that reads the file `path` as `what` into an error that names it and a `remedy`.

    Readers of damaged files raise nearly everything: KeyError, EOFError, UnpicklingError, zlib.error, MemoryError.

    Raises:
        Unreadable: the file is not `what`, or one inside of it is not what it should be.
        OSError: it is not there, or may not be read; as it was raised.
    """
    try:
        if Path(path).exists():
            Path(path).open("rb").close()  # some readers say of a file that may not be read that it is not there
        yield
    except Unreadable:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        said = textwrap.shorten(f"{type(error).__name__}: {error}".removesuffix(": "), _LONGEST)
        raise Unreadable(f"{path} is not {what} ({said}); {remedy}") from error
