#!/usr/bin/env python
"""Measure images per second on one GPU by way of execution and batch size, and print a table.

    python scripts/gpu_benchmark.py                            the paper's networks in fp32
    python scripts/gpu_benchmark.py --precision bf16           in another precision
    python scripts/gpu_benchmark.py --cpu                      a short run, to test the script itself

Each number is the median of three windows of a run of its own, after a first window with the start, the
compilation, and the reading of the shards. The images are generated.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from gpu.bench import Bench, CheckError, device_names
from infogan_dist.config.schema import PRECISIONS
from infogan_dist.console import exit_on_user_error, set_up_logging

MODES = {
    "eager, images copied for each batch": ("data.device=host",),
    "eager": ("data.device=device",),
    "compiled": ("data.device=device", "train.compile=true"),
    "CUDA graph": ("data.device=device", "train.cuda_graph=true"),
    "compiled, CUDA graph": ("data.device=device", "train.compile=true", "train.cuda_graph=true"),
}
WINDOWS = 3
STEPS = {128: 300, 1024: 100, 16384: 16}  # of a window, by batch size
CPU_STEPS = {16: 2}
IMAGES = 2**15  # fewer than those of a window, so that the first window reads all shards


def images_per_second(bench: Bench, preset: str, batch: int, steps: int, *overrides: str) -> float:
    """Train a run and return its speed, the median of its windows after the first.

    Args:
        bench: trains the run.
        preset: config file.
        batch: images of a step.
        steps: number of steps of a window.
        overrides: `key=value`.

    Raises:
        CheckError: training failed.
    """
    total = steps * (WINDOWS + 1)
    run = bench.train(
        f"train.batch_size={batch}",
        f"train.log_every={steps}",
        f"train.steps={total}",
        f"checkpoint.every={total}",
        f"tracking.pictures_every={total}",
        *overrides,
        preset=preset,
    )
    rows = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    return statistics.median(row["images_per_second"] for row in rows[1:])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="configs/mnist.yaml", help="config file (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="(default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="a short run on the CPU, to test the script")
    args = parser.parse_args()
    set_up_logging(quiet=True)
    with exit_on_user_error():
        names = device_names(args.cpu)
    sizes = CPU_STEPS if args.cpu else STEPS
    print(f"torch {torch.__version__} on {names}, {args.preset} in {args.precision}: images per second\n")
    print("| batch | " + " | ".join(f"{size:,}" for size in sizes) + " |\n| --- |" + " --- |" * len(sizes))
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.cpu, min(sizes) * 4 if args.cpu else IMAGES)
        for name, overrides in MODES.items():
            if args.cpu and "train.cuda_graph=true" in overrides:
                continue
            cells = []
            for size, steps in sizes.items():
                options = (*overrides, f"train.precision={args.precision}")
                try:
                    cells.append(f"{images_per_second(bench, args.preset, size, steps, *options):,.0f}")
                except CheckError as error:
                    cells, failures = [*cells, f"FAILED: {error}"], failures + 1
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
