#!/usr/bin/env python
"""Interrupt an epoch of several data loaders, and count the samples that are lost or doubled.

    python scripts/rivals/compare.py                          all that are installed, about 7 minutes
    python scripts/rivals/compare.py --loader infogan_dist    one of them
    python scripts/rivals/compare.py --json rivals.json       write the results to a file

Every loader reads the same 960 images, which `make_shards` writes as a WebDataset; a loader with a format of
its own has them converted. Processes are started as a launcher does, in one gloo group, without a GPU.
docs/rivals.md describes the cases and how each loader is used; requirements.txt has the versions.
"""

import argparse
import contextlib
import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import CASES, SAMPLES, SHARDS, TIME_LIMIT, Outcome, Task, image_of, run_case

RANK = Path(__file__).with_name("rank.py")
LOADERS = {  # name, and the packages that it needs
    "infogan_dist": ("infogan_dist",),
    "mosaicml_streaming": ("mosaicml-streaming",),
    "litdata": ("litdata",),
    "lancedb": ("lancedb",),
    "webdataset": ("webdataset", "torchdata"),
}
COLUMNS = ("loader", "case", "lost", "doubled", "batches", "seconds", "of the loader")


class CaseError(Exception):
    """The processes of a case failed, or did not end."""


def versions_of(loader: str) -> str | None:
    """Return the versions of a loader's packages, or None if one is not installed."""
    try:
        return ", ".join(f"{package} {metadata.version(package)}" for package in LOADERS[loader])
    except metadata.PackageNotFoundError:
        return None


def create_shards(folder: Path) -> Path:
    """Write the images, and return the folder of the shard set that `make_shards` creates of them."""
    images, shards = folder / "images", folder / "shards"
    images.mkdir()
    for number in range(SAMPLES):
        image_of(number).save(images / f"{number:04d}.png")
    command = [sys.executable, "-m", "infogan_dist.make_shards", "folder", "--quiet", "--from", str(images)]
    command += ["--out", str(shards), "--shards", str(SHARDS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return shards


def free_port() -> int:
    """Return a TCP port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(tasks: list[Task]) -> float:
    """Run the processes of a segment to its end, and return the time at which they were started.

    Raises:
        CaseError: a process failed, or they took longer than `TIME_LIMIT`.
    """
    world = str(len(tasks))
    group = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
    group |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    group["LITDATA_DISABLE_VERSION_CHECK"] = "1"  # a request to PyPI would be part of the measured time
    processes, start = [], time.time()
    for task in tasks:
        pickled = task.folder / f"task{task.rank}.pickle"
        pickled.write_bytes(pickle.dumps(task))
        rank = {"RANK": str(task.rank), "LOCAL_RANK": str(task.rank)}
        with (task.folder / f"rank{task.rank}.log").open("w") as log:
            command = [sys.executable, str(RANK), str(pickled)]
            environment = {**os.environ, **group, **rank}
            # A session of its own, so that the process can be killed with its workers.
            processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            )
    try:
        _wait(tasks, processes, start + TIME_LIMIT)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return start


def _wait(tasks: list[Task], processes: list[subprocess.Popen[bytes]], limit: float) -> None:
    """Wait until all processes have ended, or, before they are killed, have read their last batch."""
    running = True
    while running:
        running = any(process.poll() is None for process in processes)
        for task, process in zip(tasks, processes, strict=True):
            if process.returncode:
                lines = (task.folder / f"rank{task.rank}.log").read_text().strip().splitlines()
                raise CaseError(lines[-1] if lines else f"exit status {process.returncode}")
        if tasks[0].segment.kill and all(has_read_all(task) for task in tasks):
            return
        if time.time() > limit:
            raise CaseError(f"the processes did not end within {TIME_LIMIT} s")
        time.sleep(0.05)


def has_read_all(task: Task) -> bool:
    """Whether a process has recorded the last batch before its segment is stopped."""
    assert task.segment.stop is not None
    if not task.record.exists():
        return False
    return len(task.record.read_text().splitlines()) - 1 == task.segment.stop - task.first


def measure_loader(loader: str, shards: Path, folder: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Yield a row of the table for each case of a loader, or one if it is not installed."""
    versions = versions_of(loader)
    if versions is None:
        yield {"loader": loader, "case": "not installed"}
        return
    folder.mkdir()
    data = folder / "data"
    with contextlib.redirect_stdout(sys.stderr):  # the table is on stdout
        importlib.import_module(f"adapter_{loader}").prepare(shards, data)
    reference: Outcome | None = None
    for number, case in enumerate(CASES):
        row = {"loader": loader, "versions": versions, "case": case.name}
        try:
            outcome = run_case(case, loader, data, folder / f"case{number}", workers, start_processes)
        except CaseError as error:
            yield {**row, "error": str(error)}
            if reference is None:
                return  # not even an uninterrupted epoch, so that there is nothing to compare with
        else:
            reference = reference or outcome
            yield {**row, **describe_outcome(outcome, reference)}


def describe_outcome(outcome: Outcome, reference: Outcome) -> dict[str, Any]:
    """Return the figures of a case, compared with the uninterrupted epoch of the same loader."""
    return {
        "lost": outcome.lost,
        "doubled": outcome.doubled,
        "batches": "same" if outcome.batches == reference.batches else "different",
        "seconds": "-" if outcome.seconds is None else round(outcome.seconds, 1),
        "of the loader": "-" if outcome.loader_seconds is None else round(outcome.loader_seconds, 1),
    }


def format_row(row: dict[str, Any]) -> str:
    """Return a row of the Markdown table; the message of a failure is in the column of the batches."""
    row = {"batches": row.get("error", "-"), **row}
    return f"| {' | '.join(str(row.get(name, '-')) for name in COLUMNS)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loader", choices=LOADERS, help="measure this one only")
    parser.add_argument(
        "--workers", type=int, default=1, help="subprocesses of each process that read in advance [1]"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    print("\n".join([f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards = create_shards(Path(folder))
        for loader in [options.loader] if options.loader else LOADERS:
            for row in measure_loader(loader, shards, Path(folder) / loader, options.workers):
                print(format_row(row), flush=True)
                rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
