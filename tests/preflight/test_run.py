"""The doctor's checks one by one, where a fault is planted without a process of its own."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import pytest
import torch.distributed as dist

from infogan_dist.preflight import machine, run
from infogan_dist.preflight.machine import FAIL, OK, WARN, Case
from tests.conftest import Runner, free_port

WIDE = "networks.recognition=[{kind: dense, out: 256, then: [lrelu]}]"  # checkpoints of some 500 KiB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, in memory."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def case_of(tiny: Path, *overrides: str) -> Case:
    """A case of which config and manifest are known."""
    case = Case([str(tiny), *overrides], 0, 1, 1)
    assert [f.level for check in (run.config, run.manifest) for f in check(case)] == [OK, OK]
    return case


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_blocked_signal_fails_and_an_ignored_one_does_not(number: str):
    which = signal.Signals[number]
    before = signal.signal(which, signal.SIG_IGN)
    try:
        assert [f.level for f in machine.signals(Case([], 0, 1, 1))] == [OK]
        assert signal.getsignal(which) == signal.SIG_IGN
        signal.pthread_sigmask(signal.SIG_BLOCK, [which])
        (found,) = machine.signals(Case([], 0, 1, 1))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [which])
        signal.signal(which, before)
    assert (found.level, found.seen) == (FAIL, f"{number} is blocked, and so would never be heard")
    assert "unblock it" in found.remedy


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_checkpoint_takes_what_is_said(run_module: Runner, tiny: Path, tmp_path: Path, precision: str):
    norm = "networks.discriminator=[{kind: conv, out: 64, stride: 2, then: [batchnorm, lrelu]}]"
    options = ["train.steps=1", f"train.precision={precision}", norm, WIDE]
    run_module("train", tiny, *options)
    files = (tmp_path / "run" / "checkpoints" / "step_00000001").iterdir()
    case = case_of(tiny, *options)
    list(run.networks(case))
    # Beside the numbers: headers of safetensors and of the optimizers' zip, config and index, some 30 KB
    beyond = sum(f.stat().st_size for f in files) - (case.checkpoint_bytes or 0)
    assert 0 < beyond < 40_000


def test_a_disk_too_small_for_the_checkpoints_fails(run_module: Runner, tiny: Path, small_disk: Path):
    done = run_module("doctor", tiny, f"run={small_disk}/run", WIDE, status=2)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(FAIL)]
    # 3 steps end in one checkpoint
    assert re.search(r"^FAIL disk .* 64\.0 KiB free .*; 1 more checkpoint\(s\) need .*; make room", line)


def test_shared_memory_too_small_for_the_workers_fails(tiny: Path, small_disk: Path):
    # 2 shards ready for a worker, of 30 images of 8x8 and 9 bytes: 4,380 bytes; 14 processes fit in 64 KiB
    for local_world, level in ((14, OK), (15, FAIL)):
        case = case_of(tiny, "data.workers=1")
        case.local_world = local_world
        (found,) = run.shared_memory(case, small_disk)
        assert found.level == level
    assert "--shm-size" in found.remedy
    (found,) = run.shared_memory(case_of(tiny, "data.workers=0"), small_disk)
    assert found.level == OK


def test_images_kept_beyond_the_memory_are_warned_of(tiny: Path, tmp_path: Path):
    # 240 images of 8x8 and 9 bytes: 17,520; of a container's limit 80% may be taken: 21,900 or more
    for limit, level in (("21901", OK), ("21899", WARN), ("max", OK)):
        (tmp_path / "memory.max").write_text(limit)
        (found,) = run.memory(case_of(tiny), tmp_path / "memory.max")
        assert found.level == level
    (tmp_path / "memory.max").write_text("21899")
    (found,) = run.memory(case_of(tiny, "data.cache_mib=0"), tmp_path / "memory.max")
    assert found.level == OK


def test_a_disk_cache_larger_than_its_disk_is_warned_of(tiny: Path, small_disk: Path):
    for gib, level in ((0.00001, OK), (1, WARN)):
        case = case_of(tiny, f"data.disk_cache={small_disk}/cache", f"data.disk_cache_gib={gib}")
        (found,) = run.disk_cache(case)
        assert found.level == level


def test_an_old_library_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        metadata, "requires", lambda name: ["torch>=2.6", "wandb>=99", "none-such", "x; extra=='y'"]
    )
    bad = [f for f in machine.versions(Case([], 0, 1, 1)) if f.level != OK]
    assert [f.level for f in bad] == [FAIL, FAIL]
    assert bad[0].seen == f"wandb>=99 is needed, {metadata.version('wandb')} is there"
    assert bad[1].remedy == "`pip install 'none-such'`"


def test_w_and_b_that_cannot_be_reached_is_a_warning(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    case = case_of(tiny, "tracking.trackers=[wandb]", "tracking.wandb_mode=online")
    (found,) = run.trackers(case)
    assert found.level == WARN
    assert "as tracking.wandb_mode says, but http://127.0.0.1" in found.seen
    assert "logs offline" in found.remedy
    (found,) = run.trackers(case_of(tiny, "tracking.trackers=[wandb]", "tracking.wandb_mode=offline"))
    assert found.level == OK


@pytest.mark.parametrize("comes", [False, True])
def test_a_peer_that_never_comes_or_comes_and_says_nothing_fails_in_time(
    monkeypatch: pytest.MonkeyPatch, comes: bool
):
    port = free_port()
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    peer: list[dist.Store] = []
    limit = timedelta(seconds=30)
    thread = threading.Thread(
        target=lambda: peer.append(dist.TCPStore("127.0.0.1", port, 2, False, timeout=limit))
    )
    if comes:
        thread.start()
    began = time.monotonic()
    (found,) = machine.communication(Case([], 0, 2, 2), timeout_s=1)
    # Generous: each of the steps (meeting, joining the group) has its own second, on a busy machine
    assert 0.9 < time.monotonic() - began < 20
    if comes:
        thread.join()
    assert found.level == FAIL
    assert "process 0 of 2" in found.seen
    for word in (f"127.0.0.1:{port}", "firewalls", "NCCL_SOCKET_IFNAME"):
        assert word in found.remedy
