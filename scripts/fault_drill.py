#!/usr/bin/env python
"""Breaks training runs in every way it knows, for real, and checks that each ends as if nothing had happened.

    python scripts/fault_drill.py                       all faults, about 15 minutes on 2 cores
    python scripts/fault_drill.py --only kill,shard     those whose name contains one of the words
    python scripts/fault_drill.py --json drill.json     what was tried and seen, to a file

Runs are real command lines in processes of their own: they are killed, their disks are filled, their shards
cut, their servers broken. Each writes down which images it sees; in the end its weights and its images are
compared with those of a run that nobody disturbed. Exit status 1 if a fault was not survived. Full disks need
root (they are small file systems of their own), S3 needs the package moto.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from drill import data, disks, processes, remote, services
from drill.bench import Drill, Fault, NotSurvived, Result, compare


def table() -> list[Fault]:
    """All faults."""
    return [f for part in (processes, disks, data, remote, services) for f in part.faults()]


def try_fault(drill: Drill, fault: Fault) -> Result:
    """Inflicts a fault and tells what became of the run."""
    result, run, start = Result(fault.name, fault.done), drill.folder / fault.name, time.monotonic()
    try:
        result.seen = fault.inflict(drill, run)
        if fault.name != "move":  # which is in fp64, and compares by itself
            compare(drill, result, run, fault.processes)
        wanted = "identical" if fault.identical else result.weights
        result.survived = result.weights == wanted and not (result.samples_lost or result.samples_doubled)
    except (NotSurvived, subprocess.SubprocessError, OSError) as error:
        result.seen = f"{type(error).__name__}: {error}"
    result.seconds = round(time.monotonic() - start, 1)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="words, separated by commas: faults with one of them in their name"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was tried and seen")
    arguments = parser.parse_args()
    words = arguments.only.split(",")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(Path(folder))
        for fault in (f for f in table() if any(w in f.name for w in words)):
            result = try_fault(drill, fault)
            results.append(result)
            mark = "ok" if result.survived else "NOT SURVIVED"
            print(
                f"{mark:12} {fault.name:20} {fault.done}: {result.seen} [weights {result.weights}]",
                flush=True,
            )
    survived = sum(r.survived for r in results)
    summary = {
        "tried": len(results),
        "survived": survived,
        "samples_lost": sum(r.samples_lost for r in results),
        "samples_doubled": sum(r.samples_doubled for r in results),
    }
    print(", ".join(f"{v} {k.replace('_', ' ')}" for k, v in summary.items()))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({**summary, "faults": [asdict(r) for r in results]}, indent=1) + "\n"
        )
    return 0 if survived == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
