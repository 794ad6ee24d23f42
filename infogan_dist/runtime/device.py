"""The device of a process, its precision, and determinism: what is decided before the processes connect."""

import copy
import os
import platform
from pathlib import Path
from typing import Any

import torch

from infogan_dist.config.schema import PRECISIONS, Config
from infogan_dist.errors import ConfigError
from infogan_dist.launcher import process_place


def uses_cuda() -> bool:
    """Return whether each process uses a GPU."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def resolve_precision(config: Config, cuda: bool) -> str:
    """Return fp32, bf16, fp16 or fp64: the config's precision, else the launcher's. Raises `ConfigError`."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = config.train.precision or {"no": "fp32"}.get(launched, launched)
    if precision not in PRECISIONS:
        raise ConfigError(f"accelerate launch --mixed_precision {launched}: use no, bf16 or fp16")
    if precision == "fp16" and not cuda:
        raise ConfigError("train.precision: fp16 needs a GPU; on a CPU use fp32 or bf16")
    return precision


def resolve_config(config: Config) -> Config:
    """Return a copy of the config in which the launcher's choices of precision and compilation are entered.

    The saved config then describes the run, whatever launches it the next time. Raises `ConfigError`.
    """
    resolved = copy.deepcopy(config)
    resolved.train.precision = resolve_precision(config, uses_cuda())
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("no", "inductor"):
        raise ConfigError(f"accelerate launch --dynamo_backend {backend}: not supported; use no or inductor")
    resolved.train.compile = config.train.compile or backend == "inductor"
    return resolved


def describe_machine(device: torch.device, world: int) -> dict[str, Any]:
    """Return what, besides the config, decides how a run's sums are rounded."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "processes": world}
    return {"device": _processor(), "threads": torch.get_num_threads(), "processes": world}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def make_deterministic(cuda: bool) -> None:
    """Make every sum run in the same order each time; on a CPU, use all cores."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return
    share = max(1, cores() // process_place().local_world)
    # Launchers set OMP_NUM_THREADS=1 by default; a larger number was chosen by the user.
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    threads = threads if threads > 1 else share
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
