#!/usr/bin/env python
"""Inflict faults on real training runs, and check that each run ends like an undisturbed one.

    python scripts/fault_drill.py                       all faults, about 15 minutes on 2 cores
    python scripts/fault_drill.py --only kill,shard     those whose name contains one of the words
    python scripts/fault_drill.py --json drill.json     write the results to a file

Each run is a command line in separate processes, which are killed, whose disks are filled, whose shards are
damaged and whose servers are stopped. A run records the images of each step; at the end these images and the
weights are compared with those of a run without a fault. The exit status is 1 if a fault was not survived.
Full disks need root, since small file systems are mounted for them; S3 needs the package moto.
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
from drill.bench import Drill, DrillError, Fault, Result, compare
from infogan_dist.files import write_text


def all_faults() -> list[Fault]:
    """Return all faults."""
    return [f for part in (processes, disks, data, remote, services) for f in part.faults()]


def try_fault(drill: Drill, fault: Fault) -> Result:
    """Inflict a fault on a run, and return the outcome."""
    result, run, start = Result(fault.name, fault.description), drill.folder / fault.name, time.monotonic()
    try:
        result.observation = fault.inflict(drill, run)
        if fault.name != "move":  # it is in fp64, and compares its weights itself
            compare(drill, result, run, fault.processes)
        required = "identical" if fault.identical else result.weights
        result.survived = result.weights == required and not (result.samples_lost or result.samples_doubled)
    except (DrillError, subprocess.SubprocessError, OSError) as error:
        result.observation = f"{type(error).__name__}: {error}"
    result.seconds = round(time.monotonic() - start, 1)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="words, separated by commas: faults with one of them in their name"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args()
    words = arguments.only.split(",")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(Path(folder))
        for fault in (f for f in all_faults() if any(w in f.name for w in words)):
            result = try_fault(drill, fault)
            results.append(result)
            verdict = "ok" if result.survived else "NOT SURVIVED"
            print(
                f"{verdict:12} {fault.name:20} {fault.description}: {result.observation} "
                f"[weights {result.weights}]",
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
        report = {**summary, "faults": [asdict(r) for r in results]}
        write_text(arguments.json, json.dumps(report, indent=1) + "\n")
    return 0 if survived == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
