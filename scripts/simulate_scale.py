#!/usr/bin/env python
"""Compute, on one core, how a run on thousands of processes reads its data and what its processes exchange.

    python scripts/simulate_scale.py                      4,096 processes, a billion images, 100,000 shards
    python scripts/simulate_scale.py --shards 102400 --samples 1003520000     shards a multiple of the lanes

Simulated: the shards that each process reads and when, by the package's own `Order` and `Loader.plan`, for
all processes and all shards. Measured: the time and the memory to find the samples of a late step. Counted:
the bytes that processes exchange in a step, on a real step of each preset. Assumed: the speeds, which are
options. No shard is read, nothing is sent, and no GPU is used.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from infogan_dist.config.batch_share import check_batch
from infogan_dist.config.load import read_config
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.files import write_text
from simulation import communication, reading
from simulation.communication import Speeds, count_communication, exchange_times
from simulation.reading import Scale, simulate

WORLDS = (8, 64, 1024)  # numbers of processes in the tables of communication
OPTIONS = (  # name, default, description
    ("--processes", 4096, "number of processes"),
    ("--processes-per-node", 8, "processes of a node, which share a disk cache"),
    ("--samples", 10**9, "images of the set"),
    ("--shards", 100_000, "shards of the set, whose sizes differ by at most one"),
    ("--lanes", None, "data.lanes, a multiple of the processes [one lane per process]"),
    ("--batch", 32_768, "train.batch_size, a multiple of the lanes"),
    ("--epochs", 2, "epochs to simulate, from step 0 on"),
    ("--image-bytes", 3 * 64 * 64, "assumed bytes of an image, in its shard and decoded alike"),
    ("--bandwidth", 25.0, "assumed GB/s of the slowest link between neighbouring processes"),
    ("--latency", 20.0, "assumed microseconds that an exchange takes, however small it is"),
    ("--tflops", 20.0, "assumed 10^12 operations/s of a process"),
)


def format_value(value: Any) -> str:
    """Return a figure as text: a spread of values, counts by number of times, or a number."""
    if isinstance(value, dict):
        return f"{value['min']:,.6g} to {value['max']:,.6g} (ratio {value['ratio']:.4f})"
    if isinstance(value, list):
        return ", ".join(f"{times}: {count:,}" for times, count in enumerate(value) if count)
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def print_table(columns: dict[str, dict[str, Any]]) -> None:
    """Print a Markdown table; all columns have the same rows."""
    names = next(iter(columns.values()))
    rows = [[name.replace("_", " "), *(format_value(c[name]) for c in columns.values())] for name in names]
    lines = [["", *columns], ["---"] * (len(columns) + 1), *rows]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, description in OPTIONS:
        text = description if default is None else f"{description} [{default:,}]"
        kind = float if isinstance(default, float) else int
        parser.add_argument(name, type=kind, default=default, metavar="N", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def main(argv: list[str] | None = None) -> None:
    a = create_parser().parse_args(argv)
    lanes = a.lanes or a.processes
    set_up_logging()
    with exit_on_user_error():
        config = read_config([communication.PRESETS[0], f"data.lanes={lanes}", f"train.batch_size={a.batch}"])
        check_batch(config, a.processes)
    scale = Scale(
        a.processes, a.processes_per_node, a.samples, a.shards, lanes, a.batch, a.epochs, a.image_bytes
    )
    figures, speeds = simulate(scale), Speeds(a.bandwidth, a.latency, a.tflops)
    print_table(figures["epochs"])
    names = ("steps_per_epoch", "steps_per_shard", "drift")
    print(*(f"{name}: {format_value(figures[name])}" for name in names), sep=", ")
    print(f"\nstep {reading.FAR_STEP:,}:\n")
    print_table(figures["start_up"])
    figures["communication"] = {preset: count_communication(preset) for preset in communication.PRESETS}
    for preset, counts in figures["communication"].items():
        print(f"{preset}, counted: {json.dumps(counts)}\nmilliseconds per step by number of processes:\n")
        print_table({f"{world}": exchange_times(counts, world, speeds) for world in WORLDS})
    if a.json:
        write_text(a.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
