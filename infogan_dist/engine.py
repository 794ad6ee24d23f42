"""Everything that knows processes, devices and precision."""

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infogan_dist.checks import check_batch
from infogan_dist.config import PRECISIONS, AdamConfig, Config
from infogan_dist.errors import ConfigError

# DDP's: of buffers that are made equal here; and of a gradient of one row, whose strides mean nothing.
HARMLESS = (".*broadcast_buffers.*", "Grad strides do not match bucket view strides")
GLOO_GRACE_S = 0.2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass
class Part:
    """The parameters that one step updates, as one module, so that each step reduces exactly its own.

    Attributes:
        module: wrapped for distributed training; call it where its gradients are to be reduced.
        optimizer: Adam over all its parameters.
        scaler: of fp16's gradients; does nothing in other precisions.
        clip: largest gradient norm, or None.
    """

    module: nn.Module
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler
    clip: float | None


class Engine:
    """This process among the others.

    Args:
        config: the run's; its precision is checked against the device.

    Raises:
        ConfigError: the device cannot do the precision.
    """

    def __init__(self, config: Config):
        cuda = uses_cuda()
        precision = precision_of(config, cuda)
        _make_deterministic(cuda)
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.accelerator = Accelerator(
            cpu=not cuda,
            mixed_precision=precision if precision in ("bf16", "fp16") else "no",
            # Two forwards of one module before a backward would fail on buffers broadcast in between.
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
            ],
        )
        self.device, self.fp16 = self.accelerator.device, precision == "fp16"
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.is_main = self.accelerator.is_main_process
        self._flags: Tensor | None = None
        self._flags_ready: Any = None
        self._stop = self._listening = False

    def place(self, network: nn.Module) -> nn.Module:
        """The network on this device in the run's number type; batch norm made global where torch can."""
        if self.device.type == "cuda" and self.world > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return network.to(self.device, self.dtype)

    def part(self, module: nn.Module, adam: AdamConfig) -> Part:
        """Wraps a module of placed networks, with Adam over its parameters."""
        optimizer = torch.optim.Adam(
            module.parameters(), adam.lr, (adam.beta1, adam.beta2), adam.eps, fused=True
        )
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        wrapped = self.accelerator.prepare_model(module)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.fp16)
        return Part(wrapped, optimizer, scaler, adam.clip)

    def autocast(self) -> AbstractContextManager:
        """Computes in the run's mixed precision."""
        return self.accelerator.autocast()

    @contextmanager
    def accumulate(self, part: Part, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: only the last one's reduces the gradients."""
        if last or self.world == 1:
            yield
        else:
            with self.accelerator.no_sync(part.module):
                yield

    def backward(self, part: Part, loss: Tensor) -> None:
        """Adds up gradients; a loss that is not finite makes them all NaN, and so on every process."""
        seed = torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)
        part.scaler.scale(loss).backward(gradient=seed)

    def update(self, part: Part, blocked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of Adam, unless a gradient is not finite or the step is blocked; no host waits.

        Returns:
            The gradients' norm before clipping, and whether they were not finite (bool). Both are the
            same on all processes, for the gradients are.
        """
        optimizer: Any = part.optimizer
        part.scaler.unscale_(optimizer)
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = nn.utils.get_total_norm(gradients)
        bad = ~norm.isfinite()
        if part.clip is not None:
            torch._foreach_mul_(gradients, (part.clip / (norm + 1e-6)).clamp_max(1.0))
        # The fused kernel leaves parameters and moments alone where found_inf is 1.
        optimizer.found_inf = (bad if blocked is None else bad | blocked).float()
        optimizer.step()
        part.scaler.update()
        optimizer.zero_grad()
        return norm, bad

    def average_buffers(self, networks: Iterable[nn.Module]) -> None:
        """Makes batch-norm statistics equal over the processes where batch norm is each one's own."""
        if self.world == 1 or self.device.type == "cuda":
            return
        buffers = [b for network in networks for b in network.buffers() if b.is_floating_point()]
        if buffers:
            flat = torch.cat([b.flatten() for b in buffers])
            dist.all_reduce(flat)
            parts = (flat / self.world).split([b.numel() for b in buffers])
            torch._foreach_copy_(buffers, [p.view_as(b) for p, b in zip(parts, buffers, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        return self.accelerator.reduce(values, "sum")  # type: ignore[return-value]

    def gather(self, values: Tensor) -> Tensor:
        """Each process's [M] as rows [world, M]."""
        return self.accelerator.gather(values[None])  # type: ignore[return-value]

    def spread(self, count: int, width: int, task: Callable[[int], Any]) -> np.ndarray:
        """A table whose rows the processes work out side by side, float64 [count, width], the same on all.

        Args:
            task: a row's number to its `width` numbers, which depend on it alone. Each process does a run of
                neighbouring rows, so that what they have in common, such as a shard, is read once.
        """
        rows = torch.zeros(count, width, dtype=torch.float64)
        for i in range(count * self.rank // self.world, count * (self.rank + 1) // self.world):
            rows[i] = torch.as_tensor(task(i), dtype=torch.float64)
        return self.sum(rows.to(self.device)).cpu().numpy()

    def wait(self) -> None:
        """Waits for all processes. Not for use in a step."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Ends the trackers and the process group."""
        if self.world > 1:
            # gloo's threads need Python's lock to let go of their last tensors; the group's destructor holds
            # it while it waits for them. So they go first.
            time.sleep(GLOO_GRACE_S)
        self.accelerator.end_training()
        if self._listening:
            # All is saved: a signal that comes late, when Python has let go of its handlers, must not kill.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def listen_for_stop(self) -> None:
        """From here on a stop signal is only noted; a second one of the keyboard's interrupts at once."""

        def note(number: int, frame: Any) -> None:
            if self._stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = True

        self._listening = True
        for number in STOP_SIGNALS:
            signal.signal(number, note)

    def exchange(self, flags: Tensor) -> list[float] | None:
        """Sends this step's flags and returns the last step's, so that nobody waits for this one's.

        Args:
            flags: float32 [F] on the device; a flag holds where any process has set it. Whether this process
                was asked to stop is added in front.

        Returns:
            The flags [1 + F] of the step before, the same on all processes; None in the first step.
        """
        last = self.last_flags()
        asked = torch.full((1,), float(self._stop), device=self.device)
        sent = torch.cat([asked, flags])
        work = dist.all_reduce(sent, dist.ReduceOp.MAX, async_op=True) if self.world > 1 else None
        if self.device.type == "cuda":
            if work is not None:
                work.wait()  # orders the streams; the host goes on
            self._flags = torch.empty(sent.shape, pin_memory=True).copy_(sent, non_blocking=True)
            self._flags_ready = torch.cuda.Event()
            self._flags_ready.record()
        else:
            self._flags, self._flags_ready = sent, work
        return last

    def last_flags(self) -> list[float] | None:
        """The flags of the last exchange, once they are there; after it nothing is under way any more."""
        flags, ready = self._flags, self._flags_ready
        self._flags = self._flags_ready = None
        if flags is None:
            return None
        if isinstance(ready, torch.cuda.Event):
            ready.synchronize()
        elif ready is not None:
            ready.wait()
        return flags.tolist()


def check_world(config: Config) -> int:
    """The number of processes that came up. Raises `ConfigError` if the run cannot be shared out over it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    asked = config.train.processes
    if asked is not None and asked != world:
        raise ConfigError(
            f"train.processes: {asked} asked for, {world} came up; without "
            "GPUs start them by `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
            f"--num_processes {asked} ...` or `torchrun --nproc-per-node {asked} ...`"
        )
    check_batch(config, world)
    return world


def uses_cuda() -> bool:
    """Whether processes take a GPU each."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")


def cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def is_first() -> bool:
    """Whether this is the main process, before the processes have met."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Forwards in here give the networks' parameters no gradients and leave batch-norm statistics alone."""
    parameters = [p for n in networks for p in n.parameters() if p.requires_grad]
    with untracked(*networks):
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)


@contextmanager
def untracked(*networks: nn.Module) -> Iterator[None]:
    """Batch norm in here uses the batch's statistics, as in training, without adding to the running ones."""
    norms = [m for n in networks for m in n.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def precision_of(config: Config, cuda: bool) -> str:
    """fp32, bf16, fp16 or fp64: the config's, else the launcher's. Raises `ConfigError`."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = config.train.precision or {"no": "fp32"}.get(launched, launched)
    if precision not in PRECISIONS:
        raise ConfigError(f"accelerate launch --mixed_precision {launched}: use no, bf16 or fp16")
    if precision == "fp16" and not cuda:
        raise ConfigError("train.precision: fp16 needs a GPU; on a CPU use fp32 or bf16")
    return precision


def _make_deterministic(cuda: bool) -> None:
    """The same sums in the same order each time; and on a CPU all cores, which launchers hold back."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return
    share = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    # Launchers set OMP_NUM_THREADS=1 unasked; more than 1 is somebody's wish.
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    threads = threads if threads > 1 else share
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
