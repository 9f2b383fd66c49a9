"""Locks: one process at a time writes a file, leftovers of killed processes are removed, free locks cost no time."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dghlib.storage.locks import Busy, claim
from dghlib.storage.records import temporary_beside

HOLDER = """
import sys, time
from pathlib import Path
from dghlib.storage.locks import claim
from dghlib.storage.records import temporary_beside

path = Path(sys.argv[1])
with claim(path):
    temporary_beside(path).write_text("half")
    temporary_beside(path).mkdir()
    print("held", flush=True)
    time.sleep(600)
"""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_gets_an_error_and_a_killed_one_leaves_no_files(tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=r"another process is writing .*/images\.safetensors: wait for its end"):
            claim(path).__enter__()
        with claim(tmp_path / "images"):
            pass
        holder.send_signal(signal.SIGKILL)
    assert len(_names(tmp_path)) == 3
    with claim(path):
        assert _names(tmp_path) == [".images.safetensors.lock"]
    assert not _names(tmp_path)


def test_waiting_processes_hold_the_lock_one_at_a_time(tmp_path: Path) -> None:
    path, holders, most = tmp_path / "x", [0], [0]
    lock = threading.Lock()

    def work() -> None:
        for _ in range(20):
            with claim(path, wait=True):
                with lock:
                    holders[0] += 1
                    most[0] = max(most[0], holders[0])
                with lock:
                    holders[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not _names(tmp_path)


def test_other_accounts_can_lock_and_symbolic_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with claim(path):
        assert stat.S_IMODE((tmp_path / ".x.lock").stat().st_mode) == 0o666
    (tmp_path / "elsewhere").write_text("of somebody")
    (tmp_path / ".x.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        claim(path).__enter__()
    assert (tmp_path / "elsewhere").read_text() == "of somebody"


def test_temporary_files_of_other_names_stay(tmp_path: Path) -> None:
    other = temporary_beside(tmp_path / "x.y")
    other.touch()
    with claim(tmp_path / "x"), claim(tmp_path / "y"):
        pass
    assert other.exists()


def test_unwritable_paths_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*: File name too long; name another place"):
        claim(tmp_path / ("n" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 8))).__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        claim(tmp_path / "file" / "x").__enter__()
