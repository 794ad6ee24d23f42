"""The checks in their order, the collection of their findings over the processes, and the report."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

from infogan_dist.console import ERROR_DELAY_S
from infogan_dist.errors import UserError
from infogan_dist.preflight.communication import check_communication, check_settings
from infogan_dist.preflight.config import check_config, check_processes
from infogan_dist.preflight.finding import FAIL, OK, SKIPPED, WARN, Finding, Findings, PreflightContext

# The check that sets an attribute of the context.
SET_BY = {"config": "config", "manifest": "manifest", "checkpoint_bytes": "networks"}
LISTED_FINDINGS = 5  # findings of one check and level that are printed; the others are counted
REPORT_TIMEOUT_S = 3600  # for a process that may still be reading its shards
EXIT_TIMEOUT_S = 10


@dataclass(frozen=True)
class Check:
    """One of the doctor's checks.

    Attributes:
        name: printed in front of its findings.
        function: yields its findings.
        requires: attribute of the context that an earlier check must have set, or None.
    """

    name: str
    function: Callable[[PreflightContext], Findings]
    requires: str | None = None


def checks(with_run: bool) -> Iterator[Check]:
    """Yield the checks in their order: of the machine and, if `with_run`, of a run.

    The processes are connected before most checks, so that their findings can be collected. The config
    follows, because it is checked within a fraction of a second. The modules of the other checks take seconds
    to import (torch, Accelerate, W&B), so they are imported only when their turn comes.
    """
    yield Check("launcher", check_settings)
    yield Check("communication", check_communication)
    if with_run:
        yield Check("config", check_config)
        yield Check("processes", check_processes, "config")

    from infogan_dist.preflight import machine

    yield Check("versions", machine.check_versions)
    yield Check("devices", machine.check_devices)
    yield Check("signals", machine.check_signals)
    if not with_run:
        return

    from infogan_dist.preflight import data, disk, run

    yield Check("precision", run.check_precision, "config")
    yield Check("CUDA graph", run.check_cuda_graph, "config")
    yield Check("trackers", run.check_trackers, "config")
    yield Check("run folder", disk.check_run_folder, "config")
    yield Check("disk cache", disk.check_disk_cache, "config")
    yield Check("manifest", data.check_manifest, "config")
    yield Check("lanes", data.check_lanes, "manifest")
    yield Check("networks", run.check_networks, "manifest")
    yield Check("scores", run.check_run_scores, "manifest")
    yield Check("checkpoints", disk.check_checkpoints, "manifest")
    yield Check("disk", disk.check_disk, "checkpoint_bytes")
    yield Check("memory", data.check_memory, "manifest")
    yield Check("shared memory", data.check_shared_memory, "manifest")
    yield Check("shards", data.check_shards, "manifest")


def examine(context: PreflightContext, output: Callable[[str], None], quiet: bool = False) -> bool:
    """Run all checks, and report the findings of all processes.

    Args:
        context: the machine and the run.
        output: receives each line of the report on the first process; if the processes cannot connect, each
            of them reports that.
        quiet: report warnings and failures only.

    Returns:
        Whether a check failed on any process; the same on all processes if they can communicate.
    """
    failed = False
    for check in checks(with_run=bool(context.arguments)):
        findings = collect(context, check.name, run_check(context, check))
        failed |= any(finding.level == FAIL for of_process in findings for finding in of_process)
        if context.place.is_first or (context.store is None and check.name == "communication"):
            for line in report_lines(check.name, findings, quiet):
                output(line)
    return failed_anywhere(context, failed)


def run_check(context: PreflightContext, check: Check) -> list[Finding]:
    """Return the findings of a check on this process; an error of the check is one of them."""
    if check.requires is not None and getattr(context, check.requires) is None:
        return [Finding(SKIPPED, f"not checked, see {SET_BY[check.requires]}")]
    findings: list[Finding] = []
    try:
        for finding in check.function(context):
            findings.append(finding)  # one by one, so that findings before an error are not lost
    except UserError as error:
        findings.append(Finding(FAIL, str(error)))
    except Exception as error:
        message = f"the check ended with {type(error).__name__}: {error}"
        findings.append(
            Finding(FAIL, message, "correct the cause, or report the error if it is in the check")
        )
    return findings


def collect(context: PreflightContext, name: str, findings: list[Finding]) -> list[list[Finding]]:
    """Return the findings of a check of every process, by rank.

    Args:
        context: with the store that the processes share, if they can communicate.
        name: the check's.
        findings: those of this process.

    Returns:
        On the first process, the findings of each process. On the others, and where the processes cannot
        communicate, only those of this process.
    """
    store, place = context.store, context.place
    if store is None:
        return [findings]
    store.set(f"{name}/{place.rank}", json.dumps([asdict(finding) for finding in findings]))
    if not place.is_first:
        return [findings]
    collected = [findings]
    for rank in range(1, place.world):
        try:
            store.wait([f"{name}/{rank}"], timedelta(seconds=REPORT_TIMEOUT_S))
        except RuntimeError:
            message = f"process {rank} has not reported within {REPORT_TIMEOUT_S} s"
            findings.append(Finding(FAIL, message, "read its own output"))
            context.store = None
            break
        collected.append([Finding(**entry) for entry in json.loads(store.get(f"{name}/{rank}"))])
    return collected


def report_lines(name: str, findings: list[list[Finding]], quiet: bool = False) -> list[str]:
    """Return a line for each finding of the first process, and for others of the other processes.

    Args:
        name: the check's.
        findings: those of each process, by rank.
        quiet: omit findings that are `OK` or `SKIPPED`.
    """
    ranks_by_finding: dict[Finding, list[int]] = {}
    for rank, of_process in enumerate(findings):
        for finding in of_process:
            ranks_by_finding.setdefault(finding, []).append(rank)
    levels = (WARN, FAIL) if quiet else (OK, SKIPPED, WARN, FAIL)
    lines: dict[str, list[str]] = {level: [] for level in levels}
    for finding, ranks in ranks_by_finding.items():
        level, processes = finding.level, ""
        if ranks[0] > 0 and not finding.shared:
            more = ", ..." if len(ranks) > LISTED_FINDINGS else ""
            processes = f"process {', '.join(map(str, ranks[:LISTED_FINDINGS]))}{more}: "
            if level == OK:
                if not finding.uniform:
                    continue  # figures of that process alone
                level, processes = WARN, f"not the same as on process 0, {processes}"
        if level in lines:
            text = "; ".join(filter(None, (finding.message, finding.remedy)))
            lines[level].append(f"{level:4} {name:13} {processes}{' '.join(text.split())}")
    for level, of_level in lines.items():
        if len(of_level) > LISTED_FINDINGS:
            rest = len(of_level) - LISTED_FINDINGS
            of_level[LISTED_FINDINGS:] = [
                f"{level:4} {name:13} {len(of_level)} in total, {rest} more like these"
            ]
    return [line for of_level in lines.values() for line in of_level]


def failed_anywhere(context: PreflightContext, failed: bool) -> bool:
    """Return whether a check failed on any process.

    The first process has collected all findings. It hosts the store, so it waits for the others to read it.

    Args:
        context: with the store that the processes share, if they can communicate.
        failed: whether a check failed, as far as this process has collected.
    """
    store, place = context.store, context.place
    if store is None:
        if not place.is_first:
            time.sleep(ERROR_DELAY_S)
        return failed
    others = [f"left/{rank}" for rank in range(1, place.world)]
    try:
        if place.is_first:
            store.set("failed", str(failed))
            with suppress(RuntimeError):
                store.wait(others, timedelta(seconds=EXIT_TIMEOUT_S))
            return failed
        store.wait(["failed"], timedelta(seconds=REPORT_TIMEOUT_S))
        failed = store.get("failed") == b"True"
        store.set(f"left/{place.rank}", "")
    except RuntimeError:
        return True  # the first process has ended
    return failed
