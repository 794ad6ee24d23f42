"""Checks of the launcher's settings, and of the communication between the processes of a run."""

import os
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from infogan_dist.launcher import check_launcher
from infogan_dist.preflight.finding import FAIL, OK, Finding, Findings, PreflightContext, format_bytes

if TYPE_CHECKING:
    from torch.distributed import Store

CONNECT_TIMEOUT_S = 60  # for the rendezvous, and again for the first collective
BUCKET_BYTES = 25 * 2**20  # of gradients that DDP reduces at once


def check_settings(context: PreflightContext) -> Findings:
    """Check that training implements what the launcher asks for."""
    check_launcher()
    place = context.place
    if place.is_first:
        yield Finding(OK, f"{place.world} process(es), of which {place.local_world} on this machine")


def check_communication(context: PreflightContext, timeout_s: float = CONNECT_TIMEOUT_S) -> Findings:
    """Connect the processes as training does, and reduce one bucket of gradients.

    Args:
        context: receives the store that the processes share.
        timeout_s: limit of the rendezvous, and of each collective.
    """
    place = context.place
    if place.world == 1:
        yield Finding(OK, "a single process, which needs none")
        return
    import torch.distributed as dist  # only now, because it takes seconds that a single process need not wait

    # With the default, a timeout of NCCL would end the process instead of raising an error.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    limit = timedelta(seconds=timeout_s)
    try:
        store, *_ = next(iter(dist.rendezvous("env://", timeout=limit)))
        context.store = dist.PrefixStore("doctor", store)
        seconds = _reduce_bucket(context, dist.PrefixStore("group", context.store), limit)
    except (RuntimeError, ValueError) as error:
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        host = socket.gethostname()
        yield Finding(
            FAIL,
            f"process {place.rank} of {place.world}, on {host}, cannot reach the other processes ({cause})",
            f"check that all were started, that each reaches {address} (MASTER_ADDR, MASTER_PORT) and the "
            "others, and that no firewalls are in between; set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to "
            "the network interface that connects them",
            shared=True,
        )
        return
    if place.is_first:
        speed = f"{seconds * 1e3:,.0f} ms ({format_bytes(BUCKET_BYTES / seconds)}/s)"
        message = f"{place.world} processes reduce {format_bytes(BUCKET_BYTES)} of gradients in {speed}"
        yield Finding(OK, message)


def _reduce_bucket(context: PreflightContext, store: "Store", limit: timedelta) -> float:
    """Return the seconds that reducing one bucket takes. Raises `RuntimeError` where the sums are wrong."""
    import torch
    import torch.distributed as dist

    from infogan_dist.runtime.device import make_deterministic, process_device
    from infogan_dist.runtime.distributed import GLOO_GRACE_S

    rank, world = context.place.rank, context.place.world
    device = process_device(context.place)
    if device.type == "cuda":
        make_deterministic(cuda=True)  # It selects NCCL's algorithms, on which the speed depends.
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    total = torch.full((1,), rank + 1.0, device=device)
    bucket = torch.ones(BUCKET_BYTES // 4, device=device)
    dist.all_reduce(total)
    dist.all_reduce(bucket)  # the first reduction of a size is slower
    start = time.perf_counter()
    dist.all_reduce(bucket)
    last = bucket[-1].item()  # waits for the device
    seconds = time.perf_counter() - start
    if (total.item(), last) != (world * (world + 1) / 2, world**2):
        raise RuntimeError(f"wrong sums: {total.item():g}, {last:g}")
    del total, bucket
    time.sleep(GLOO_GRACE_S)  # see `Engine.close`
    dist.destroy_process_group()
    return seconds
