"""What a run finds on its machine, looked at before it starts; and what a look at something is.

A check takes a `Case` and yields a `Finding` for each thing it sees. A `UserError` that it raises counts as
one, for what training itself refuses is called here as it is.
"""

import os
import platform
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement
from torch.cuda import nccl

from infogan_dist import __version__
from infogan_dist.config.schema import Config
from infogan_dist.data.shards import Manifest
from infogan_dist.launcher import STOP_SIGNALS
from infogan_dist.runtime.distributed import GLOO_GRACE_S, cores, uses_cuda

OK, WARN, FAIL, UNSEEN = "ok", "WARN", "FAIL", "-"
MEETING_TIMEOUT_S = 60  # for processes to meet, and for their first words
BUCKET_BYTES = 25 * 2**20  # of gradients, that DDP sends at once
DELIVERY_TIMEOUT_S = 1
UNITS = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


@dataclass(frozen=True)
class Finding:
    """What a check saw.

    Attributes:
        level: ok, WARN, FAIL, or - where nothing was looked at.
        seen: what, and where.
        remedy: what to do about it.
        shared: it is about what all processes share, whichever of them saw it.
        alike: all processes should see the same.
    """

    level: str
    seen: str
    remedy: str = ""
    shared: bool = False
    alike: bool = False


Findings = Iterator[Finding]


@dataclass
class Case:
    """What is examined, and what earlier checks have found out about it for later ones.

    Attributes:
        words: the command line's, as `train` takes them; none: the machine alone.
        rank, world, local_world: this process, all of them, and those on this machine.
        store: where the processes have met; None before that, or if they cannot.
        config, manifest, checkpoint_bytes: None where they are not sound.
    """

    words: list[str]
    rank: int
    world: int
    local_world: int
    store: dist.Store | None = None
    config: Config | None = None
    manifest: Manifest | None = None
    checkpoint_bytes: int | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def versions(case: Case) -> Findings:
    """What is installed against what the package asks for."""
    try:
        needed = [r for r in map(Requirement, metadata.requires("infogan_dist") or []) if r.marker is None]
    except metadata.PackageNotFoundError:
        yield Finding(WARN, "infogan_dist is not installed, only run", "`pip install -e .` in its checkout")
        needed = []
    for requirement in needed:
        try:
            have = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            have = "none"
        if have == "none" or not requirement.specifier.contains(have, prereleases=True):
            yield Finding(FAIL, f"{requirement} is needed, {have} is there", f"`pip install '{requirement}'`")
    cuda = "no CUDA"
    if torch.version.cuda:
        cuda = f"CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, nccl.version()))}"
    others = ", ".join(f"{n} {metadata.version(n)}" for n in ("accelerate", "webdataset", "wandb"))
    python = platform.python_version()
    seen = f"infogan_dist {__version__}, Python {python}, torch {torch.__version__} ({cuda}), {others}"
    yield Finding(OK, seen, alike=True)


def devices(case: Case) -> Findings:
    """GPUs, and processes without one; cores, and what launchers hold back of them."""
    count = cores()
    if uses_cuda():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        kinds = ", ".join(f"{g.name} ({size(g.total_memory)})" for g in gpus)
        yield Finding(OK, f"{len(gpus)} GPU(s): {kinds}; {count} cores", alike=True)
        place = int(os.environ.get("LOCAL_RANK", "0"))
        remedy = f"start {len(gpus)} processes on this machine: --num_processes, --nproc-per-node"
        if place >= len(gpus):
            yield Finding(FAIL, f"LOCAL_RANK {place}, but {len(gpus)} GPU(s) here", remedy)
        if case.is_first and case.local_world < len(gpus):
            yield Finding(WARN, f"{len(gpus)} GPUs here, {case.local_world} process(es): some idle", remedy)
        return
    if Path("/dev/nvidia0").exists() and not torch.cuda.is_available():
        remedy = "install the driver and a CUDA build of torch that fits it"
        yield Finding(WARN, f"a GPU is here that torch {torch.__version__} cannot use", remedy)
    note = ""
    if os.environ.get("OMP_NUM_THREADS") == "1" and count > case.local_world:
        note = f"; OMP_NUM_THREADS=1 is a launcher's, training takes {count // case.local_world} a process"
    yield Finding(OK, f"no GPU in use; {count} cores for {case.local_world} process(es){note}", alike=True)


def signals(case: Case) -> Findings:
    """Whether a request to stop would be heard. An ignored signal is: training sets handlers of its own."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for number in STOP_SIGNALS:
        if number in blocked:
            remedy = "unblock it in what starts this process (sigprocmask): it is inherited"
            yield Finding(FAIL, f"{number.name} is blocked, and so would never be heard", remedy)
        elif not _delivered(number):
            yield Finding(FAIL, f"{number.name}, sent to itself, does not arrive", "start it otherwise")
    if case.is_first and not blocked & set(STOP_SIGNALS):
        yield Finding(OK, f"{', '.join(n.name for n in STOP_SIGNALS)} arrive")


def _delivered(number: signal.Signals) -> bool:
    arrived: list[int] = []
    before = signal.signal(number, lambda n, frame: arrived.append(n))
    try:
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S
        while not arrived and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        signal.signal(number, before)
    return arrived == [number]


def communication(case: Case, timeout_s: float = MEETING_TIMEOUT_S) -> Findings:
    """Lets the processes meet, as training would, and add up a number and a bucket of gradients."""
    if case.world == 1:
        yield Finding(OK, "one process: nothing to do")
        return
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    # Without it a NCCL time-out would end the process instead of the call.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    limit = timedelta(seconds=timeout_s)
    try:
        store, *_ = next(iter(dist.rendezvous("env://", timeout=limit)))
        case.store = dist.PrefixStore("doctor", store)
        seconds = _round_trip(case, dist.PrefixStore("group", case.store), limit)
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        yield Finding(
            FAIL,
            f"process {case.rank} of {case.world}, on {socket.gethostname()}, cannot reach the rest ({said})",
            f"were all started? Each must reach {place} (MASTER_ADDR, MASTER_PORT) and one another: look at "
            "firewalls, and set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to the network that joins them",
            shared=True,
        )
        return
    if case.is_first:
        speed = f"{seconds * 1e3:,.0f} ms ({size(BUCKET_BYTES / seconds)}/s)"
        said = f"{case.world} processes add up {size(BUCKET_BYTES)} of gradients in {speed}"
        yield Finding(OK, said)


def _round_trip(case: Case, store: dist.Store, limit: timedelta) -> float:
    """Seconds that adding up a bucket of gradients over the processes takes. Raises `RuntimeError`."""
    device = torch.device("cpu")
    if uses_cuda():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=case.rank, world_size=case.world, timeout=limit)
    total = torch.full((1,), case.rank + 1.0, device=device)
    bucket = torch.ones(BUCKET_BYTES // 4, device=device)
    dist.all_reduce(total)
    dist.all_reduce(bucket)  # the first of a size is slower
    began = time.perf_counter()
    dist.all_reduce(bucket)
    last = bucket[-1].item()  # waits for the device
    seconds = time.perf_counter() - began
    if (total.item(), last) != (case.world * (case.world + 1) / 2, case.world**2):
        raise RuntimeError(f"wrong sums: {total.item():g}, {last:g}")
    del total, bucket
    time.sleep(GLOO_GRACE_S)  # see `Engine.close`
    dist.destroy_process_group()
    return seconds


def size(count: float) -> str:
    """Bytes in words."""
    unit = next((u for u, least in UNITS.items() if count >= least), "KiB")
    return f"{count / UNITS[unit]:,.1f} {unit}"
