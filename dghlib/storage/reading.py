"""Reading of files from elsewhere, which may be damaged or of another kind: all errors of readers become one error."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 200  # characters of a reader's own message


class Unreadable(ValueError):
    """A file is damaged or of another kind; the message names it and the remedy."""


@contextmanager
def reading(path: Path | str, what: str, remedy: str) -> Iterator[None]:
    """Turn any error of a block that reads the file `path` as `what` into an error that names both and a `remedy`.

    Readers of damaged files raise nearly everything: KeyError, EOFError, UnpicklingError, zlib.error, MemoryError.

    Raises:
        Unreadable: the file is not `what`, or a file inside it is damaged or of another kind.
        OSError: the file does not exist or may not be read; as raised by the reader.
    """
    try:
        if Path(path).exists():
            Path(path).open("rb").close()  # some readers report a file without read permission as missing
        yield
    except Unreadable:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        said = textwrap.shorten(f"{type(error).__name__}: {error}".removesuffix(": "), _LONGEST)
        raise Unreadable(f"{path} is not {what} ({said}); {remedy}") from error
