"""What the launcher and the environment decide: honoured, or refused with one line, on a CPU and on GPUs."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from infogan_dist import console
from infogan_dist.config.load import read_config
from infogan_dist.config.schema import PRECISIONS, Config
from infogan_dist.errors import ConfigError, MachineError
from infogan_dist.launcher import ProcessPlace
from infogan_dist.preflight import communication, machine, run
from infogan_dist.preflight.examine import Check, run_check
from infogan_dist.preflight.finding import FAIL, OK, WARN, PreflightContext
from infogan_dist.runtime import device
from tests.conftest import ROOT, environment

QUICK = "configs/mnist5k.yaml"
ONE_GPU = {"gpus": 1}
OLD_GPU = {"gpus": 1, "capability": (7, 5)}
MACHINES = {"CPU": {"gpus": 0}, "one GPU": ONE_GPU, "two GPUs": {"gpus": 2}, "old GPU": OLD_GPU}
# (machine, environment, train.precision, the refusal)
REFUSALS = [
    ("CPU", "ACCELERATE_USE_FSDP=true", None, "FSDP is not supported, .* use a file of launch/accelerate/"),
    ("CPU", "ACCELERATE_USE_DEEPSPEED=true", None, "DeepSpeed is not supported"),
    ("CPU", "ACCELERATE_USE_MEGATRON_LM=true", None, "Megatron-LM is not supported"),
    ("CPU", "ACCELERATE_USE_PARALLELISM_CONFIG=true", None, "tensor or context parallelism is not supported"),
    ("CPU", "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE=DATA_PARALLEL", None, "SageMaker's parallelism is not"),
    ("CPU", "PJRT_DEVICE=TPU", None, "TPUs and XLA are not supported; unset it"),
    (
        "CPU",
        "XRT_TPU_CONFIG=localservice;0;localhost:51011",
        None,
        "TPUs and XLA are not supported; unset it",
    ),
    ("CPU", "XLA_USE_BF16=1", None, "TPUs and XLA are not supported; unset it"),
    ("CPU", "XLA_DOWNCAST_BF16=1", None, "TPUs and XLA are not supported; unset it"),
    ("CPU", "ACCELERATE_DOWNCAST_BF16=true", None, "--downcast_bf16 is for TPUs"),
    ("one GPU", "ACCELERATE_TORCH_DEVICE=cuda:1", None, "unset it, and select GPUs by CUDA_VISIBLE_DEVICES"),
    ("CPU", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4", None, "set train.accumulation instead"),
    ("one GPU", "ACCELERATE_MIXED_PRECISION=fp8", None, "use no, bf16 or fp16"),
    ("one GPU", "ACCELERATE_MIXED_PRECISION=fp8", "bf16", "use no, bf16 or fp16"),
    ("CPU", "ACCELERATE_DYNAMO_BACKEND=EAGER", None, "use no or inductor"),
    ("CPU", "ACCELERATE_DYNAMO_MODE=max-autotune", None, "--dynamo_mode is not supported; leave it out"),
    ("CPU", "ACCELERATE_DYNAMO_USE_FULLGRAPH=True", None, "--dynamo_use_fullgraph is not supported"),
    ("CPU", "ACCELERATE_DYNAMO_USE_DYNAMIC=True", None, "--dynamo_use_dynamic is not supported"),
    (
        "CPU",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION=True",
        None,
        "--dynamo_use_regional_compilation is not supported",
    ),
    ("CPU", "WORLD_SIZE=2", None, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT must be set.* by torchrun or"),
    ("CPU", "WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_PORT=29500", None, "MASTER_ADDR must be set"),
    ("one GPU", "WORLD_SIZE=2 RANK=0 MASTER_ADDR=h MASTER_PORT=29500", None, "LOCAL_RANK must be set"),
    ("CPU", "OMPI_COMM_WORLD_SIZE=2", None, "processes started by MPI need RANK, .* by torchrun or"),
    ("CPU", "PMI_SIZE=2", None, "processes started by MPI need RANK"),
    ("one GPU", "LOCAL_WORLD_SIZE=2", None, "2 processes on a machine where 1 GPU.* start at most 1 on it"),
    ("one GPU", "LOCAL_RANK=1", None, "2 processes on a machine where 1 GPU"),
    ("CPU", "", "fp16", "fp16 needs a GPU; on a CPU use fp32 or bf16"),
    ("CPU", "", "tf32", "tf32 needs a GPU; on a CPU use fp32$"),
    ("one GPU", "ACCELERATE_USE_CPU=true", "tf32", "tf32 needs a GPU"),
    ("old GPU", "", "bf16", "bf16 needs a GPU of compute capability 8.0 .* Old has 7.5; use fp32 or fp16"),
    ("old GPU", "ACCELERATE_MIXED_PRECISION=bf16", None, "bf16 needs a GPU of compute capability 8.0"),
    ("old GPU", "", "tf32", "tf32 needs a GPU of compute capability 8.0"),
    ("one GPU", "NVIDIA_TF32_OVERRIDE=0", "tf32", "disabled by NVIDIA_TF32_OVERRIDE=0; unset it"),
]
# What Accelerate 1.15 and torchrun set by default, and what is honoured.
DEFAULTS = (
    "ACCELERATE_MIXED_PRECISION=no ACCELERATE_DYNAMO_BACKEND=NO ACCELERATE_DYNAMO_MODE=default "
    "ACCELERATE_DYNAMO_USE_FULLGRAPH=False ACCELERATE_DYNAMO_USE_DYNAMIC=False "
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION=False ACCELERATE_USE_CPU=False"
)
HONOURED = [
    ("CPU", DEFAULTS, None, ("fp32", False)),
    ("one GPU", DEFAULTS, None, ("fp32", False)),
    ("one GPU", DEFAULTS, "tf32", ("tf32", False)),
    ("one GPU", "ACCELERATE_MIXED_PRECISION=bf16", None, ("bf16", False)),
    ("CPU", "ACCELERATE_MIXED_PRECISION=bf16", None, ("bf16", False)),
    ("one GPU", "ACCELERATE_MIXED_PRECISION=bf16", "fp32", ("fp32", False)),
    ("old GPU", "ACCELERATE_MIXED_PRECISION=fp16", None, ("fp16", False)),
    ("one GPU", "ACCELERATE_DYNAMO_BACKEND=INDUCTOR", None, ("fp32", True)),
    ("one GPU", "LOCAL_WORLD_SIZE=2 ACCELERATE_USE_CPU=yes", None, ("fp32", False)),
    ("one GPU", "WORLD_SIZE=2 RANK=1 LOCAL_RANK=0 MASTER_ADDR=h MASTER_PORT=1", None, ("fp32", False)),
    ("CPU", "WORLD_SIZE=1 OMPI_COMM_WORLD_SIZE=2 PMI_SIZE=2", None, ("fp32", False)),
]


def place_on(monkeypatch: pytest.MonkeyPatch, name: str, environment: str) -> None:
    """Give this process the GPUs of a machine, and an environment without other variables of launchers."""
    prefixes = ("ACCELERATE_", "PMI_", "OMPI_", "XLA_", "NVIDIA_TF32", "LOCAL_", "MASTER_", "RANK", "WORLD_")
    prefixes += ("SLURM_", "CUDA_VISIBLE_DEVICES")
    for variable in [v for v in os.environ if v.startswith(prefixes)]:
        monkeypatch.delenv(variable)
    for assignment in environment.split():
        monkeypatch.setenv(*assignment.split("=", 1))
    gpus, capability = MACHINES[name]["gpus"], MACHINES[name].get("capability", (8, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Old")
    properties = SimpleNamespace(name="Old", total_memory=2**34)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)


def config_with(precision: str | None) -> Config:
    return read_config([QUICK, *([] if precision is None else [f"train.precision={precision}"])])


@pytest.mark.parametrize(("name", "environment", "precision", "message"), REFUSALS)
def test_what_training_does_not_implement_is_refused_by_training_and_the_doctor(
    monkeypatch: pytest.MonkeyPatch, name: str, environment: str, precision: str | None, message: str
):
    place_on(monkeypatch, name, environment)
    config = config_with(precision)
    with pytest.raises(ConfigError, match=message) as refusal:
        device.resolve_config(config)
    line = str(refusal.value)
    assert "\n" not in line
    assert ": " in line
    assert "; " in line
    context = PreflightContext([], ProcessPlace(0, 1, 0, 1), config=config)
    checks = (communication.check_settings, machine.check_devices, run.check_precision)
    findings = [finding for check in checks for finding in run_check(context, Check("x", check))]
    assert [finding.message for finding in findings if finding.level == FAIL] == [line]


@pytest.mark.parametrize(("name", "environment", "precision", "expected"), HONOURED)
def test_the_launcher_s_precision_and_compilation_are_entered_into_the_config(
    monkeypatch: pytest.MonkeyPatch, name: str, environment: str, precision: str | None, expected: tuple
):
    place_on(monkeypatch, name, environment)
    config = config_with(precision)
    resolved = device.resolve_config(config)
    assert (resolved.train.precision, resolved.train.compile) == expected
    assert (config.train.precision, config.train.compile) == (precision, False)


NO_CUDA = r"but torch .* cannot use a GPU on .*; check nvidia-smi .* or use train.device=cpu$"


@pytest.mark.parametrize(
    ("name", "environment", "choice", "message"),
    [
        ("CPU", "", "cuda", f"^train.device: cuda, {NO_CUDA}"),
        ("CPU", "SLURM_GPUS_ON_NODE=2", "auto", f"^train.device: SLURM_GPUS_ON_NODE=2, {NO_CUDA}"),
        ("CPU", "SLURM_JOB_GPUS=0", "auto", f"^train.device: SLURM_JOB_GPUS=0, {NO_CUDA}"),
        ("CPU", "CUDA_VISIBLE_DEVICES=0,1", "auto", f"^train.device: CUDA_VISIBLE_DEVICES=0,1, {NO_CUDA}"),
        (
            "one GPU",
            "ACCELERATE_USE_CPU=true",
            "cuda",
            "^train.device: cuda, but the launcher .*; change one",
        ),
    ],
)
def test_gpus_that_were_asked_for_must_work(
    monkeypatch: pytest.MonkeyPatch, name: str, environment: str, choice: str, message: str
):
    place_on(monkeypatch, name, environment)
    config = read_config([QUICK, f"train.device={choice}"])
    with pytest.raises(ConfigError, match=message) as refusal:
        device.resolve_config(config)
    context = PreflightContext([], ProcessPlace(0, 1, 0, 1), config=config)
    (finding,) = run_check(context, Check("devices", machine.check_devices))
    assert (finding.level, finding.message) == (FAIL, str(refusal.value))


@pytest.mark.parametrize(
    ("name", "environment", "choice", "uses_cuda"),
    [
        ("one GPU", "", "auto", True),
        ("one GPU", "SLURM_GPUS_ON_NODE=1 CUDA_VISIBLE_DEVICES=0", "cuda", True),
        ("one GPU", "SLURM_GPUS_ON_NODE=1", "cpu", False),
        ("one GPU", "ACCELERATE_USE_CPU=true", "auto", False),
        ("CPU", "SLURM_GPUS_ON_NODE=0 CUDA_VISIBLE_DEVICES= SLURM_JOB_GPUS=", "auto", False),
        ("CPU", "CUDA_VISIBLE_DEVICES=-1", "auto", False),
        ("CPU", "SLURM_GPUS_ON_NODE=2 ACCELERATE_USE_CPU=true", "auto", False),
        ("CPU", "SLURM_JOB_GPUS=0,1", "cpu", False),
    ],
)
def test_the_device_is_the_one_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch, name: str, environment: str, choice: str, uses_cuda: bool
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")  # so that it is restored afterwards
    place_on(monkeypatch, name, environment)
    device.resolve_config(read_config([QUICK, f"train.device={choice}"]))
    assert device.uses_cuda() == uses_cuda


@pytest.mark.parametrize(
    ("name", "place", "expected"),
    [
        ("CPU", ProcessPlace(1, 4, 1, 2), "cpu"),
        ("one GPU", ProcessPlace(0, 1, 0, 1), "cuda"),
        ("one GPU", ProcessPlace(1, 2, 0, 1), "cuda:0"),
        ("two GPUs", ProcessPlace(3, 4, 1, 2), "cuda:1"),
    ],
)
def test_the_doctor_examines_the_device_on_which_the_process_trains(
    monkeypatch: pytest.MonkeyPatch, name: str, place: ProcessPlace, expected: str
):
    place_on(monkeypatch, name, "")
    assert device.process_device(place) == torch.device(expected)


def test_torch_xla_is_refused_because_accelerate_would_use_it(monkeypatch: pytest.MonkeyPatch):
    place_on(monkeypatch, "CPU", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch_xla")
    with pytest.raises(ConfigError, match=r"torch_xla is installed: .* set USE_TORCH_XLA=0"):
        device.resolve_config(config_with(None))
    monkeypatch.setenv("USE_TORCH_XLA", "0")
    device.resolve_config(config_with(None))


def test_training_is_refused_before_torch_is_imported():
    program = (
        "import sys\nfrom infogan_dist.train import main\n"
        f"try: main(['{QUICK}'])\nfinally: print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment() | {"ACCELERATE_USE_FSDP": "true"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ACCELERATE_USE_FSDP=true: FSDP is not supported")


def test_a_gpu_that_no_process_uses_may_be_old(monkeypatch: pytest.MonkeyPatch):
    place_on(monkeypatch, "one GPU", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: ((9, 0), (7, 5))[i])
    device.resolve_config(config_with("bf16"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="compute capability"):
        device.resolve_config(config_with("bf16"))


@pytest.mark.parametrize(
    ("error", "printed"),
    [(MachineError("device: a; b"), [True, False, True, False]), (ConfigError("a: b"), [True] + [False] * 3)],
)
def test_the_first_process_of_each_machine_prints_what_that_machine_refuses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: ConfigError,
    printed: list[bool],
):
    """Of two machines with two processes each, the second may have other GPUs than the first."""
    monkeypatch.setattr(console, "ERROR_DELAY_S", 0)
    for rank, expected in enumerate(printed):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        console.set_up_logging()
        with pytest.raises(SystemExit) as stop, console.exit_on_user_error():
            raise error
        assert stop.value.code == 2
        assert capsys.readouterr().err == (f"error: {error}\n" if expected else "")


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Restore what `prepare_device` changes."""
    threads = torch.get_num_threads()
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_tf32_allows_tf32_in_products_of_float32(
    torch_settings: None, monkeypatch: pytest.MonkeyPatch, precision: str
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which `prepare_device` changes
    tf32 = precision == "tf32"
    for before in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
        assert not device.prepare_device(precision)
        assert torch.backends.cuda.matmul.allow_tf32 == tf32
        assert torch.backends.cudnn.allow_tf32 == tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")


def test_the_doctor_measures_the_communication_with_the_algorithms_of_training(
    torch_settings: None, monkeypatch: pytest.MonkeyPatch
):
    place_on(monkeypatch, "two GPUs", "")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "rendezvous", lambda *args, **options: iter([(dist.HashStore(), 0, 2)]))
    environments: list[dict[str, str]] = []

    def connect(backend: str, **options: object) -> None:
        environments.append(dict(os.environ))
        raise RuntimeError(f"no {backend}")

    monkeypatch.setattr(dist, "init_process_group", connect)
    unset = {k: v for k, v in os.environ.items() if k not in ("NCCL_ALGO", "CUBLAS_WORKSPACE_CONFIG")}
    monkeypatch.setattr(os, "environ", unset.copy())
    (finding,) = communication.check_communication(PreflightContext([], ProcessPlace(0, 2, 0, 2)))
    assert "(no nccl)" in finding.message

    monkeypatch.setattr(os, "environ", unset.copy())
    device.prepare_device("fp32")
    (connected,) = environments
    assert "NVLS" in connected["NCCL_ALGO"]
    assert connected["NCCL_ALGO"] == os.environ["NCCL_ALGO"]


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_an_accelerator_that_is_not_used_is_reported(
    torch_settings: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
):
    place_on(monkeypatch, "CPU", "OMP_NUM_THREADS=1")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    context = PreflightContext([], ProcessPlace(0, 1, 0, 1))
    message = f"device: {kind} is not used, because training needs float64 and deterministic algorithms"
    with caplog.at_level(logging.WARNING):
        assert not device.prepare_device("fp32")
    (record,) = caplog.records
    assert record.message.startswith(message)
    assert record.message.endswith("training on the CPU")
    levels = {finding.level: finding.message for finding in machine.check_devices(context)}
    assert levels.keys() == {WARN, OK}
    assert levels[WARN] == record.message

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    caplog.clear()
    device.prepare_device("fp32")
    assert not caplog.records
    assert [finding.level for finding in machine.check_devices(context)] == [OK]
