"""Finding, verifying and downloading files, from a server on the loopback interface."""

import errno
import gzip
import hashlib
import io
import logging
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from dghlib.choices import UnknownName
from dghlib.storage import assets
from dghlib.storage.archives import DamagedArchive
from dghlib.storage.assets import DownloadFailed, Manifest, MissingAsset, WrongChecksum
from dghlib.storage.reading import Unreadable

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Server:
    """The next answers of the server; `ranges` holds the Range header of every request so far."""

    url: str = ""
    content: bytes = CONTENT
    statuses: list[int] = field(default_factory=list)  # status codes of the first requests, before any 200
    cuts: list[int] = field(default_factory=list)  # bytes after which to close the connection, one number a request
    knows_ranges: bool = True
    shift: int = 0  # offset of the ranges that it claims to send
    encoding: str = ""
    ranges: list[str | None] = field(default_factory=list)
    sent: int = 0  # bytes, all requests together

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"]
        self.ranges.append(asked)
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.knows_ranges else 0
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        if start:
            request.send_header("Content-Range", f"bytes {start + self.shift}-{len(self.content) - 1}/*")
        if self.encoding:
            request.send_header("Content-Encoding", self.encoding)
        request.end_headers()
        body = body[: self.cuts.pop(0)] if self.cuts else body
        with suppress(ConnectionError):  # the client may close the connection too
            for at in range(0, len(body), len(CONTENT)):
                self.sent += request.wfile.write(body[at : at + len(CONTENT)])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/file.bin"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory; after dropped connections, 2 more attempts follow at once."""
    monkeypatch.setenv("DGHLIB_DATA", str(tmp_path))
    monkeypatch.setattr(assets, "RETRY_DELAYS", (0, 0))
    return tmp_path / "things"


@pytest.fixture
def manifest(server: Server) -> Manifest:
    return Manifest(
        path="things/file.bin",
        profile="test",
        url=server.url,
        origin="this file",
        licence="none",
        bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Archives whose bytes may differ


def zipped(members: dict[str, bytes], root: str = "repository-1234") -> bytes:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{root}/{name}", content)
    return stored.getvalue()


MEMBERS = {"images/b.png": b"second", "images/a.png": b"first", "list.txt": b"a b", "README.md": b"other"}


@pytest.fixture
def packed(manifest: Manifest) -> Manifest:
    """The manifest of an archive that is verified by the names and checksums of its images and its list."""
    lines = sorted(
        f"{Path(name).name} {hashlib.sha256(content).hexdigest()}\n"
        for name, content in MEMBERS.items()
        if name != "README.md"
    )
    contents = hashlib.sha256("".join(lines).encode()).hexdigest()
    return replace(manifest, bytes=None, sha256=contents, members=["images/*.png", "list.txt"])


def test_an_archive_is_verified_by_its_contents(folder: Path, packed: Manifest, server: Server) -> None:
    """Another folder, another order and additional files do not change the images."""
    server.content = zipped(MEMBERS)
    path = assets.fetch(packed, progress=False)
    path.unlink()
    server.content = zipped(dict(reversed((MEMBERS | {"more": b""}).items())), "elsewhere")
    assert assets.fetch(packed, progress=False) == path


@pytest.mark.parametrize("change", [{"images/a.png": b"First"}, {"images/c.png": b"third"}])
def test_a_changed_image_in_an_archive_is_noticed(
    change: dict[str, bytes], folder: Path, packed: Manifest, server: Server
) -> None:
    server.content = zipped(MEMBERS | change)
    with pytest.raises(WrongChecksum, match="holds files whose checksum is"):
        assets.fetch(packed, progress=False)
    assert files_in(folder) == {}


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: content.replace(b"first", b"fiRst")])
def test_a_damaged_archive_is_not_kept(
    damage: Callable[[bytes], bytes], folder: Path, packed: Manifest, server: Server
) -> None:
    server.content = damage(zipped(MEMBERS))
    with pytest.raises(DamagedArchive, match=r"file.bin.part is damaged or not a zip archive"):
        assets.fetch(packed, progress=False)
    assert files_in(folder) == {}


# Downloads


def test_a_complete_download_is_verified_and_renamed(folder: Path, manifest: Manifest) -> None:
    assert assets.fetch(manifest, progress=False) == folder / "file.bin"
    assert files_in(folder) == {"file.bin": CONTENT}


def test_existing_files_are_not_downloaded_again(folder: Path, manifest: Manifest, server: Server) -> None:
    for _ in range(2):
        assets.fetch(manifest, progress=False)
    assert server.ranges == [None]


def test_an_interrupted_download_is_resumed(folder: Path, manifest: Manifest, server: Server) -> None:
    server.cuts = [400_000, 100_000]
    assets.fetch(manifest, progress=False)
    assert server.ranges == [None, "bytes=400000-", "bytes=500000-"]
    assert files_in(folder) == {"file.bin": CONTENT}


def test_a_file_of_unknown_size_is_received_to_its_end(folder: Path, manifest: Manifest, server: Server) -> None:
    server.cuts = [400_000]
    assets.fetch(replace(manifest, bytes=None), progress=False)
    assert server.ranges == [None, "bytes=400000-"]
    assert files_in(folder) == {"file.bin": CONTENT}


def test_a_complete_part_of_unknown_size_is_renamed(folder: Path, manifest: Manifest, server: Server) -> None:
    folder.mkdir()
    (folder / "file.bin.part").write_bytes(CONTENT)
    server.statuses = [416]
    assets.fetch(replace(manifest, bytes=None), progress=False)
    assert files_in(folder) == {"file.bin": CONTENT}


def test_a_shortened_checksum_is_checked(folder: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    assets.fetch(replace(manifest, sha256=manifest.sha256[:8]), progress=False)
    assert not caplog.records
    with pytest.raises(WrongChecksum, match="says 00000000"):
        assets.fetch(replace(manifest, sha256="00000000"), progress=False)


def _weights() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(300_000)}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "sent", [b"<!DOCTYPE html>", _weights()[:-1000], gzip.compress(_weights()), _weights()[5:], bytes(9999)]
)
def test_weights_without_a_checksum_must_be_a_checkpoint(
    folder: Path, manifest: Manifest, server: Server, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = replace(manifest, sha256="", bytes=None)
    server.content = sent
    with pytest.raises(Unreadable, match=r"not a checkpoint of torch .*/file\.bin sent it: try again later"):
        assets.fetch(unknown, progress=False)
    assert files_in(folder) == {}
    server.content = _weights()
    assets.fetch(unknown, progress=False)
    assert files_in(folder) == {"file.bin": _weights()}
    assert "cannot be verified" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"), [({"shift": 7}, "asked for the bytes from 1000 on"), ({"encoding": "gzip"}, "in gzip")]
)
def test_an_answer_with_other_bytes_is_not_appended(
    folder: Path, manifest: Manifest, server: Server, wrong: dict[str, Any], message: str
) -> None:
    folder.mkdir()
    (folder / "file.bin.part").write_bytes(CONTENT[:1000])
    for name, value in wrong.items():
        setattr(server, name, value)
    with pytest.raises(DownloadFailed, match=message):
        assets.fetch(manifest, progress=False)
    assert files_in(folder) == {"file.bin.part": CONTENT[:1000]}


def test_two_simultaneous_downloads_fetch_the_file_once(folder: Path, manifest: Manifest, server: Server) -> None:
    downloads = [threading.Thread(target=assets.fetch, args=(manifest,), kwargs={"progress": False}) for _ in range(4)]
    for download in downloads:
        download.start()
    for download in downloads:
        download.join()
    assert server.ranges == [None]
    assert files_in(folder) == {"file.bin": CONTENT}


def test_a_part_that_is_a_symbolic_link_is_refused(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"of somebody")
    (folder / "file.bin.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"symbolic links: .*file\.bin\.part"):
        assets.fetch(manifest, progress=False)
    assert (tmp_path / "elsewhere").read_bytes() == b"of somebody"


@pytest.mark.parametrize(
    "changed", [{"path": "../x"}, {"path": "/etc/x"}, {"path": "a/../../x"}, {"path": ""}, {"url": "file:///etc/x"}]
)
def test_paths_and_addresses_that_lead_elsewhere_are_refused(manifest: Manifest, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a manifest's"):
        replace(manifest, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"path": 3}, "path is text, got 3"),
        ({"bytes": "many"}, "bytes must be a number, got 'many'"),
        ({"bytes": 0}, "bytes must be from 1 to inf, got 0"),
        ({"sha256": "none"}, "hexadecimal digits, got 'none'"),
        ({"members": 3}, "patterns of file names, got 3"),
    ],
)
def test_manifest_fields_of_wrong_types_are_refused(manifest: Manifest, changed: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        replace(manifest, **changed)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"path": "x"}', "[" * 100_000])
def test_an_unreadable_manifest_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.json").write_text(text)
    monkeypatch.setattr(assets, "MANIFESTS", tmp_path)
    assets.manifests.cache_clear()
    with pytest.raises(Unreadable, match=r"own\.json is not a manifest"):
        assets.manifests()
    assets.manifests.cache_clear()


def test_after_too_many_interruptions_the_bytes_are_kept_for_the_next_run(
    folder: Path, manifest: Manifest, server: Server
) -> None:
    server.cuts = [100_000, 100_000, 100_000]
    with pytest.raises(DownloadFailed, match=r"closed early. 300000 of 1048576 bytes are kept in .*\.part"):
        assets.fetch(manifest, progress=False)
    assert files_in(folder) == {"file.bin.part": CONTENT[:300_000]}
    assets.fetch(manifest, progress=False)
    assert server.ranges[-1] == "bytes=300000-"
    assert files_in(folder) == {"file.bin": CONTENT}


def test_a_complete_part_needs_no_server(folder: Path, manifest: Manifest, server: Server) -> None:
    folder.mkdir()
    (folder / "file.bin.part").write_bytes(CONTENT)
    assets.fetch(manifest, progress=False)
    assert server.ranges == []
    assert files_in(folder) == {"file.bin": CONTENT}


def test_a_server_without_ranges_sends_the_whole_file_again(folder: Path, manifest: Manifest, server: Server) -> None:
    folder.mkdir()
    (folder / "file.bin.part").write_bytes(CONTENT[:1000])
    server.knows_ranges = False
    assets.fetch(manifest, progress=False)
    assert files_in(folder) == {"file.bin": CONTENT}


@pytest.mark.parametrize("sent", [CONTENT[:-1] + b"x", CONTENT + b"more"], ids=["changed", "longer"])
def test_a_wrong_checksum_is_reported_and_nothing_is_left(
    folder: Path, manifest: Manifest, server: Server, sent: bytes
) -> None:
    server.content = sent
    with pytest.raises(WrongChecksum) as error:
        assets.fetch(manifest, progress=False)
    assert manifest.sha256 in str(error.value)
    assert hashlib.sha256(sent).hexdigest() in str(error.value)
    assert files_in(folder) == {}


def test_an_endless_answer_is_cut_off(folder: Path, manifest: Manifest, server: Server) -> None:
    server.content = CONTENT * 64  # more than the buffers of a connection can store
    with pytest.raises(WrongChecksum):
        assets.fetch(replace(manifest, bytes=1000), progress=False)
    assert server.sent < len(server.content)
    assert files_in(folder) == {}


def test_an_existing_file_with_other_content_is_not_replaced(folder: Path, manifest: Manifest, server: Server) -> None:
    folder.mkdir()
    (folder / "file.bin").write_bytes(b"the user's own")
    with pytest.raises(WrongChecksum, match=manifest.sha256):
        assets.fetch(manifest, progress=False)
    assert files_in(folder) == {"file.bin": b"the user's own"}
    assert server.ranges == []


def test_a_missing_page_is_not_requested_again(folder: Path, manifest: Manifest, server: Server) -> None:
    server.statuses = [404]
    with pytest.raises(DownloadFailed, match=rf"{re.escape(manifest.url)} answered 404 Not Found"):
        assets.fetch(manifest, progress=False)
    assert len(server.ranges) == 1
    assert files_in(folder) == {}


def test_a_busy_server_is_asked_again(folder: Path, manifest: Manifest, server: Server) -> None:
    server.statuses = [503, 503]
    assets.fetch(manifest, progress=False)
    assert files_in(folder) == {"file.bin": CONTENT}


def test_a_host_that_does_not_answer_is_reported(folder: Path, manifest: Manifest) -> None:
    nowhere = replace(manifest, url="http://127.0.0.1:1/file.bin")
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:1/file\.bin: .*refused.*the same command"):
        assets.fetch(nowhere, progress=False)


def test_a_full_disk_is_reported(folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assets, "_copy", full)
    with pytest.raises(DownloadFailed, match="the disk is full"):
        assets.fetch(manifest, progress=False)


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_can_be_silenced(
    folder: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    assets.fetch(manifest, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("file.bin" in err) == progress


# Files that exist


@pytest.fixture
def known(folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the only file with a manifest, which is named "file" and does not exist yet."""
    monkeypatch.setattr(assets, "manifests", lambda: {"file": manifest})
    folder.mkdir()
    return folder / "file.bin"


def test_a_missing_file_is_reported_with_the_command_that_gets_it(known: Path) -> None:
    with pytest.raises(MissingAsset) as error:
        assets.locate("file")
    for hint in (str(known), "dgh data test", "make data PROFILE=test", "1.0 MB", "DGHLIB_DATA"):
        assert hint in str(error.value)


def test_a_file_is_verified_where_it_lies(known: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    known.write_bytes(CONTENT)
    assert assets.locate("file") == known
    known.write_bytes(CONTENT[:100])  # noticed although the first result is cached
    with pytest.raises(WrongChecksum, match=manifest.sha256) as error:
        assets.locate("file")
    assert hashlib.sha256(CONTENT[:100]).hexdigest() in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert assets.locate("file", strict=False) == known
    assert manifest.sha256 in caplog.text
    assert known.read_bytes() == CONTENT[:100]


def test_an_unknown_file_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cifar10_resnet20'"):
        assets.locate("cifar10_resnet21")


# The data directory


def test_the_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DGHLIB_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert assets.data_dir() == tmp_path / ".cache/dghlib"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert assets.data_dir() == tmp_path / "caches/dghlib"
    monkeypatch.setenv("DGHLIB_DATA", "~/data")
    assert assets.data_dir() == tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    assets.use_data_dir("elsewhere")
    assert assets.data_dir() == tmp_path / "elsewhere"


# The manifests


def test_the_manifests_are_complete() -> None:
    assert list(assets.manifests()) == [
        "cifar10",
        "cifar10_mobilenetv2",
        "cifar10_resnet20",
        "cifar10_resnet56",
        "cifar10_transformer",
        "coco",
        "coco_annotations",
        "coco_fastestdet",
        "coco_fcos",
        "coco_retinanet",
        "coco_ssdlite",
        "imagenet_lite",
        "imagenet_lite_samples",
        "imagenet_mobilenetv2",
        "imagenet_resnet18",
        "imagenet_resnet50",
        "imagenet_torchvision_mobilenetv2",
        "imagenet_torchvision_resnet18",
        "imagenet_torchvision_resnet50",
        "tiny_imagenet",
        "tiny_imagenet_mobilenetv2",
    ]
    for manifest in assets.manifests().values():
        assert manifest.url.startswith("https://")
        not_a_file_name = ":" in manifest.url.removeprefix("https:")  # not a file name on every system
        named_otherwise = not_a_file_name or manifest.members  # or by a commit
        name = Path(manifest.path).name
        if name != "sachin_best_vit_cifar10.pth":  # its address does not contain this name
            assert manifest.url.endswith(Path(name).suffix if named_otherwise else name)
        published_in_part = manifest.bytes is None and not manifest.members
        assert re.fullmatch("[0-9a-f]{8}|" if published_in_part else "[0-9a-f]{64}", manifest.sha256)
        assert not published_in_part or manifest.path.startswith("weights/")
        assert manifest.origin
        assert manifest.licence


def test_a_profile_lists_its_files() -> None:
    assert [Path(m.path).parent.name for m in assets.of_profile("tiny_imagenet")] == [
        "tiny_imagenet",
        "weights",
    ]
    with pytest.raises(UnknownName, match="did you mean 'cifar10'"):
        assets.of_profile("cifar")


@pytest.mark.parametrize("name", [name for name, manifest in assets.manifests().items() if manifest.bytes])
def test_downloaded_files_have_the_size_in_their_manifest(name: str) -> None:
    try:
        path = assets.locate(name)
    except (MissingAsset, WrongChecksum) as error:
        pytest.skip(str(error))
    assert path.stat().st_size == assets.manifests()[name].bytes
