#!/usr/bin/env python
"""Measure images per second on one GPU by way of execution and batch size, and print a table.

    python scripts/gpu_benchmark.py                            the paper's networks in fp32
    python scripts/gpu_benchmark.py --precision bf16           in another precision
    python scripts/gpu_benchmark.py --cpu                      a short run, to test the script itself

Each number is the median of three windows of a run in a process of its own, after a first window with the
compilation and the reading of the shards. The images are generated.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from gpu.bench import Bench, device_names
from infogan_dist.config.load import read_config
from infogan_dist.config.schema import PRECISIONS
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.training.loop import train

MODES = {
    "eager, images copied for each batch": ("data.device=host",),
    "eager": ("data.device=device",),
    "compiled": ("data.device=device", "train.compile=true"),
    "CUDA graph": ("data.device=device", "train.cuda_graph=true"),
    "compiled, CUDA graph": ("data.device=device", "train.compile=true", "train.cuda_graph=true"),
}
WINDOWS = 3
STEPS = {128: 100, 1024: 50, 16384: 8}  # of a window, by batch size
CPU_STEPS = {16: 2}
IMAGES = 2**13  # fewer than those of a window, so that the first window reads all shards


def images_per_second(words: list[str], batch: int, steps: int) -> float:
    """Train a run and return its speed, the median of its windows after the first.

    Args:
        words: config file and overrides of the run.
        batch: images of a step.
        steps: number of steps of a window.
    """
    total = steps * (WINDOWS + 1)
    config = read_config(
        [
            *words,
            f"train.batch_size={batch}",
            f"train.log_every={steps}",
            f"train.steps={total}",
            f"checkpoint.every={total}",
            f"tracking.pictures_every={total}",
        ]
    )
    train(config)
    rows = [json.loads(line) for line in (Path(config.run) / "timing.jsonl").read_text().splitlines()]
    return statistics.median(row["images_per_second"] for row in rows[1:])


def measure(words: list[str], batch: int, steps: int) -> str:
    """Return `images_per_second` of a new process as a cell of the table, or why it failed."""
    # The server of processes has imported torch, but has not used CUDA.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["infogan_dist.training.loop", "torch._dynamo"])
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return f"{pool.submit(images_per_second, words, batch, steps).result():,.0f}"
        except Exception as error:
            return f"FAILED: {str(error).splitlines()[0]}"


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
    modes, sizes = dict(MODES), STEPS
    if args.cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        modes, sizes = {n: o for n, o in MODES.items() if "train.cuda_graph=true" not in o}, CPU_STEPS
    print(f"torch {torch.__version__} on {names}, {args.preset} in {args.precision}: images per second\n")
    print("| batch | " + " | ".join(f"{size:,}" for size in sizes) + " |\n| --- |" + " --- |" * len(sizes))
    failed = False
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(modes) * len(sizes), unit="run") as bar,
    ):
        bench = Bench(Path(folder), args.cpu, min(sizes) * 4 if args.cpu else IMAGES)
        for name, overrides in modes.items():
            cells = []
            for size, steps in sizes.items():
                options = (f"train.precision={args.precision}", *overrides)
                words = bench.arguments(bench.new_run(), *options, preset=args.preset)
                cells.append(measure(words, size, steps))
                bar.set_postfix_str(f"{name}, {size:,}: {cells[-1]}")
                bar.update()
            failed |= any("FAILED" in cell for cell in cells)
            bar.write(f"| {name} | {' | '.join(cells)} |", file=sys.stdout)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
