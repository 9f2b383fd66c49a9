"""The programs that are run on demand, campaigns and planted faults, in small, and the table of their results."""

import json
import random
from pathlib import Path

import campaign_commands
import campaigns
import planted_disks
import planted_faults
import planted_inputs
import planted_kills
import planted_servers
import pytest

from dghlib.storage import assets

ROOT = Path(__file__).parents[1]


def test_nearly_all_faults_can_be_planted() -> None:
    faults, stale = planted_faults.listed(), []
    for fault in faults:
        text = (ROOT / "dghlib" / fault.file).read_text(encoding="utf-8")
        if text.count(fault.old) == 1:
            compile(planted_faults.planted(fault, text), fault.file, "exec")
        else:
            stale.append(str(fault))
    assert len(faults) - len(stale) >= 200
    assert len(stale) <= 0.05 * len(faults), f"renew {planted_faults.LIST.name}: {stale}"


def test_a_fault_whose_text_is_missing_cannot_be_planted() -> None:
    fault = planted_faults.Fault("seeds.py", "no such text", "", ())
    with pytest.raises(
        ValueError, match=r"seeds\.py holds 'no such text' 0 times, not once: renew planted_faults\.txt"
    ):
        planted_faults.planted(fault, "text")


def test_a_hostile_server_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.DATA_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(assets, "RETRY_DELAYS", (0, 0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert planted_servers.tried(tmp_path, random.Random("servers 3"))[1] == ""


@pytest.mark.parametrize(
    ("status", "said", "problem"),
    [
        (1, "a bar:  50%|## | 1/2\ndgh: x.npz is not an .npz file; write one", ""),
        (1, "dgh: it is damaged", "does not name x.npz"),
        (0, "", "exit status 0"),
        (-7, "", "killed by signal 7"),
        (1, "dgh: KeyError: 'x.npz' (--traceback shows where)", "not for users"),
        (1, "Traceback (most recent call last)\nKeyError: 'x.npz'", "not told in one line"),
        (1, "[enforce fail at alloc_cpu.cpp]\ndgh: x.npz is damaged", "beside the error"),
        (1, f"dgh: x.npz is damaged\n{campaign_commands.CHANGED}", "CHANGED"),
    ],
)
def test_an_error_is_one_line_that_names_the_file(status: int, said: str, problem: str) -> None:
    found = campaign_commands.told(campaign_commands.Ended(status, said, 0.0), "x.npz")
    assert problem in found
    assert bool(problem) == bool(found)


def test_leftovers_of_a_killed_command_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "OUT.safetensors").write_bytes(b"whole")
    (tmp_path / ".OUT.safetensors.lock").touch()
    left = campaign_commands.content_of(tmp_path)
    assert campaign_commands.differing(left, {"OUT.safetensors": b"whole"}).endswith(": .OUT.safetensors.lock")
    assert campaign_commands.differing({"OUT.safetensors": b"half"}, {"OUT.safetensors": b"whole"})
    assert not campaign_commands.differing({"OUT.safetensors": b"whole"}, {"OUT.safetensors": b"whole"})


def test_the_table_in_contributing_matches_the_record() -> None:
    found = json.loads(campaigns.RECORD.read_text(encoding="utf-8"))["outputs"]
    assert campaigns.table_of(found) in campaigns.PAGE.read_text(encoding="utf-8")
    assert found["faults"]["noticed"] >= 0.95 * found["faults"]["planted"]


def test_first_and_last_outcomes_are_counted_separately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "KEPT", tmp_path)
    lines = [{"case": 1, "problem": "a traceback"}, {"case": 2, "problem": ""}, {"case": 1, "problem": ""}]
    (tmp_path / "inputs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert campaigns.summed_up()["inputs"] == {"tried": 2, "survived at first": 1, "survived now": 2}


def test_cases_are_many_and_their_names_are_unique() -> None:
    names = [case.name for case in planted_inputs.CASES]
    assert len(set(names)) == len(names) >= 250
    assert len(planted_kills.CASES) >= 100
    assert len(planted_disks.CASES) >= 40
