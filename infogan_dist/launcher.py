"""What the launcher decides: this process's place among those of a run, precision, compilation, device.

`torchrun` and `accelerate launch` describe these by environment variables. They are read here alone, without
importing torch, and what training does not implement is refused.
"""

import importlib.util
import os
import signal
import sys
from dataclasses import dataclass

from infogan_dist.errors import ConfigError

# Requests to stop: from Slurm, Kubernetes and `kill`; from Slurm before a time limit; from the keyboard.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

FALSE = ("", "0", "f", "false", "n", "no", "off")  # as Accelerate reads it, in lower case
DATA_PARALLEL = (
    "is not supported, because training is data-parallel (DDP); use a file of launch/accelerate/, or run "
    "`accelerate config` again"
)
XLA = "TPUs and XLA are not supported; unset it, and train on GPUs or on the CPU"
DYNAMO = "is not supported; leave it out"
# For variables of Accelerate and torch_xla: supported values, in lower case, and the refusal of any other.
SUPPORTED_VALUES = {
    "ACCELERATE_USE_FSDP": (FALSE, f"FSDP {DATA_PARALLEL}"),
    "ACCELERATE_USE_DEEPSPEED": (FALSE, f"DeepSpeed {DATA_PARALLEL}"),
    "ACCELERATE_USE_MEGATRON_LM": (FALSE, f"Megatron-LM {DATA_PARALLEL}"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (FALSE, f"tensor or context parallelism {DATA_PARALLEL}"),
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": (("", "no"), f"SageMaker's parallelism {DATA_PARALLEL}"),
    "PJRT_DEVICE": (("",), XLA),
    "XRT_TPU_CONFIG": (("",), XLA),
    "XLA_USE_BF16": (FALSE, XLA),
    "XLA_DOWNCAST_BF16": (FALSE, XLA),
    "ACCELERATE_DOWNCAST_BF16": (FALSE, f"--downcast_bf16 is for TPUs; {XLA}"),
    "ACCELERATE_TORCH_DEVICE": (
        (),
        "a device by name is not supported; unset it, and select GPUs by CUDA_VISIBLE_DEVICES or --gpu_ids, "
        "or the CPU by ACCELERATE_USE_CPU=true",
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        ("", "1"),
        "the launcher's accumulation is not supported; set train.accumulation instead",
    ),
    "ACCELERATE_MIXED_PRECISION": (
        ("", "no", "bf16", "fp16"),
        "not supported as accelerate launch --mixed_precision; use no, bf16 or fp16",
    ),
    "ACCELERATE_DYNAMO_BACKEND": (
        ("", "no", "inductor"),
        "not supported as accelerate launch --dynamo_backend; use no or inductor",
    ),
    "ACCELERATE_DYNAMO_MODE": (("", "default"), f"--dynamo_mode {DYNAMO}"),
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": (FALSE, f"--dynamo_use_fullgraph {DYNAMO}"),
    "ACCELERATE_DYNAMO_USE_DYNAMIC": (FALSE, f"--dynamo_use_dynamic {DYNAMO}"),
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": (FALSE, f"--dynamo_use_regional_compilation {DYNAMO}"),
}
# Accelerate reads the number of processes from these where WORLD_SIZE is not set.
MPI_WORLD_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class ProcessPlace:
    """The place of a process among those of a run.

    Attributes:
        rank, world: index of this process, and the number of processes, over all machines.
        local_rank, local_world: the same on this machine.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int

    @property
    def is_first(self) -> bool:
        """Whether this is the main process, which logs, draws and saves."""
        return self.rank == 0


def process_place() -> ProcessPlace:
    """Return the place that the launcher gave this process; without a launcher, that of a single process."""

    def number(name: str, default: str) -> int:
        return int(os.environ.get(name, default))

    return ProcessPlace(
        number("RANK", "0"),
        number("WORLD_SIZE", "1"),
        number("LOCAL_RANK", "0"),
        number("LOCAL_WORLD_SIZE", "1"),
    )


def check_launcher() -> None:
    """Refuse what the launcher, or the environment, asks for and training does not implement.

    Raises:
        ConfigError: with the variable and the remedy.
    """
    _check_place()
    for variable, (supported, refusal) in SUPPORTED_VALUES.items():
        value = os.environ.get(variable)
        if value is not None and value.lower() not in supported:
            raise ConfigError(f"{variable}={value}: {refusal}")
    # Accelerate uses torch_xla wherever it is installed, even for training on the CPU.
    if os.environ.get("USE_TORCH_XLA", "true").lower() not in FALSE and importlib.util.find_spec("torch_xla"):
        raise ConfigError(
            "torch_xla is installed: TPUs and XLA are not supported; set USE_TORCH_XLA=0, and train on GPUs "
            "or on the CPU"
        )


def _check_place() -> None:
    """Refuse several processes that cannot find each other."""
    remedy = "start the processes by torchrun or accelerate launch"
    if process_place().world > 1:
        needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if not os.environ.get(name)]
        if missing:
            world = os.environ["WORLD_SIZE"]
            raise ConfigError(f"WORLD_SIZE={world}: {', '.join(missing)} must be set as well; {remedy}")
    for name in MPI_WORLD_SIZES if "WORLD_SIZE" not in os.environ else ():
        if os.environ.get(name, "1") != "1":
            raise ConfigError(
                f"{name}={os.environ[name]}: processes started by MPI need RANK, LOCAL_RANK, WORLD_SIZE, "
                f"MASTER_ADDR and MASTER_PORT as well; {remedy}"
            )


def launched_precision() -> str:
    """Return the precision that the launcher chose: fp32, bf16 or fp16."""
    mixed_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower()
    return mixed_precision if mixed_precision in ("bf16", "fp16") else "fp32"


def launched_compilation() -> bool:
    """Return whether the launcher asked for compiled networks."""
    return os.environ.get("ACCELERATE_DYNAMO_BACKEND", "").lower() == "inductor"


def is_cpu_requested() -> bool:
    """Return whether the launcher, or the environment, asks for the CPU on a machine with GPUs as well."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() not in FALSE


def gpu_allocation() -> str | None:
    """Return the variable by which Slurm, or the launcher, states that this job has GPUs, and its value."""
    # A number of GPUs, and lists in which 0 is a GPU. Accelerate's gpu_ids are CUDA_VISIBLE_DEVICES.
    nothing = {
        "SLURM_GPUS_ON_NODE": ("", "0"),
        "SLURM_JOB_GPUS": ("",),
        "SLURM_STEP_GPUS": ("",),
        "CUDA_VISIBLE_DEVICES": ("", "-1", "NoDevFiles"),
    }
    for name, values in nothing.items():
        if os.environ.get(name, "") not in values:
            return f"{name}={os.environ[name]}"
    return None


def launch_command(*target: str, processes: int = 1) -> list[str]:
    """Return the command that runs a Python target on this machine.

    Args:
        target: arguments of the Python interpreter, such as `-m infogan_dist.train configs/mnist.yaml`.
        processes: more than one are started by torchrun.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(torchrun if processes > 1 else []), *target]
