"""The device of a process, its precision, and determinism: what is decided before the processes connect."""

import copy
import logging
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

from infogan_dist.config.schema import Config
from infogan_dist.errors import ConfigError, MachineError
from infogan_dist.launcher import (
    ProcessPlace,
    check_launcher,
    gpu_allocation,
    is_cpu_requested,
    launched_compilation,
    launched_precision,
    process_place,
)

logger = logging.getLogger(__name__)


def uses_cuda() -> bool:
    """Return whether each process uses a GPU."""
    return torch.cuda.is_available() and not is_cpu_requested()


def process_device(place: ProcessPlace) -> torch.device:
    """Return the device on which the process at a place trains, as Accelerate selects it."""
    if not uses_cuda():
        return torch.device("cpu")
    if place.world == 1:
        return torch.device("cuda")
    return torch.device("cuda", place.local_rank % torch.cuda.device_count())


def unused_accelerator() -> str | None:
    """Return a message if this machine has an accelerator that training does not support, such as MPS."""
    if is_cpu_requested() or torch.cuda.is_available() or not torch.accelerator.is_available():
        return None
    accelerator = torch.accelerator.current_accelerator()
    return (
        f"device: {accelerator.type if accelerator else 'accelerator'} is not used, because training needs "
        "float64 and deterministic algorithms, which are supported on CUDA and CPUs; training on the CPU"
    )


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processes_here() -> int:
    """Return the number of processes on this machine, as far as the launcher states it."""
    place = process_place()
    return max(place.local_world, place.local_rank + 1)


def check_device(choice: str) -> None:
    """Refuse to train on the CPU where GPUs were asked for, and select the CPU where that was.

    Args:
        choice: `train.device`.

    Raises:
        ConfigError: the launcher asks for the CPU, and the config for GPUs.
        MachineError: GPUs were asked for, and CUDA does not work.
    """
    if choice == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # which Accelerate reads, here and in loading subprocesses
    elif choice == "cuda" and is_cpu_requested():
        raise ConfigError(
            "train.device: cuda, but the launcher asks for the CPU (ACCELERATE_USE_CPU); change one of them"
        )
    asked = "train.device: cuda" if choice == "cuda" else f"train.device: {gpu_allocation()}"
    if is_cpu_requested() or torch.cuda.is_available() or (choice == "auto" and gpu_allocation() is None):
        return
    build = "a build without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
    raise MachineError(
        f"{asked}, but torch {torch.__version__} ({build}) cannot use a GPU on {platform.node()}; check "
        "nvidia-smi and CUDA_VISIBLE_DEVICES there, install a CUDA build of torch, or use train.device=cpu"
    )


def check_gpus() -> None:
    """Refuse more processes on this machine than it has GPUs. Raises `MachineError`."""
    if not uses_cuda():
        return
    processes, gpus = _processes_here(), torch.cuda.device_count()
    if processes > gpus:
        raise MachineError(
            f"device: {processes} processes on a machine where {gpus} GPU(s) are visible; start at most "
            f"{gpus} on it (--num_processes, --nproc-per-node), make more visible (CUDA_VISIBLE_DEVICES), or "
            "train on the CPU by ACCELERATE_USE_CPU=true"
        )


def check_precision(precision: str) -> None:
    """Refuse a precision in which the device of this process cannot compute. Raises `MachineError`.

    Args:
        precision: one of `PRECISIONS`.
    """
    where = f"train.precision: {precision}"
    if not uses_cuda():
        if precision in ("fp16", "tf32"):
            remedy = "fp32" if precision == "tf32" else "fp32 or bf16"
            raise MachineError(f"{where} needs a GPU; on a CPU use {remedy}")
        return
    if precision not in ("bf16", "tf32"):
        return
    # Older GPUs emulate bf16 slowly, and compute in fp32 instead of tf32 without a warning.
    gpus = range(min(_processes_here(), torch.cuda.device_count()))
    capability, gpu = min((torch.cuda.get_device_capability(i), i) for i in gpus)
    if capability < (8, 0):
        name = torch.cuda.get_device_name(gpu)
        raise MachineError(
            f"{where} needs a GPU of compute capability 8.0 or higher, but {name} has "
            f"{'.'.join(map(str, capability))}; use fp32 or fp16"
        )
    if precision == "tf32" and torch.version.hip:
        raise MachineError(f"{where} is a format of NVIDIA's GPUs; use fp32, bf16 or fp16")
    if precision == "tf32" and os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        raise MachineError(f"{where} is disabled by NVIDIA_TF32_OVERRIDE=0; unset it, or use fp32")


def check_cuda_graph(config: Config) -> None:
    """Refuse to record steps other than those of a single process with a GPU. Raises `ConfigError`."""
    if config.train.cuda_graph and (not uses_cuda() or process_place().world > 1):
        raise ConfigError(
            "train.cuda_graph: only for a single process with a GPU; use train.cuda_graph=false, "
            "alone or with train.compile=true"
        )


def launched_config(config: Config) -> Config:
    """Return a copy of the config that contains the launcher's choices of precision and compilation."""
    launched = copy.deepcopy(config)
    launched.train.precision = config.train.precision or launched_precision()
    launched.train.compile = config.train.compile or launched_compilation()
    return launched


def resolve_config(config: Config) -> Config:
    """Return `launched_config`, once everything is checked that the launcher decides.

    The saved config then describes the run, whatever launches it the next time.

    Raises:
        ConfigError: the launcher asks for something that training does not implement.
        MachineError: the device does not support the precision or the number of processes.
    """
    check_launcher()
    check_device(config.train.device)
    check_gpus()
    check_cuda_graph(config)
    resolved = launched_config(config)
    check_precision(str(resolved.train.precision))
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


def prepare_device(precision: str) -> bool:
    """Set up determinism and precision on the device of this process.

    Args:
        precision: one of `PRECISIONS`.

    Returns:
        Whether the device is a GPU.
    """
    cuda = uses_cuda()
    make_deterministic(cuda)
    set_precision(precision)
    message = unused_accelerator()
    if message and process_place().is_first:
        logger.warning(message)
    return cuda


def set_precision(precision: str) -> None:
    """Set the format in which a GPU multiplies float32: TF32 under `tf32`, otherwise IEEE 754 float32.

    torch's default mixes them: TF32 in convolutions, IEEE in matrix products. Under bf16 and fp16 the setting
    applies to what is computed outside autocast.

    Args:
        precision: one of `PRECISIONS`.
    """
    # Versions before 2.9 have these switches only. Later ones have `fp32_precision` too, refuse a mixture of
    # both, and read these in torch.compile.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def make_deterministic(cuda: bool) -> None:
    """Make every sum run in the same order each time; on a CPU, use all cores."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # With NVLS the NVSwitch adds the numbers of the GPUs, in an order that may differ from one run to the
        # next; NCCL's other algorithms add in a fixed order.
        os.environ.setdefault("NCCL_ALGO", "^NVLS,NVLSTree")
        return
    share = max(1, cores() // process_place().local_world)
    # Launchers set OMP_NUM_THREADS=1 by default; a larger number was chosen by the user.
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    threads = threads if threads > 1 else share
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
