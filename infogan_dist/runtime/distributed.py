"""Processes, devices, precision and collectives: the only module that uses Accelerate's process group."""

import hashlib
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from infogan_dist.config.schema import AdamConfig, Config
from infogan_dist.launcher import STOP_SIGNALS
from infogan_dist.runtime.batch_norm import AllReduce, convert_to_global, flatten_buffers
from infogan_dist.runtime.device import prepare_device, resolve_config
from infogan_dist.runtime.failure import start_watch

# Warnings of DDP: of buffers, which `GlobalBatchNorm` makes equal; of the strides of one-row gradients.
HARMLESS_WARNINGS = (".*broadcast_buffers.*", "Grad strides do not match bucket view strides")
GLOO_GRACE_S = 0.2  # for gloo's threads to release their last tensors; see `Engine.close`

logger = logging.getLogger(__name__)


@dataclass
class TrainablePart:
    """The parameters that one update trains, as one module, so that DDP reduces exactly their gradients.

    Attributes:
        module: wrapped for distributed training; its forward is called where its gradients are to be reduced.
        buffers: all its buffers, in one tensor for each data type.
        optimizer: Adam over all its parameters.
        scaler: scales the gradients in fp16; does nothing in other precisions.
        clip: largest gradient norm, or None.
    """

    module: nn.Module
    buffers: list[Tensor]
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler
    clip: float | None


class Engine:
    """The device of this process, its precision, and its communication with the other processes.

    Args:
        config: the run's config; its precision is checked against the device.

    Attributes:
        accelerator: Accelerate's object; wraps modules and logs.
        device: the device of this process.
        dtype: number type of weights and of the optimizer's state: float64 under `fp64`, else float32.
        fp16: whether gradients are scaled.
        graphed: whether steps are recorded as a CUDA graph.
        world, rank: the number of processes, and the index of this one.
        is_main: whether this process logs, draws and saves.

    Raises:
        ConfigError: the device does not support the precision.
    """

    def __init__(self, config: Config):
        precision = resolve_config(config).train.precision
        assert precision is not None
        cuda = prepare_device(precision)
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.accelerator = Accelerator(
            cpu=not cuda,
            dynamo_backend="no",  # networks are compiled by `training/state.py`
            mixed_precision=precision if precision in ("bf16", "fp16") else "no",
            # Two forwards of one module before a backward would fail on buffers broadcast in between.
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.collective_timeout_s)),
            ],
        )
        self.device, self.fp16 = self.accelerator.device, precision == "fp16"
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.is_main = self.accelerator.is_main_process
        self.graphed = config.train.cuda_graph
        self._flags: Tensor | None = None
        self._flags_ready: Any = None
        self._stop = self._listening = False
        self._timeout_s = config.train.collective_timeout_s
        store = dist.distributed_c10d._get_default_store() if self.world > 1 else None
        self._watch = start_watch(store, self.rank) if store is not None else None

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device and dtype of the run; batch norm becomes that of all processes."""
        if self.world > 1:
            convert_to_global(network)
        return network.to(self.device, self.dtype)

    def trainable_part(self, module: nn.Module, adam: AdamConfig) -> TrainablePart:
        """Wrap a module of placed networks for distributed training, with Adam over its parameters."""
        # A CUDA graph would repeat a number of Python's as it was recorded.
        lr = torch.tensor(adam.lr, device=self.device) if self.graphed else adam.lr
        optimizer = torch.optim.Adam(
            module.parameters(), lr, (adam.beta1, adam.beta2), adam.eps, fused=True, capturable=self.graphed
        )
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        wrapped = self.accelerator.prepare_model(module)
        # Only now: wrapping gives the buffers storages of their own.
        buffers = flatten_buffers(wrapped)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.fp16)
        return TrainablePart(wrapped, buffers, optimizer, scaler, adam.clip)

    def autocast(self) -> AbstractContextManager:
        """Return a context in which networks compute in the run's mixed precision."""
        return self.accelerator.autocast()

    @contextmanager
    def accumulate(self, part: TrainablePart, last: bool) -> Iterator[None]:
        """Enclose forward and backward of a micro-batch, so that only the last one reduces the gradients."""
        if last or self.world == 1:
            yield
        else:
            with self.accelerator.no_sync(part.module):
                yield

    def backward(self, part: TrainablePart, loss: Tensor) -> Tensor:
        """Add a loss's gradients to `.grad`. A loss that is not finite makes them NaN on every process.

        Returns:
            Whether this process's loss was not finite, bool [].
        """
        seed = loss.detach() * 0 + 1  # 1, or NaN
        part.scaler.scale(loss).backward(gradient=seed)
        return seed.isnan()

    def update(self, part: TrainablePart, suppress: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take one step of Adam, unless a gradient is not finite; the host does not wait for the device.

        Args:
            part: the parameters, with their gradients.
            suppress: bool [] on the device; where true, the step is suppressed as well.

        Returns:
            The norm of all gradients before clipping, and whether it was not finite, bool []. Both are the
            same on all processes, since the gradients are.
        """
        optimizer: Any = part.optimizer
        part.scaler.unscale_(optimizer)
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = nn.utils.get_total_norm(gradients)
        nonfinite = (norm - norm).isnan()  # torch.isfinite takes four operations
        if part.clip is not None:
            torch._foreach_mul_(gradients, (part.clip / (norm + 1e-6)).clamp_max(1.0))
        # The fused kernel changes neither parameters nor moments where found_inf is 1.
        optimizer.found_inf = (nonfinite if suppress is None else nonfinite | suppress).float()
        optimizer.step()
        part.scaler.update()
        optimizer.zero_grad()
        return norm, nonfinite

    def copy_state(self, part: TrainablePart) -> Callable[[Tensor], None]:
        """Copy the parameters and Adam's state of a part; return a function that restores them.

        The function takes a flag, bool [] on the device, and restores where it is true.
        """
        parameters = [p for group in part.optimizer.param_groups for p in group["params"]]
        weights = [p.detach().clone() for p in parameters]
        # Adam creates its state, which starts at zero, in its first step.
        state = [{k: v.clone() for k, v in part.optimizer.state.get(p, {}).items()} for p in parameters]

        @torch.no_grad()
        def restore(flag: Tensor) -> None:
            for parameter, weight, moments in zip(parameters, weights, state, strict=True):
                parameter.copy_(torch.where(flag, weight, parameter))
                for name, value in part.optimizer.state.get(parameter, {}).items():
                    value.copy_(torch.where(flag, moments.get(name, torch.zeros_like(value)), value))

        return restore

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        return self.accelerator.reduce(values, "sum")  # type: ignore[return-value]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, through which gradients pass to all of them."""
        return values if self.world == 1 else AllReduce.apply(values) / self.world

    def gather(self, values: Tensor) -> Tensor:
        """Return the tensors [M] of all processes as rows [world, M]."""
        return self.accelerator.gather(values[None])  # type: ignore[return-value]

    def distributed_map(self, count: int, width: int, task: Callable[[int], Any]) -> np.ndarray:
        """Compute a table whose rows are divided among the processes; to be called by all of them.

        Args:
            count, width: rows and columns of the table.
            task: maps the index of a row to its `width` numbers, which must depend on that index alone. A
                process computes neighbouring rows, so that a shard which several rows share is read once.

        Returns:
            float64 [count, width], the same on all processes and for any number of processes.
        """
        rows = torch.zeros(count, width, dtype=torch.float64)
        for i in range(count * self.rank // self.world, count * (self.rank + 1) // self.world):
            rows[i] = torch.as_tensor(task(i), dtype=torch.float64)
        return self.sum(rows.to(self.device)).cpu().numpy()

    def differing_ranks(self, values: list[str]) -> list[list[int]]:
        """Return, for each value, the ranks whose value differs from that of rank 0. To be called by all."""
        digests = [hashlib.sha256(value.encode()).digest() for value in values]
        # Six bytes are exact in float64.
        own = torch.tensor([int.from_bytes(d[:6], "big") for d in digests], dtype=torch.float64)
        table = self.gather(own.to(self.device))
        return [(column != column[0]).nonzero().flatten().tolist() for column in table.T]

    def wait(self) -> None:
        """Wait for all processes. Not for use in a step."""
        self.accelerator.wait_for_everyone()

    def fails_alike(self, message: str) -> bool:
        """Print a warning of an error, once for all processes; return whether all of them have it.

        To be called where a run may continue without what has failed. If one process failed alone, the others
        wait for it, and the run cannot continue.
        """
        if self._watch is not None:
            return self._watch.fails_alike(self.world, message)
        logger.warning(message)
        return True

    @contextmanager
    def timed(self, task: str) -> Iterator[None]:
        """Enclose what the main process does while the others wait; warn if it approaches their time-out."""
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        if self.world > 1 and self.is_main and seconds > self._timeout_s / 2:
            logger.warning(
                "%s took %.0f s; after train.collective_timeout_s=%d the other processes stop waiting; "
                "set a longer time",
                task,
                seconds,
                self._timeout_s,
            )

    def close(self) -> None:
        """End the trackers and the process group, where all processes end alike; to be called by all.

        After an error of one process see `runtime/failure.py`: destroying the group waits for the others.
        """
        if self._watch is not None:
            self.wait()  # from here on none of them can fail, and a store that is lost means nothing
            self._watch.close()
            # The group's destructor holds Python's lock while it waits for gloo's threads, which need that
            # lock to release their last tensors. The pause lets them release these first.
            time.sleep(GLOO_GRACE_S)
        self.accelerator.end_training()
        if self._listening:
            # Everything is saved: a signal that arrives during Python's shutdown must not kill the process.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def listen_for_stop(self) -> None:
        """Record stop signals from here on, for `exchange`; a second Ctrl-C interrupts at once."""

        def record(number: int, frame: Any) -> None:
            if self._stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = True

        self._listening = True
        for number in STOP_SIGNALS:
            signal.signal(number, record)

    def exchange(self, flags: Tensor) -> list[float] | None:
        """Send this step's flags and return those of the step before, so that the host does not wait.

        Args:
            flags: float32 [F] on the device. A flag is set for all processes if one of them sets it. Whether
                this process was asked to stop is added in front.

        Returns:
            The flags [1 + F] of the step before, the same on all processes; None in the first step.
        """
        last = self.last_flags()
        stop = torch.full((1,), float(self._stop), device=self.device)
        sent = torch.cat([stop, flags])
        work = dist.all_reduce(sent, dist.ReduceOp.MAX, async_op=True) if self.world > 1 else None
        if self.device.type == "cuda":
            if work is not None:
                work.wait()  # orders the streams; the host does not wait
            self._flags = torch.empty(sent.shape, pin_memory=True).copy_(sent, non_blocking=True)
            self._flags_ready = torch.cuda.Event()
            self._flags_ready.record()
        else:
            self._flags, self._flags_ready = sent, work
        return last

    def last_flags(self) -> list[float] | None:
        """Wait for the flags of the last exchange and return them; None if there are none pending."""
        flags, ready = self._flags, self._flags_ready
        self._flags = self._flags_ready = None
        if flags is None:
            return None
        if isinstance(ready, torch.cuda.Event):
            ready.synchronize()
        elif ready is not None:
            ready.wait()
        return flags.tolist()
