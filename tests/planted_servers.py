"""Servers that send something other than the requested file, as `campaigns.py` draws them."""

import contextlib
import gzip
import hashlib
import io
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from test_assets import Server

from dghlib.storage import assets
from dghlib.storage.assets import Manifest


def tried(folder: Path, draws: random.Random) -> tuple[str, str]:
    """Download from a hostile server, then from an honest one; return what it sent, and what went wrong."""
    file = io.BytesIO()
    torch.save({"weight": torch.arange(50_000.0)}, file)
    content = file.getvalue()
    known = draws.random() < 0.7  # whether its size and checksum are published
    with _serving() as server:
        manifest = Manifest(
            path="things/file.bin",
            profile="test",
            url=server.url,
            origin="a campaign",
            licence="none",
            bytes=len(content) if known else None,
            sha256=hashlib.sha256(content).hexdigest() if known else "",
        )
        assets.use_data_dir(folder)
        name = f"{_made_hostile(server, content, draws)}, sum {'known' if known else 'unknown'}"
        return name, _problem(server, manifest, content)


def _made_hostile(server: Server, content: bytes, draws: random.Random) -> str:
    sent = {
        "the file": content,
        "a page": b"<!DOCTYPE html><title>Sign in</title>",
        "nothing": b"",
        "zeros": bytes(len(content)),
        "a part": content[: draws.randrange(1, len(content))],
        "its end": content[draws.randrange(1, 999) :],
        "more": content + b"more",
        "a compressed file": gzip.compress(content),
        "one byte changed": content[:999] + bytes([content[999] ^ 1]) + content[1000:],
    }
    what = draws.choice(list(sent))
    server.content = sent[what]
    server.statuses = [draws.choice([301, 403, 404, 416, 429, 500, 503]) for _ in range(draws.randrange(3))]
    server.cuts = [draws.randrange(1, len(content)) for _ in range(draws.randrange(4))]
    server.knows_ranges = draws.random() < 0.7
    server.shift = draws.choice([0, 0, 7, -1])
    server.encoding = draws.choice(["", "", "gzip"])
    ways = [f"statuses {server.statuses}", f"cut at {server.cuts}", f"ranges {server.knows_ranges}"]
    return f"sends {what}, " + ", ".join([*ways, f"shifted by {server.shift}", f"coding {server.encoding!r}"])


def _problem(server: Server, manifest: Manifest, content: bytes) -> str:
    target = assets.data_dir() / manifest.path
    try:
        assets.fetch(manifest, progress=False)
    except (OSError, ValueError) as error:
        if "\n" in str(error) or not (manifest.url in str(error) or str(target) in str(error)):
            return f"told without address and path: {error!r}"
    if target.exists() and target.read_bytes() != content:
        # Without a checksum, a changed byte of a tensor cannot be noticed; everything else can.
        if manifest.sha256 or len(target.read_bytes()) != len(content):
            return "another file has its name"
        target.unlink()
    honest = Server(url=server.url, content=content)
    server.__dict__.update(honest.__dict__)
    for _ in range(2):  # the first notices the bytes that were kept of the hostile server
        with contextlib.suppress(ValueError):
            assets.fetch(manifest, progress=False)
        if target.exists() and target.read_bytes() == content:
            left = [path.name for path in target.parent.iterdir() if path != target]
            return f"left {left}" if left else ""
    return "the download from an honest server fails"


@contextlib.contextmanager
def _serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    assets.RETRY_DELAYS = (0, 0)  # type: ignore[assignment]
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/file.bin"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state
        http.shutdown()
        thread.join()
