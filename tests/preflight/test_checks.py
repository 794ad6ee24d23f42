"""Single checks of the doctor, each with a fault that needs no process of its own."""

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
import torch
import torch.distributed as dist

from infogan_dist.data import resident
from infogan_dist.errors import DataError
from infogan_dist.launcher import ProcessPlace
from infogan_dist.preflight import data, disk, machine, run
from infogan_dist.preflight.communication import check_communication
from infogan_dist.preflight.config import check_config
from infogan_dist.preflight.examine import Check, run_check
from infogan_dist.preflight.finding import FAIL, OK, WARN, Finding, PreflightContext
from infogan_dist.runtime import device
from tests.conftest import Runner, free_port

# With it, a checkpoint takes about 500 KiB.
LARGE_RECOGNITION = "networks.recognition=[{kind: dense, out: 256, then: [lrelu]}]"


def single_process(processes_here: int = 1) -> ProcessPlace:
    return ProcessPlace(rank=0, world=1, local_rank=0, local_world=processes_here)


def machine_context() -> PreflightContext:
    return PreflightContext([], single_process())


def run_context(tiny: Path, *overrides: str, processes_here: int = 1) -> PreflightContext:
    """Return a context whose config and manifest are checked already."""
    context = PreflightContext([str(tiny), *overrides], single_process(processes_here))
    findings = [f for check in (check_config, data.check_manifest) for f in check(context)]
    assert [finding.level for finding in findings] == [OK, OK]
    return context


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB in memory."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_blocked_signal_fails_and_an_ignored_one_does_not(name: str):
    number = signal.Signals[name]
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        assert [finding.level for finding in machine.check_signals(machine_context())] == [OK]
        assert signal.getsignal(number) == signal.SIG_IGN
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        (finding,) = machine.check_signals(machine_context())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        signal.signal(number, previous)
    assert finding.level == FAIL
    assert finding.message == f"{name} is blocked, so a request to stop would never arrive"
    assert "unblock it" in finding.remedy


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_the_size_of_a_checkpoint_is_predicted(
    run_module: Runner, tiny: Path, tmp_path: Path, precision: str
):
    batchnorm = "networks.discriminator=[{kind: conv, out: 64, stride: 2, then: [batchnorm, lrelu]}]"
    overrides = ["train.steps=1", f"train.precision={precision}", batchnorm, LARGE_RECOGNITION]
    run_module("train", tiny, *overrides)
    files = (tmp_path / "run" / "checkpoints" / "step_00000001").iterdir()
    context = run_context(tiny, *overrides)
    list(run.check_networks(context))
    # Besides the numbers, a checkpoint contains about 30 KB: headers of the files, the config and the index.
    rest = sum(file.stat().st_size for file in files) - (context.checkpoint_bytes or 0)
    assert 0 < rest < 40_000


def test_scores_that_cannot_be_computed_fail(tiny: Path, small_set: Path):
    for overrides, message in (
        (["scores.names=[fidelity]"], "fidelity needs scores.features=FILE"),
        (["train.evaluate_every=1", "scores.features=none.pt"], "scores.features=none.pt: no such file"),
    ):
        (finding,) = run_check(run_context(tiny, *overrides), Check("scores", run.check_run_scores))
        assert finding.level == FAIL
        assert message in finding.message
    (finding,) = run.check_run_scores(run_context(tiny, "scores.names=[recovery,control]"))
    assert (finding.level, finding.message) == (OK, "recovery, control")
    (finding,) = run.check_run_scores(run_context(tiny, "train.evaluate_every=1", f"data.test={small_set}"))
    assert (finding.level, finding.message) == (OK, "all that the data allows")
    (finding,) = run.check_run_scores(run_context(tiny, "scores.features=none.pt"))  # without scores
    assert finding.level == OK


def test_a_disk_too_small_for_the_checkpoints_fails(run_module: Runner, tiny: Path, small_disk: Path):
    done = run_module("doctor", tiny, f"run={small_disk}/run", LARGE_RECOGNITION, status=2)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(FAIL)]
    # The run of 3 steps saves one checkpoint, at its end.
    assert re.search(r"^FAIL disk .* 64\.0 KiB free .*; 1 more checkpoint\(s\) need .*; make room", line)


def test_shared_memory_too_small_for_the_workers_fails(tiny: Path, small_disk: Path):
    # Each process has 2 shards of 30 images ready and one in use. With 8x8 + 9 bytes per image these are
    # 6,570 bytes, so 9 processes fit in 64 KiB.
    for processes, level in ((9, OK), (10, FAIL)):
        context = run_context(tiny, "data.workers=1", processes_here=processes)
        (finding,) = data.check_shared_memory(context, small_disk)
        assert finding.level == level
    assert "--shm-size" in finding.remedy
    (finding,) = data.check_shared_memory(run_context(tiny, "data.workers=0"), small_disk)
    assert finding.level == OK


def test_a_cache_larger_than_the_memory_is_warned_of(tiny: Path, tmp_path: Path):
    # 240 images of 8x8 and 9 bytes take 17,520 bytes, which is 80% of a memory of 21,900 bytes.
    limit_file = tmp_path / "memory.max"
    for limit, level in (("21901", OK), ("21899", WARN), ("max", OK)):
        limit_file.write_text(limit)
        (finding,) = data.check_memory(run_context(tiny), limit_file)
        assert finding.level == level


@pytest.mark.parametrize(("workers", "shards"), [(0, 8), (1, 11)])
def test_without_a_cache_the_shard_of_each_lane_takes_memory(
    tiny: Path, tmp_path: Path, workers: int, shards: int
):
    # A decoded shard of 30 images takes 2,190 bytes. A worker has two ready and one in use.
    limit_file = tmp_path / "memory.max"
    for spare, level in ((1, OK), (-1, WARN)):
        limit_file.write_text(str(round(shards * 2_190 / 0.8) + spare))
        context = run_context(tiny, "data.cache_mib=0", f"data.workers={workers}")
        (finding,) = data.check_memory(context, limit_file)
        assert finding.level == level
        assert f"in {shards} shard(s) that are being read" in finding.message
    assert finding.remedy == "create the set with more shards"
    context.place = ProcessPlace(rank=0, world=2, local_rank=0, local_world=1)  # with half of the lanes
    assert [finding.level for finding in data.check_memory(context, limit_file)] == [OK]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("cache_mib", [0, 1])
def test_images_that_stay_on_a_cpu_take_its_memory_instead_of_a_cache(
    tiny: Path, tmp_path: Path, processes: int, cache_mib: int
):
    # Each process has a copy of the 17,520 bytes.
    limit_file = tmp_path / "memory.max"
    overrides = (f"data.cache_mib={cache_mib}", "data.device=device")
    for spare, level, remedy in ((1, OK, ""), (-1, WARN, "set data.device=host")):
        limit_file.write_text(str(processes * 21_900 + spare))
        (finding,) = data.check_memory(run_context(tiny, *overrides, processes_here=processes), limit_file)
        assert (finding.level, finding.remedy) == (level, remedy)
        assert f"{processes} process(es) hold 17.1 KiB of images each" in finding.message


@pytest.mark.parametrize(
    ("choice", "free", "is_resident"),
    # 240 images of 8x8 take 15,360 bytes: a quarter of 61,440.
    [("auto", 61_440, True), ("auto", 61_439, False), ("device", 15_360, True), ("host", 2**40, False)],
)
def test_images_that_stay_on_the_gpu_take_none_of_the_machine_s_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, free: int, is_resident: bool
):
    limit_file = tmp_path / "memory.max"
    limit_file.write_text("1")
    monkeypatch.setattr(device, "uses_cuda", lambda: True)
    monkeypatch.setattr(resident, "free_memory", lambda device: free)
    (finding,) = data.check_memory(run_context(tiny, f"data.device={choice}"), limit_file)
    if is_resident:
        assert (finding.level, finding.message) == (OK, "15.0 KiB of images stay on the GPU of each process")
    else:
        assert finding.level == WARN
        assert "1 process(es) cache up to 17.1 KiB of images each" in finding.message


@pytest.mark.parametrize("gpus", [0, 2])
def test_images_that_do_not_fit_on_a_process_s_device_fail_with_the_message_of_training(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, gpus: int
):
    """Of two processes, the second one's device has a byte too little."""
    full = torch.device("cuda", 1) if gpus else torch.device("cpu")
    monkeypatch.setattr(device, "uses_cuda", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(resident, "free_memory", lambda device: 15_359 if device == full else 15_360)
    context = run_context(tiny, "data.device=device")
    assert context.manifest
    with pytest.raises(DataError, match=f"MiB of {full} are free; set data.device=auto") as refusal:
        resident.should_hold_images("device", context.manifest, full)
    context.place = ProcessPlace(rank=1, world=2, local_rank=1, local_world=2)
    assert run_check(context, Check("memory", data.check_memory)) == [Finding(FAIL, str(refusal.value))]


def test_a_disk_cache_larger_than_its_disk_is_warned_of(tiny: Path, small_disk: Path):
    for gib, level in ((0.00001, OK), (1, WARN)):
        context = run_context(tiny, f"data.disk_cache={small_disk}/cache", f"data.disk_cache_gib={gib}")
        (finding,) = disk.check_disk_cache(context)
        assert finding.level == level


def test_an_old_library_fails(monkeypatch: pytest.MonkeyPatch):
    requirements = ["torch>=2.6", "wandb>=99", "none-such", "x; extra=='y'"]
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    findings = [f for f in machine.check_versions(machine_context()) if f.level != OK]
    assert [finding.level for finding in findings] == [FAIL, FAIL]
    installed = metadata.version("wandb")
    assert findings[0].message == f"wandb>=99 is required, {installed} is installed"
    assert findings[1].remedy == "run `pip install 'none-such'`"


def test_a_wandb_server_that_does_not_answer_is_a_warning(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    context = run_context(tiny, "tracking.trackers=[wandb]", "tracking.wandb_mode=online")
    (finding,) = run.check_trackers(context)
    assert finding.level == WARN
    assert "(set by tracking.wandb_mode), but http://127.0.0.1" in finding.message
    assert "logs offline" in finding.remedy
    context = run_context(tiny, "tracking.trackers=[wandb]", "tracking.wandb_mode=offline")
    (finding,) = run.check_trackers(context)
    assert finding.level == OK


@pytest.mark.parametrize("connects", [False, True])
def test_a_process_that_is_missing_or_silent_fails_in_time(monkeypatch: pytest.MonkeyPatch, connects: bool):
    port = free_port()
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stores: list[dist.Store] = []
    limit = timedelta(seconds=30)
    other = threading.Thread(
        target=lambda: stores.append(dist.TCPStore("127.0.0.1", port, 2, False, timeout=limit))
    )
    if connects:
        other.start()
    start = time.monotonic()
    context = PreflightContext([], ProcessPlace(rank=0, world=2, local_rank=0, local_world=2))
    (finding,) = check_communication(context, timeout_s=1)
    # The rendezvous and the process group have a limit of one second each; a busy machine may take longer.
    assert 0.9 < time.monotonic() - start < 20
    if connects:
        other.join()
    assert finding.level == FAIL
    assert "process 0 of 2" in finding.message
    for text in (f"127.0.0.1:{port}", "firewalls", "NCCL_SOCKET_IFNAME"):
        assert text in finding.remedy
