"""Checks of the machine: installed libraries, devices, and the delivery of signals."""

import os
import platform
import signal
import time
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from torch.cuda import nccl

from infogan_dist import __version__
from infogan_dist.launcher import STOP_SIGNALS
from infogan_dist.preflight.finding import FAIL, OK, WARN, Finding, Findings, PreflightContext, format_bytes
from infogan_dist.runtime.device import check_device, check_gpus, cores, unused_accelerator, uses_cuda

SIGNAL_TIMEOUT_S = 1


def check_versions(context: PreflightContext) -> Findings:
    """Compare the installed libraries with the package's requirements."""
    try:
        requirements = [Requirement(text) for text in metadata.requires("infogan_dist") or []]
    except metadata.PackageNotFoundError:
        yield Finding(
            WARN, "infogan_dist is imported from a folder, not installed", "run `pip install -e .` there"
        )
        requirements = []
    for requirement in requirements:
        if requirement.marker is not None:  # one of an optional extra
            continue
        installed = _installed_version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            message = f"{requirement} is required, {installed or 'no version'} is installed"
            yield Finding(FAIL, message, f"run `pip install '{requirement}'`")
    cuda = "no CUDA"
    if torch.version.cuda:
        cuda = f"CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, nccl.version()))}"
    libraries = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("accelerate", "webdataset", "wandb")
    )
    python = platform.python_version()
    yield Finding(
        OK,
        f"infogan_dist {__version__}, Python {python}, torch {torch.__version__} ({cuda}), {libraries}",
        uniform=True,
    )


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_devices(context: PreflightContext) -> Findings:
    """Compare the machine's GPUs and cores with the processes on it."""
    place, core_count = context.place, cores()
    check_device(context.config.train.device if context.config is not None else "auto")
    if uses_cuda():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({format_bytes(gpu.total_memory)})" for gpu in gpus)
        yield Finding(OK, f"{len(gpus)} GPU(s): {names}; {core_count} cores", uniform=True)
        check_gpus()
        if place.is_first and place.local_world < len(gpus):
            message = (
                f"this machine has {len(gpus)} GPUs and {place.local_world} process(es); some GPUs are idle"
            )
            remedy = f"start {len(gpus)} processes on this machine (--num_processes or --nproc-per-node)"
            if context.config is not None and context.config.train.cuda_graph:  # for one process only
                remedy = "select one by CUDA_VISIBLE_DEVICES, and use the others for other runs"
            yield Finding(WARN, message, remedy)
        return
    if message := unused_accelerator():
        yield Finding(WARN, message)
    if Path("/dev/nvidia0").exists() and not torch.cuda.is_available():
        message = f"this machine has a GPU that torch {torch.__version__} cannot use"
        yield Finding(WARN, message, "install the driver and a CUDA build of torch that fits it")
    note = ""
    if os.environ.get("OMP_NUM_THREADS") == "1" and core_count > place.local_world:
        threads = core_count // place.local_world
        note = f"; training replaces the launcher's OMP_NUM_THREADS=1 by {threads} threads per process"
    message = f"no GPU in use; {core_count} cores for {place.local_world} process(es){note}"
    yield Finding(OK, message, uniform=True)


def check_signals(context: PreflightContext) -> Findings:
    """Check that requests to stop arrive. Ignored signals do, because training installs its own handlers."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for number in STOP_SIGNALS:
        if number in blocked:
            message = f"{number.name} is blocked, so a request to stop would never arrive"
            remedy = (
                "unblock it (sigprocmask) in the program that starts this process, which inherits the mask"
            )
            yield Finding(FAIL, message, remedy)
        elif not _is_delivered(number):
            message = f"{number.name} does not arrive when this process sends it to itself"
            yield Finding(FAIL, message, "start the process in another way")
    if context.place.is_first and not blocked & set(STOP_SIGNALS):
        yield Finding(OK, f"{', '.join(number.name for number in STOP_SIGNALS)} arrive")


def _is_delivered(number: signal.Signals) -> bool:
    received: list[int] = []
    previous = signal.signal(number, lambda number, frame: received.append(number))
    try:
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + SIGNAL_TIMEOUT_S
        while not received and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        signal.signal(number, previous)
    return received == [number]
