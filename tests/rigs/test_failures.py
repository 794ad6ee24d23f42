"""Under torchrun, an error on one process appears at once and ends all processes, though they wait for it."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, environment
from tests.rigs.failing_train import MESSAGE
from tests.rigs.hosts import two_hosts
from tests.rigs.processes import wait_until
from tests.test_launch import tiny_options

pytestmark = pytest.mark.rig
MESSAGE_S, END_S = 2, 15  # after the error
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TRACEBACK = "Traceback (most recent call last)"


def words_of_failing_run(tiny: Path, folder: Path, rank: int, place: str) -> list[str]:
    """Return torchrun's last arguments: a run in `folder` that fails. It loads images in subprocesses."""
    words = ["-m", "tests.rigs.failing_train", str(rank), place, str(folder / "record")]
    return [*words, *tiny_options(tiny, folder / "run", 200), "data.workers=1", "checkpoint.every=5"]


def processes_of(folder: Path) -> list[int]:
    """Return the pids of a failing run's processes, its loading subprocesses included, without torchrun's."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it has ended
            continue
        if str(folder / "record").encode() in command and b"torch.distributed.run" not in command:
            pids.append(int(path.parent.name))
    return pids


def end_of_failing_run(folder: Path, launchers: list[subprocess.Popen[Any]], read: Callable[[], str]) -> str:
    """Check the times of message and end, counted from the error; return the output.

    Args:
        folder: of the run.
        launchers: all of them must fail.
        read: returns the output so far.
    """
    record = folder / "record"
    wait_until(lambda: record.exists() and record.read_text() != "", 120, read, launchers, 0.05)
    error = float(record.read_text())
    wait_until(lambda: MESSAGE in read(), error + MESSAGE_S - time.time(), read, interval=0.05)
    wait_until(
        lambda: not processes_of(folder),
        error + END_S - time.time(),
        lambda: f"still there: {processes_of(folder)}; {read()}",
    )
    assert all(launcher.wait(timeout=60) for launcher in launchers)
    return read()


def check_messages(output: str, rank: int, place: str) -> None:
    """Check that the message comes first and once, and that the other processes refer to it in one line."""
    # A score that fails is reported at once, and ends the run once no other process has the same error.
    assert output.count(MESSAGE) == (2 if place == "score" else 1)
    assert (f"error: {MESSAGE}\n" in output) == (place == "step")  # the others end with a traceback
    lines = re.findall(r"^warning: process (\d+) failed, see its message", output, re.MULTILINE)
    # Before a process listens for stop signals, torchrun's SIGTERM may end it first.
    assert set(lines) == {str(rank)} or (place == "open" and not lines)
    assert MESSAGE in output.partition(" failed, see its message")[0]
    assert "Connection closed" not in output


@pytest.mark.parametrize(
    ("world", "rank", "place"),
    [(2, 1, "open"), (2, 1, "step"), (2, 0, "save"), (3, 0, "step"), (3, 2, "draw"), (2, 1, "score")],
)
def test_on_one_host(tiny: Path, tmp_path: Path, world: int, rank: int, place: str):
    words = words_of_failing_run(tiny, tmp_path, rank, place)
    options = ["data.lanes=6", "train.batch_size=48"]  # divisible by two and three processes
    if place == "score":
        options += ["train.evaluate_every=5", "scores.names=[information]", "scores.images=100"]
    command = [*TORCHRUN, "--standalone", f"--nproc-per-node={world}", *words, *options]
    log = tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
    check_messages(end_of_failing_run(tmp_path, [launcher], log.read_text), rank, place)


def test_processes_whose_launcher_is_killed_save_and_stop(tiny: Path, tmp_path: Path):
    words = ["-m", "infogan_dist.train", *tiny_options(tiny, tmp_path / "record", 10**6)]
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", *words, "checkpoint.every=1000000"]
    log = tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
    wait_until((tmp_path / "record" / "metrics.jsonl").exists, 120, log.read_text, [launcher])
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not processes_of(tmp_path), END_S, log.read_text)
    assert "warning: the launcher has ended; stopping" in log.read_text()
    assert ": stopped at step " in log.read_text()
    assert list(tmp_path.glob("record/checkpoints/step_*"))


@pytest.mark.parametrize("shared_store", ["0", "1"], ids=["torchrun's store", "a store of process 0"])
@pytest.mark.parametrize(("rank", "place"), [(0, "save"), (1, "step")])
def test_on_two_hosts(tiny: Path, tmp_path: Path, rank: int, place: str, shared_store: str):
    with two_hosts(tmp_path) as hosts:
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].name}:29400"]
        words = [*TORCHRUN, "--nnodes", "2", *rendezvous, *words_of_failing_run(tiny, tmp_path, rank, place)]
        variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": shared_store}
        launchers = [host.start(*words, **variables) for host in hosts]

        def read() -> str:
            return "".join(host.log.read_text() for host in (hosts[rank], hosts[1 - rank]))

        check_messages(end_of_failing_run(tmp_path, launchers, read), rank, place)
