"""Records: fingerprints that depend only on inputs, and files that are complete or do not exist."""

import dataclasses
import errno
import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from dghlib.storage import records


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = 3
    path: Path = Path("a/b")
    bits: tuple[int, ...] = (4, 8)


def test_fingerprints_depend_on_values_not_on_order_or_container():
    assert records.fingerprint({"a": 1, "b": (1, 2)}) == records.fingerprint({"b": [1, 2], "a": 1})
    assert records.fingerprint(Settings()) != records.fingerprint(Settings(steps=4))
    assert records.fingerprint({"a": 1}) != records.fingerprint({"a": 1.5})


def test_fingerprints_never_change():
    # A change makes all existing records useless.
    assert records.fingerprint({"a": 1, "b": [1.5, None, "x"]}) == "51824779aebdb7de"


def test_settings_added_later_keep_earlier_fingerprints():
    @dataclasses.dataclass(frozen=True)
    class Grown(Settings):
        turns: float = records.added_later(0.0)
        scaled: bool = records.added_later(True, before=False)

    assert records.fingerprint(Grown(scaled=False)) == records.fingerprint(Settings())
    assert records.fingerprint(Grown(scaled=False, turns=1.0)) != records.fingerprint(Settings())
    assert records.plain(Grown(turns=1.0))["turns"] == 1.0
    assert records.plain(Grown())["scaled"] is True, "the default now differs from the value before"
    assert records.always_recorded(Grown) == {"steps", "path", "bits"}


def test_settings_added_later_and_on_by_default_are_recorded():
    @dataclasses.dataclass(frozen=True)
    class Grown(Settings):
        integers: bool = records.added_later(True, before=False)

    assert records.fingerprint(Grown(integers=False)) == records.fingerprint(Settings())
    assert records.plain(Grown())["integers"] is True


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_values_that_json_cannot_represent_are_refused_by_type(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        records.plain({"x": value})


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
    target = tmp_path / "record.json"
    target.write_text("old")

    def disk_full(path: Path) -> None:
        path.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"could not write .*record.json: No space left"):
        records.write_atomically(target, disk_full)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail]\nin C++"), SafetensorError("I/O error")])
def test_full_disks_are_reported_with_path_and_remedy_whatever_the_error(error, tmp_path):
    def disk_full(path: Path) -> None:
        raise error

    with pytest.raises(OSError, match=r"could not write .*/m: .*MB are free there: make room, or name") as told:
        records.write_atomically(tmp_path / "m", disk_full)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_failed_file_is_named_once(tmp_path):
    def write(folder: Path) -> None:
        folder.mkdir()
        records.write_atomically(folder / "file", lambda path: exec('raise OSError(28, "No space left on device")'))

    with pytest.raises(
        OSError, match=r"^\[Errno 28\] could not write \S*/set: No space left on device; \d+ MB are free"
    ):
        records.write_folder_atomically(tmp_path / "set", write)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_renamed_when_it_is_complete(tmp_path):
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "1").touch()
        assert not list((tmp_path / "set").iterdir())
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "set").mkdir()
    fails = True
    with pytest.raises(OSError, match="No space left"):
        records.write_folder_atomically(tmp_path / "set", write)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    fails = False
    records.write_folder_atomically(tmp_path / "set", write)
    assert (tmp_path / "set" / "1").exists()


def _sound_record(folder: Path) -> Path:
    inputs = {"model": "m"}
    path = folder / f"{records.fingerprint(inputs)}.json"
    records.write_json(path, {"inputs": inputs, "outputs": {"top1": 1.0}, "provenance": records.provenance(0.1)})
    return path


def test_an_intact_record_is_read(tmp_path):
    record = records.read_record(_sound_record(tmp_path))
    assert record is not None
    assert record["outputs"] == {"top1": 1.0}
    assert {"commit", "modified", "versions", "machine", "seconds"} <= record["provenance"].keys()


def test_provenance_names_the_processor_and_the_threads():
    first = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: A Processor"
    assert records.processor_in(f"{first}\n\nprocessor\t: 1\nmodel\t: 7\n") == "A Processor (cpu family 6, model 143)"
    assert records.processor_in("") == (platform.processor() or platform.machine())
    kernels = torch.backends.cpu.get_cpu_capability()
    assert records.provenance(0.1)["machine"].endswith(f", {kernels}, {torch.get_num_threads()} threads")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"m"', '"n"'),
        lambda text: text.replace("1.0", "NaN"),
        lambda text: text.replace("1.0", "1e999"),
        lambda text: text.replace('{\n  "top1": 1.0\n }', "[1.0]"),
        lambda text: text.replace('{\n  "top1": 1.0\n }', "{}"),
        lambda text: text.replace("1.0", '"high"'),
        lambda text: text.replace("1.0", "null"),
    ],
)
def test_a_corrupt_record_is_set_aside_and_reported(tmp_path, damage, caplog):
    path = _sound_record(tmp_path)
    path.write_text(damage(path.read_text()))
    assert records.read_record(path) is None
    assert not path.exists()
    assert path.with_name(path.name + ".corrupt").exists()
    assert "computed again" in caplog.text
    again = _sound_record(tmp_path)
    again.write_text("torn")
    records.read_record(again)
    assert len(list(tmp_path.glob("*.corrupt*"))) == 2


def test_a_record_names_its_commit_and_whether_code_was_modified(tmp_path, monkeypatch):
    code = tmp_path / "package" / "another_room" / "code.py"
    code.parent.mkdir(parents=True)
    code.write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "package" / "storage" / "records.py"))
    records.code_version.cache_clear()
    assert not records.provenance(0)["modified"]
    code.write_text("x = 2\n")
    assert not records.provenance(0)["modified"]  # the code that runs is the code at the first call
    records.code_version.cache_clear()
    assert records.provenance(0)["modified"]
    records.code_version.cache_clear()


def test_a_missing_record_is_none(tmp_path):
    assert records.read_record(tmp_path / "0123456789abcdef.json") is None


def test_json_text_is_reproducible(tmp_path):
    for name, value in {"a": {"y": 1, "x": 2}, "b": {"x": 2, "y": 1}}.items():
        records.write_json(tmp_path / name, value)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    assert json.loads((tmp_path / "a").read_text()) == {"x": 2, "y": 1}


def test_written_files_have_the_usual_permissions(tmp_path):
    usual, written = tmp_path / "usual", tmp_path / "written"
    usual.touch()

    def for_me_alone(temporary: Path) -> None:
        temporary.write_text("text")
        temporary.chmod(0o600)

    records.write_atomically(written, for_me_alone)
    assert written.stat().st_mode == usual.stat().st_mode
