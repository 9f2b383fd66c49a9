"""Campaigns: kills, broken disks, bad inputs and hostile servers, by the hundred, and how many the package survives.

`python tests/campaigns.py` runs all cases without an outcome, in about an hour; with names of KINDs, only these kinds.
It can be stopped and started again: outcomes are saved in `_build/campaigns`, with the commit, and failed cases are
tried again. To start from the beginning, delete that folder. With `--save`, a record is written to
`results/benchmarks`, with the record of `planted_faults.py`, and its table to CONTRIBUTING.md. pytest does not collect
this file.

Each case has a number and a seed and can be repeated: `python tests/campaigns.py inputs --only 17`. The modules
`planted_kills`, `planted_disks`, `planted_inputs` and `planted_servers` list the cases, and say what it means to
survive them. A hostile server is survived if only the right file gets the file's name, and an honest server then
completes the download.
"""

import argparse
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import planted_disks
import planted_inputs
import planted_kills
import planted_servers
from campaign_commands import Workplace, make_sound, preload

from dghlib.storage.records import code_version, provenance, write_json

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "_build" / "campaigns"
RECORD = ROOT / "results" / "benchmarks" / "campaigns.json"
FAULTS = RECORD.with_name("planted_faults.json")
PAGE = ROOT / "CONTRIBUTING.md"
HEADER = "| kind | tried | survived at first | survived now |\n|---|---|---|---|\n"
# An audit planted faults before there was a list of them: how many, and how many the tests noticed.
AUDITED = {"planted": 96, "noticed": 72}


def hostile_server(work: Workplace, number: int, draws: random.Random) -> tuple[str, str]:
    """Download from a server that does not send the file."""
    folder = work.folder / f"server{number}"
    folder.mkdir()
    return planted_servers.tried(folder, draws)


Try = Callable[[Workplace, int, random.Random], tuple[str, str]]
KINDS: dict[str, tuple[Try, int]] = {
    "kills": (planted_kills.kill, len(planted_kills.CASES)),
    "disks": (planted_disks.disk, len(planted_disks.CASES)),
    "inputs": (planted_inputs.damaged_input, len(planted_inputs.CASES)),
    "servers": (hostile_server, 40),
}


def sound_files(folder: Path) -> None:
    """Make the files that cases start with."""
    make_sound(folder)
    planted_kills.make_book(folder)


def run(kind: str, numbers: Sequence[int], version: dict[str, Any]) -> None:
    """Run the cases of a kind that have not survived yet."""
    file = KEPT / f"{kind}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {outcome["case"] for outcome in outcomes(kind) if not outcome["problem"]}
    wanted = [number for number in numbers if number not in done or len(numbers) == 1]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        os.chmod(folder, 0o755)  # for the unprivileged account
        work = Workplace(Path(folder), sound_files)
        for number in wanted:
            started = time.monotonic()
            name, problem = KINDS[kind][0](work, number, random.Random(f"{kind} {number}"))
            seconds = round(time.monotonic() - started, 1)
            outcome = {"case": number, "name": name, "problem": problem, "seconds": seconds, **version}
            print(f"{'survived' if not problem else 'FAILED  '} {kind} {number}: {name} {problem}", flush=True)
            with file.open("a") as lines:
                lines.write(json.dumps(outcome) + "\n")
            for path in Path(folder).glob(f"{kind[:-1]}{number}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def attempts(kind: str) -> list[dict[str, Any]]:
    """Return all outcomes of a kind, in the order of the attempts."""
    file = KEPT / f"{kind}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def outcomes(kind: str) -> list[dict[str, Any]]:
    """Return the last outcome of each case of a kind."""
    return list({outcome["case"]: outcome for outcome in attempts(kind)}.values())


def survived(found: Sequence[Mapping[str, Any]]) -> int:
    """Return how many outcomes have no problem."""
    return sum(not outcome["problem"] for outcome in found)


def summed_up() -> dict[str, dict[str, int]]:
    """Return for each kind how many cases were tried, survived at first, and survived in the last attempt."""
    table = {}
    for kind in KINDS:
        first = {outcome["case"]: outcome for outcome in reversed(attempts(kind))}
        last = outcomes(kind)
        table[kind] = {"tried": len(last), "survived at first": survived(list(first.values()))}
        table[kind]["survived now"] = survived(last)
    return table


def save(version: dict[str, Any]) -> None:
    """Write a record of all outcomes and their commits, and its table."""
    found = {kind: outcomes(kind) for kind in KINDS}
    if any(one["modified"] for each in found.values() for one in each):
        raise SystemExit(f"some outcomes are of modified code: delete {KEPT} and start again")
    outputs: dict[str, Any] = {"kinds": summed_up()}
    outputs["failed"] = [{"kind": kind, **one} for kind, each in found.items() for one in each if one["problem"]]
    outputs["commits"] = sorted({one["commit"] for each in found.values() for one in each})
    if FAULTS.exists():
        faults = json.loads(FAULTS.read_text())["outputs"]
        outputs["faults"] = {"planted": faults["planted"], "noticed": faults["noticed"], "audited": AUDITED}
    seconds = sum(one["seconds"] for each in found.values() for one in each)
    made = provenance(seconds) | version
    write_json(RECORD, {"inputs": {"benchmark": "campaigns"}, "outputs": outputs, "provenance": made})
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(re.escape(HEADER) + r"(\|.*\n)*", lambda _: table_of(outputs), page), encoding="utf-8")
    print(RECORD)


def table_of(outputs: Mapping[str, Any]) -> str:
    """Return the table of a record, as CONTRIBUTING.md has it."""
    counts = ("tried", "survived at first", "survived now")
    found = {kind: outputs["kinds"][kind] for kind in KINDS}  # entries of a record are sorted by name
    rows = [f"| {kind} | {' | '.join(str(each[count]) for count in counts)} |" for kind, each in found.items()]
    if faults := outputs.get("faults"):
        audited = "{noticed} of {planted}".format(**faults["audited"])
        rows.append(f"| faults | {faults['planted']} | {audited} | {faults['noticed']} |")
    return HEADER + "\n".join(rows) + "\n"


def main() -> None:
    """Run the cases that are asked for, and print how they ended."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; default: all")
    options.add_argument("--only", type=int, nargs="*", help="numbers of cases to repeat")
    options.add_argument("--known", action="store_true", help="run nothing, and sum up the saved outcomes")
    options.add_argument("--save", action="store_true", help="write a record to results/benchmarks")
    chosen = options.parse_args()
    version = code_version()
    if not chosen.known:
        preload()
    for kind in chosen.kinds or KINDS:
        if not chosen.known:
            run(kind, range(KINDS[kind][1]) if chosen.only is None else chosen.only, version)
        print(f"{kind}: {survived(outcomes(kind))} of {len(outcomes(kind))} survived")
    if chosen.save:
        save(version)


if __name__ == "__main__":
    main()
