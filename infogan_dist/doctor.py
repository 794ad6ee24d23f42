"""Looks for what would end a run, before it costs anything.

    python -m infogan_dist.doctor                                       the machine alone
    python -m infogan_dist.doctor configs/mnist.yaml [key=value ...]    and a run on it
    accelerate launch -m infogan_dist.doctor configs/mnist.yaml         on as many processes as the run

One line for each thing looked at: ok, WARN or FAIL, and what to do. Nothing is left behind in the run folder.
Exit status 2 if something failed, on every process.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta

from infogan_dist.console import ERROR_DELAY_S
from infogan_dist.errors import UserError
from infogan_dist.preflight import machine, run
from infogan_dist.preflight.machine import FAIL, OK, UNSEEN, WARN, Case, Finding, Findings

# In this order: what is looked at, by which function, and what must be known of the case before.
Check = tuple[str, Callable[[Case], Findings], str | None]
MACHINE: list[Check] = [
    ("communication", machine.communication, None),
    ("versions", machine.versions, None),
    ("devices", machine.devices, None),
    ("signals", machine.signals, None),
]
RUN: list[Check] = [
    ("config", run.config, None),
    ("precision", run.precision, "config"),
    ("processes", run.world, "config"),
    ("trackers", run.trackers, "config"),
    ("run folder", run.run_folder, "config"),
    ("disk cache", run.disk_cache, "config"),
    ("manifest", run.manifest, "config"),
    ("lanes", run.lanes, "manifest"),
    ("networks", run.networks, "manifest"),
    ("checkpoints", run.checkpoints, "manifest"),
    ("disk", run.disk, "checkpoint_bytes"),
    ("memory", run.memory, "manifest"),
    ("shared memory", run.shared_memory, "manifest"),
    ("shards", run.shards, "manifest"),
]
# Which check finds it.
NEEDS = {"config": "config", "manifest": "manifest", "checkpoint_bytes": "networks"}
FEW = 5  # findings of one kind that are told; the rest are counted
PATIENCE_S = 3600  # with a process that may still be reading its shards
PARTING_S = 10
PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1"))


def examined(case: Case, check: Callable[[Case], Findings], need: str | None) -> list[Finding]:
    """What a check sees here; that it refuses or breaks is something seen, too."""
    if need is not None and getattr(case, need) is None:
        return [Finding(UNSEEN, f"not looked at: see {NEEDS[need]}")]
    found: list[Finding] = []
    try:
        for finding in check(case):
            found.append(finding)  # one by one: what was seen before an error counts
    except UserError as error:
        found.append(Finding(FAIL, str(error)))
    except Exception as error:
        said = f"cannot be looked at ({type(error).__name__}: {error})"
        found.append(Finding(FAIL, said, "a fault of this check, or of what it looks at"))
    return found


def gathered(case: Case, name: str, found: list[Finding]) -> list[list[Finding]]:
    """Each process's findings, on the first; elsewhere, or where they have not met, this process's own."""
    if case.store is None:
        return [found]
    case.store.set(f"{name}/{case.rank}", json.dumps([asdict(f) for f in found]))
    if not case.is_first:
        return [found]
    everyone = [found]
    for rank in range(1, case.world):
        try:
            case.store.wait([f"{name}/{rank}"], timedelta(seconds=PATIENCE_S))
        except RuntimeError:
            said = f"process {rank} has said nothing for {PATIENCE_S} s"
            everyone[0].append(Finding(FAIL, said, "look at its own output"))
            case.store = None
            break
        everyone.append([Finding(**f) for f in json.loads(case.store.get(f"{name}/{rank}"))])
    return everyone


def report(name: str, everyone: list[list[Finding]]) -> list[str]:
    """One line each: what the first process saw, and what others saw that it did not.

    Args:
        everyone: the findings of each process, the first's first.
    """
    seen_by: dict[Finding, list[int]] = {}
    for rank, findings in enumerate(everyone):
        for finding in findings:
            seen_by.setdefault(finding, []).append(rank)
    told: dict[str, list[str]] = {level: [] for level in (OK, UNSEEN, WARN, FAIL)}
    for finding, ranks in seen_by.items():
        level, who = finding.level, ""
        if ranks[0] > 0 and not finding.shared:
            who = f"process {', '.join(map(str, ranks[:FEW]))}{', ...' if len(ranks) > FEW else ''}: "
            if level == OK:
                if not finding.alike:
                    continue  # its own figures
                level, who = WARN, f"unlike the first, {who}"
        text = "; ".join(filter(None, (finding.seen, finding.remedy)))
        told[level].append(f"{level:4} {name:13} {who}{' '.join(text.split())}")
    for level, lines in told.items():
        if len(lines) > FEW:
            lines[FEW:] = [f"{level:4} {name:13} {len(lines)} in all, {len(lines) - FEW} more like these"]
    return [line for lines in told.values() for line in lines]


def agreed(case: Case, failed: bool) -> bool:
    """Whether something failed on any process: the first one knows, and goes last, for it holds the store."""
    if case.store is None:
        if not case.is_first:
            time.sleep(ERROR_DELAY_S)
        return failed
    peers = [f"left/{rank}" for rank in range(1, case.world)]
    try:
        if case.is_first:
            case.store.set("failed", str(failed))
            with suppress(RuntimeError):
                case.store.wait(peers, timedelta(seconds=PARTING_S))
            return failed
        case.store.wait(["failed"], timedelta(seconds=PATIENCE_S))
        failed = case.store.get("failed") == b"True"
        case.store.set(f"left/{case.rank}", "")
    except RuntimeError:
        return True  # the first one is gone
    return failed


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    rank, world, local = (int(os.environ.get(n, d)) for n, d in PLACE)
    case, failed = Case(words, rank, world, local), False
    for name, check, need in MACHINE + RUN if words else MACHINE:
        everyone = gathered(case, name, examined(case, check, need))
        failed |= any(finding.level == FAIL for findings in everyone for finding in findings)
        if case.is_first or (case.store is None and name == "communication"):
            print("\n".join(report(name, everyone)), flush=True)
    if agreed(case, failed):
        sys.exit(UserError.status)


if __name__ == "__main__":
    main()
