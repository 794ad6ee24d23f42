#!/usr/bin/env python
"""Check properties of training that only a machine with GPUs can check, and print a table.

    python scripts/gpu_check.py            all checks that the GPUs of this machine allow
    python scripts/gpu_check.py --cpu      the same checks on the CPU, to test the script itself

Each check trains short runs in separate processes on generated images, in a temporary folder. The exit status
is 1 if a check fails, and 2 if the machine has no GPU. `gpu_benchmark.py` measures the speed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from gpu.bench import (
    PRESET,
    Bench,
    CheckError,
    check_limit,
    check_same_bits,
    comparable_steps,
    device_names,
    difference_of_runs,
    largest_difference,
    largest_weight_difference,
    read_metrics,
)
from gpu.halves import compare_with_one_process
from gpu.waits import FIRST_STEPS, STEPS, train_without_waiting
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.errors import MachineError
from infogan_dist.runtime.device import check_precision, cores

NETWORKS = ("generator", "discriminator")
FEW_STEPS = 3
MAX_AT_ONCE = 4  # checks
# For comparing precisions. Weights of about 0.02 do not change, so that every step compares rounding at the
# same weights: Adam's first steps have the size of the learning rate even where a gradient is a rounding
# error, by which fp32 and fp64 differ by 1e-2 after two steps. Nor does an fp16 run, whose scaler skips
# updates that overflow, fall behind.
FIXED_WEIGHTS = tuple(f"optim.{n}.lr=1e-30" for n in NETWORKS)
MAX_STEPS = 24  # of an fp16 run whose gradients all overflow; each overflow halves its scale of 65,536
# The largest relative error of rounding a number: 2 to the minus number of significant bits.
ROUNDING = {"tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-8}
# Both factors of a product are rounded, forward and backward, in 4 layers of G and 5 of D and Q. If all
# errors add up, a gradient differs by 36 of them: by 1.8e-2 in tf32 and fp16, and by 0.14 in bf16. Measured
# on a CPU: 6.3e-3 in fp16, 2.2e-2 in bf16, and 3.7e-3 with factors rounded as in TF32.
ROUNDINGS = 2 * 2 * 9
# In fp32, sums of up to 3,136 terms are rounded, in an order that depends on the device. Measured on a CPU:
# 1e-5 between fp32 and fp64. Reduced formats differ by more than this limit; a smaller difference would
# mean that they are not in effect.
FP32_LIMIT = 1e-4
# A preset with options, one of each kind in every set. The last two end in the first stage, and after it.
CLUSTERED = "configs/quickstart.yaml"
WAITING_OPTIONS = (
    (PRESET,),
    (PRESET, "train.precision=fp16", "data.device=host", "optim.discriminator.clip=1"),
    (PRESET, "train.accumulation=2", "objective.r1=1", "objective.d_updates=split"),
    (PRESET, "train.cuda_graph=true", "train.precision=bf16", "objective.q_step=generator"),
    (PRESET, "train.compile=true", "objective.equivariance={style.0: shear, style.1: dilation}"),
    (CLUSTERED, f"clustering.steps={FIRST_STEPS + STEPS + 1}", "clustering.balanced_steps=5"),
    (CLUSTERED, f"clustering.steps={FIRST_STEPS - 1}", "clustering.balanced_steps=1"),
)
Check = Callable[["Bench"], str]


def check_fp32(bench: Bench) -> str:
    """Check that fp32 is as exact as on the CPU, which TF32 is not."""
    options = [f"train.steps={FEW_STEPS}", "train.precision=fp32", *FIXED_WEIGHTS]
    return check_limit(difference_of_runs(bench.train(*options, cpu=True), bench.train(*options)), FP32_LIMIT)


def check_reduced_precision(bench: Bench, precision: str) -> str:
    """Check that a few steps are close to those in fp32 on the CPU, and that many steps stay finite."""
    options = [*FIXED_WEIGHTS, f"train.precision={precision}"]
    steps, reduced = FEW_STEPS, bench.train(f"train.steps={FEW_STEPS}", *options)
    rows = read_metrics(reduced)
    while not comparable_steps(rows, rows) and steps < MAX_STEPS:
        steps *= 2
        rows = read_metrics(bench.train(f"train.steps={steps}", *options, run=reduced))
    full = bench.train(f"train.steps={steps}", *FIXED_WEIGHTS, "train.precision=fp32", cpu=True)
    difference = largest_difference(read_metrics(full), rows)
    near = check_limit(difference, ROUNDINGS * ROUNDING[precision], FP32_LIMIT)
    long = bench.train_long(f"train.precision={precision}")
    # A value that is not finite is logged as a text.
    if not all(isinstance(v, (int, float)) for row in read_metrics(long) for v in row.values()):
        raise CheckError("a metric is not finite")
    return f"{near}; {bench.long_steps} steps finite"


def check_cpu_equals_gpu(bench: Bench) -> str:
    """Check that a run in fp64 has the same metrics on both devices."""
    options = [f"train.steps={FEW_STEPS}", "train.precision=fp64"]
    return check_limit(difference_of_runs(bench.train(*options), bench.train(*options, cpu=True)), 1e-9)


def check_compile(bench: Bench) -> str:
    """Check that compiled networks train like eager ones; in fp32 the compiler may change layouts."""
    options = {
        PRESET: ("train.precision=fp64", 1e-9),
        "configs/mnist.yaml": ("train.precision=fp32", FP32_LIMIT),
    }
    results = []
    for preset, (precision, limit) in options.items():
        words = (f"train.steps={FEW_STEPS}", precision, *FIXED_WEIGHTS)
        eager, compiled = (
            bench.train(*words, f"train.compile={choice}", preset=preset) for choice in ("false", "true")
        )
        results.append(check_limit(difference_of_runs(eager, compiled), limit))
    return "; ".join(results)


def check_resume(bench: Bench, processes: int = 1, overrides: Sequence[str] = ()) -> str:
    """Check that a resumed run has the same metrics and weights as an uninterrupted one, bit for bit."""
    uninterrupted = bench.train("train.steps=9", *overrides, processes=processes)
    resumed = bench.train("train.steps=4", *overrides, processes=processes)
    bench.train("train.steps=9", *overrides, processes=processes, run=resumed)
    return check_same_bits(uninterrupted, resumed)


def check_cuda_graph(bench: Bench) -> str:
    """Check that a replayed step trains like the one it was recorded from.

    The learning rates are powers of two, since a graph reads them in single precision.
    """
    options = ["train.steps=9", "train.precision=fp64", *(f"optim.{n}.lr={2**-12}" for n in NETWORKS)]
    eager, graphed = (bench.train(*options, f"train.cuda_graph={g}") for g in ("false", "true"))
    losses = check_limit(difference_of_runs(eager, graphed), 1e-9)
    weights = check_limit(largest_weight_difference(eager, graphed), 1e-9)
    return f"losses {losses}; weights {weights}"


def check_device_data(bench: Bench) -> str:
    """Check that images that stay on the GPU give the same run as those that are copied for each batch."""
    host, device = (bench.train("train.steps=9", f"data.device={d}") for d in ("host", "device"))
    return check_same_bits(host, device)


def check_waits(bench: Bench) -> str:
    """Check that the host launches steps without waiting for the GPU, under the options that could wait."""
    for preset, *options in WAITING_OPTIONS:
        words = bench.arguments(bench.new_run(), *options, preset=preset)
        if waiting := train_without_waiting(words):
            raise CheckError(f"{' '.join([preset, *options])}: {waiting}")
    return f"none with {len(WAITING_OPTIONS)} sets of options"


def check_global_batch_norm(bench: Bench) -> str:
    """Check that global batch norm on two processes that share the device (gloo) equals one process."""
    return check_limit(compare_with_one_process(bench.folder, bench.device), 1e-9)


def check_two_processes(bench: Bench) -> str:
    """Check that two processes with half the batch each equal one with the full batch."""
    options = [f"train.steps={FEW_STEPS}", "train.precision=fp64"]
    one, two = (bench.train(*options, processes=n) for n in (1, 2))
    return f"{check_limit(difference_of_runs(one, two), 1e-9)}; resume {check_resume(bench, 2)}"


def available_checks(cpu: bool) -> dict[str, Check]:
    """Return the checks that are possible on this machine, by name."""
    checks: dict[str, Check] = {}
    if not cpu:
        checks = {"fp64 = CPU": check_cpu_equals_gpu, "fp32 = CPU": check_fp32}
    for precision in ("bf16",) if cpu else ROUNDING:
        with suppress(MachineError):  # an older GPU
            check_precision(precision)
            checks[precision] = partial(check_reduced_precision, precision=precision)
    checks |= {"compile = eager": check_compile, "resume": check_resume}
    if not cpu:
        checks["resume in fp16"] = partial(check_resume, overrides=["train.precision=fp16"])
        checks["CUDA graph = eager"] = check_cuda_graph
        checks["resume with a CUDA graph"] = partial(check_resume, overrides=["train.cuda_graph=true"])
    checks["data on the device"] = check_device_data
    if not cpu:
        checks["host waits in a step"] = check_waits
    checks["global batch norm"] = check_global_batch_norm
    if cpu or torch.cuda.device_count() > 1:
        checks["two processes = one"] = check_two_processes
    return checks


def run_check(bench: Bench, check: Check) -> tuple[str, bool]:
    """Return what a check observed, and whether it passed."""
    try:
        return check(bench), True
    except CheckError as error:
        return str(error), False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="run the checks on the CPU, to test the script")
    cpu = parser.parse_args().cpu
    set_up_logging(quiet=True)
    with exit_on_user_error():
        names = device_names(cpu)
    print(f"torch {torch.__version__} on {names}\n\n| check | result | |\n| --- | --- | --- |")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), cpu)
        # Most of the time a check waits for the start of a process, so a few of them run at once.
        with ThreadPoolExecutor(1 if cpu else max(1, min(MAX_AT_ONCE, cores() // 2))) as pool:
            checks = available_checks(cpu)
            results = pool.map(partial(run_check, bench), checks.values())
            for name, (observation, ok) in zip(checks, results, strict=True):
                print(f"| {name} | {'ok' if ok else 'FAILED'} | {observation} |", flush=True)
                failures += not ok
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
