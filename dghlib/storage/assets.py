"""Public files that the package does not contain: their location, their verification, their download.

Every data set and weights file has a manifest, `data_manifests/<name>.json`: its public address, origin,
licence, size and sha256. The files are in a single data directory, the environment variable DGHLIB_DATA or
`~/.cache/dghlib`. Only `fetch` downloads; `locate` finds an existing file and checks it against the manifest.
"""

import errno
import hashlib
import http.client
import json
import logging
import math
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from dghlib.choices import check_between, look_up
from dghlib.storage.archives import DamagedArchive, contents_sha256
from dghlib.storage.locks import claim
from dghlib.storage.reading import Unreadable, reading

DATA_DIR_VARIABLE = "DGHLIB_DATA"
MANIFESTS = Path(__file__).parents[1] / "data_manifests"
CHUNK = 1 << 18  # bytes
TIMEOUT = 60  # seconds without a byte
RETRY_DELAYS = (1, 2, 4, 8, 16)  # seconds before each new try of a dropped connection

logger = logging.getLogger(__name__)


class MissingAsset(FileNotFoundError):
    """A file of a manifest is not in the data directory; the message names the command that downloads it."""


class WrongChecksum(ValueError):
    """A file is not the one that its manifest describes; the message names both checksums."""


class DownloadFailed(OSError):
    """A download ended before its last byte; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a file: `path` is relative to the data directory, the other fields are for people.

    If the publisher states no size, `bytes` is None. `sha256` may have only the first digits, or be empty. With
    `members`, patterns of files in an archive whose own bytes may change, it is their checksum (`contents_sha256`).
    """

    path: str
    profile: str
    url: str
    origin: str
    licence: str
    bytes: int | None
    sha256: str
    members: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        place, scheme = PurePosixPath(self.path), urlsplit(self.url).scheme
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise ValueError(f"a manifest's path must be inside the data directory, got {self.path!r}")
        if scheme not in ("http", "https"):
            raise ValueError(f"a manifest's url must begin with https:// or http://, got {self.url!r}")

    def _check_kinds(self) -> None:
        for name in ("path", "profile", "url", "origin", "licence", "sha256"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"a manifest's {name} is text, got {value!r}")
        if self.bytes is not None:
            check_between(1, math.inf, "a manifest's bytes", self.bytes)
        if not re.fullmatch("[0-9a-f]{,64}", self.sha256):
            raise ValueError(f"a manifest's sha256 is up to 64 hexadecimal digits, got {self.sha256!r}")
        if not isinstance(self.members, Sequence) or not all(isinstance(each, str) for each in self.members):
            raise TypeError(f"a manifest's members are patterns of file names, got {self.members!r}")

    @property
    def size(self) -> str:
        """Return the size of the file in words."""
        return "size unknown" if self.bytes is None else f"{self.bytes / 1e6:.1f} MB"


def data_dir() -> Path:
    """Return the directory that holds data sets and weights: DGHLIB_DATA, or `dghlib` in the user's cache."""
    if chosen := os.environ.get(DATA_DIR_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dghlib"


def use_data_dir(path: str | Path) -> None:
    """Make `path` the data directory of this process and of the processes that it starts, such as notebook kernels."""
    os.environ[DATA_DIR_VARIABLE] = str(Path(path).expanduser().absolute())


@lru_cache
def manifests() -> dict[str, Manifest]:
    """Return the manifests by name; weights have the name of their model, archives the name of their data set.

    Raises:
        Unreadable: a manifest cannot be read; the message names its file.
    """
    return {path.stem: _manifest(path) for path in sorted(MANIFESTS.glob("*.json"))}


def _manifest(path: Path) -> Manifest:
    with reading(path, "a manifest", "data_manifests/ has sound ones"):
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))


def of_profile(profile: str) -> list[Manifest]:
    """Return the manifests of the files that a profile needs.

    Raises:
        UnknownName: no manifest belongs to this profile.
    """
    by_profile: dict[str, list[Manifest]] = {}
    for manifest in manifests().values():
        by_profile.setdefault(manifest.profile, []).append(manifest)
    return look_up(by_profile, profile, "profile with files to download")


def locate(name: str, *, strict: bool = True) -> Path:
    """Return the path of a file in the data directory after its checksum was compared with its manifest.

    Args:
        name: the manifest's name.
        strict: False accepts another checksum with a warning, for archives of which people keep a part.

    Raises:
        UnknownName: there is no such manifest.
        MissingAsset: the file is not there.
        WrongChecksum: it is another file (`strict` only). It stays in its place.
        DamagedArchive: the manifest has a checksum of the archive's contents, and the archive cannot be read.
    """
    manifest = look_up(manifests(), name, "file")
    path = data_dir() / manifest.path
    if not path.is_file():
        raise MissingAsset(
            f"{path} is missing. `dgh data {manifest.profile}` (or `make data PROFILE={manifest.profile}`) "
            f"downloads it, {manifest.size}; or set {DATA_DIR_VARIABLE} (or --data-dir) to "
            "the directory that has it."
        )
    try:
        _verify(path, manifest)
    except WrongChecksum as error:
        if strict:
            raise
        logger.warning("%s Using it all the same.", error)
    return path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hex digits, computed once while its size and its time are unchanged."""
    stat = path.stat()
    return _file_sha256(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache
def _file_sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, manifest: Manifest) -> None:
    if not manifest.sha256:
        logger.warning("%s cannot be verified: its publisher gives no checksum", path)
        return
    found = contents_sha256(path, manifest.members) if manifest.members else file_sha256(path)
    if not found.startswith(manifest.sha256):
        what = "holds files whose checksum is" if manifest.members else "has sha256"
        raise WrongChecksum(
            f"{path} {what} {found}, but its manifest says {manifest.sha256}: not the file published at {manifest.url}."
        )


def fetch(manifest: Manifest, *, progress: bool = True, verify: bool = True) -> Path:
    """Download a file into the data directory, verify it, and return its path.

    An existing correct file stays as it is. An interrupted download continues where it ended: its bytes are kept in
    `<name>.part`, and only a complete file with the right checksum gets its name. Without `verify`, the caller checks
    it.

    If another process downloads the same file, this one waits. Weights without a published checksum must at least be
    readable as weights.

    Raises:
        WrongChecksum, DamagedArchive, Unreadable: the server sent another file, which is deleted; or another file is
            already in its place, and stays there.
        DownloadFailed: there was no answer, a refusal, repeatedly a lost connection, or a full disk. The received
            part is kept.
    """
    target = data_dir() / manifest.path
    with claim(target, wait=True):
        if target.exists():
            if verify:
                _verify(target, manifest)
            return target
        part = target.with_name(target.name + ".part")
        _receive_all(manifest, part, progress)
        try:
            if verify:
                _verify(part, manifest)
            if verify and not manifest.sha256:
                _look(part, manifest)
        except (WrongChecksum, DamagedArchive, Unreadable):
            part.unlink()
            raise
        part.replace(target)
    return target


def _look(part: Path, manifest: Manifest) -> None:
    """Raise Unreadable if torch cannot read weights from a file that has no checksum."""
    import torch

    remedy = f"{manifest.url} sent it: try again later, or put the right file in its place"
    with reading(part, "a checkpoint of torch", remedy):
        torch.load(part, map_location="cpu", weights_only=True)


def _receive_all(manifest: Manifest, part: Path, progress: bool) -> None:
    """Fill `part`; if the connection drops, try again after each of RETRY_DELAYS."""
    delays = iter(RETRY_DELAYS)
    problem: Exception | str = "the connection was closed early"
    expected = manifest.bytes
    while expected is None or _size(part) < expected:
        try:
            expected = _receive(manifest, part, progress)
            if _size(part) >= expected:
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and expected is None and part.exists():
                return  # an earlier run received all of it
            if error.code < 500:
                raise DownloadFailed(f"{manifest.url} answered {error.code} {error.reason}") from error
            problem = error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            problem = error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DownloadFailed(_broken_off(manifest, part, "the disk is full")) from error
            raise
        if (delay := next(delays, None)) is None:
            raise DownloadFailed(_broken_off(manifest, part, problem))
        logger.warning("%s: %s; trying again in %d s", manifest.url, problem, delay)
        time.sleep(delay)


def _broken_off(manifest: Manifest, part: Path, problem: Exception | str) -> str:
    return (
        f"{manifest.url}: {problem}. {_size(part)} of {manifest.bytes or 'all'} bytes are kept in {part}; "
        "the same command goes on from there."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(manifest: Manifest, part: Path, progress: bool) -> int:
    """Append to `part` the bytes of a connection, from its end if the server supports this, otherwise from the start.

    Returns the size of the whole file, from its manifest or from the server.
    """
    start = _size(part)
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(manifest.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        _check_answer(response, start)
        told = response.headers.get("Content-Length")
        whole = manifest.bytes or (start + int(told) if told else sys.maxsize)
        with (
            open(part, "ab" if start else "wb", opener=_without_links) as file,
            tqdm(
                desc=Path(manifest.path).name,
                initial=start,
                total=whole if whole < sys.maxsize else None,
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar,
        ):
            _copy(response, file, bar, whole)
    return whole if whole < sys.maxsize else _size(part)


def _without_links(name: str, flags: int) -> int:
    """Open a file as `open` does, unless it is a link, by which others could make us write elsewhere."""
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def _check_answer(response: http.client.HTTPResponse, start: int) -> None:
    """Raise HTTPException unless an answer contains the file's own bytes, from `start` on."""
    told = response.headers.get("Content-Range", "")
    if start and not told.startswith(f"bytes {start}-"):
        raise http.client.HTTPException(f"asked for the bytes from {start} on, it sent {told or 'others'}")
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise http.client.HTTPException(f"it sent the file in {encoding}, which was not asked for")


def _copy(response: http.client.HTTPResponse, file: BinaryIO, bar: tqdm, limit: int) -> None:
    """Copy until the answer ends, or is longer than `limit` bytes and therefore not the file."""
    while file.tell() <= limit and (chunk := response.read(CHUNK)):
        file.write(chunk)
        bar.update(len(chunk))
