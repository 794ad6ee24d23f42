"""Real Slurm with two nodes on this one machine, for root and without systemd."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment, free_port

NODES = ("n1", "n2")
CPUS, GPUS = 4, 2  # a node's, whatever this machine has
UNDER_WAY = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
SOON_S = 2  # a job that starts in the second in which it was requeued is taken for the one that was ended
DAEMONS = ("munged", "slurmctld", "slurmd")
CONF = """
ClusterName=rig
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmdParameters=config_overrides
GresTypes=gpu
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeAddr={address} Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4000 Gres=gpu:{gpus}"
)
# A node is a host of its own, with a core of its own: its jobs inherit name, /etc/hosts and affinity.
START_NODE = """hostname "$1"; mount --bind "$2/hosts" /etc/hosts
exec taskset --cpu-list "$3" slurmd -D -N "$1" -f "$2/slurm.conf"
"""


@dataclass
class Slurm:
    """A cluster that is up.

    Attributes:
        folder: its state and logs, and the jobs' output.
        env: what its commands, and the jobs they submit, run with.
    """

    folder: Path
    env: dict[str, str]

    def call(self, *command: object, check: bool = True) -> str:
        """What a Slurm command says; one that fails fails the test, if that is checked."""
        words = list(map(str, command))
        done = subprocess.run(
            words, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: object) -> str:
        """Submits a job from the repository's folder; returns its id."""
        output = self.folder / "job-%j.out"
        return self.call("sbatch", "--parsable", "--chdir", ROOT, "--output", output, *arguments).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` knows of a job."""
        pairs = (word.partition("=") for word in self.call("scontrol", "-o", "show", "job", job).split())
        return {name: value for name, _, value in pairs}

    def said(self, job: str) -> str:
        """A job's output, over all its starts."""
        path = self.folder / f"job-{self.job(job)['JobId']}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, holds: Callable[[dict[str, str]], bool], timeout: float = 240) -> dict[str, str]:
        """Waits until something holds of a job; spares a requeued one the two minutes Slurm makes it wait."""

        def look() -> bool:
            about = self.job(job)
            held = holds(about)
            assert held or about["JobState"] in UNDER_WAY, f"job {job}: {about}\n{self.said(job)}"
            if about["Reason"] == "BeginTime" and _seconds_until(about["EligibleTime"]) > 2 * SOON_S:
                # It may start meanwhile, and can then not be updated.
                self.call("scontrol", "update", f"JobId={job}", f"StartTime=now+{SOON_S}", check=False)
            return held

        until(look, timeout, lambda: f"job {job}: {self.job(job)}\n{self.said(job)}")
        return self.job(job)

    def end(self, job: str) -> dict[str, str]:
        """Waits for a job's end."""
        return self.wait(job, lambda about: about["JobState"] not in UNDER_WAY)


def _seconds_until(time_of_day: str) -> float:
    return (datetime.fromisoformat(time_of_day) - datetime.now()).total_seconds()


def trainers(**named: str) -> list[tuple[int, dict[str, str]]]:
    """The training processes, each with its environment, that were started with these variables."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_text(errors="replace").split("\0")
            pairs = (
                item.partition("=") for item in (entry / "environ").read_text(errors="replace").split("\0")
            )
        except OSError:  # it has ended
            continue
        env = {name: value for name, _, value in pairs}
        if words[1:3] == ["-m", "infogan_dist.train"] and named.items() <= env.items():
            found.append((int(entry.name), env))
    return found


def until(holds: Callable[[], bool], timeout: float, why: Callable[[], str]) -> None:
    """Waits until something holds; says why it should have after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Brings the cluster up in a folder, and takes it down with all that its jobs have started.

    Skips the test where Slurm or the rights for it are missing.
    """
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here; on Debian: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root only")
    _configure(folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = Slurm(folder, {**environment(), "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path})
    socket, key = f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"
    munged = ["munged", "--foreground", "--force", socket, key, f"--pid-file={folder}/munge.pid"]
    munged += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    with ExitStack() as stack:
        stack.enter_context(_daemon(munged, slurm))
        until(lambda: (folder / "munge.socket").exists(), 20, lambda: _logs(folder))
        stack.enter_context(_daemon(["slurmctld", "-D", "-f", slurm.env["SLURM_CONF"]], slurm))
        for name, core in zip(NODES, cycle(os.sched_getaffinity(0)), strict=False):
            node = ["sh", "-c", START_NODE, "sh", name, str(folder), str(core)]
            stack.enter_context(_daemon(["unshare", "--uts", "--mount", *node], slurm))
        until(lambda: _idle(slurm) == len(NODES), 60, lambda: _logs(folder))
        try:
            yield slurm
        finally:
            slurm.call("scancel", "--user=root")
            until(lambda: _idle(slurm) == len(NODES), 60, lambda: _logs(folder))


def _configure(folder: Path) -> None:
    host = os.uname().nodename.partition(".")[0]
    text, hosts = CONF.format(folder=folder, host=host, port=free_port()), f"127.0.0.1 localhost {host}\n"
    for i, name in enumerate(NODES, 11):
        address = f"127.0.0.{i}"
        text += NODE.format(name=name, address=address, port=free_port(), cpus=CPUS, gpus=GPUS) + "\n"
        hosts += f"{address} {name}\n"
    (folder / "slurm.conf").write_text(text)
    (folder / "hosts").write_text(hosts)
    # GPUs that nothing can compute on, but that Slurm counts and hands out as it does real ones
    for i in range(GPUS):
        os.mknod(folder / f"gpu{i}", 0o020666, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)


@contextmanager
def _daemon(command: list[str], slurm: Slurm) -> Iterator[None]:
    with (slurm.folder / "daemons.log").open("a") as log:
        process = subprocess.Popen(command, env=slurm.env, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _idle(slurm: Slurm) -> int:
    """How many nodes are idle; none while the controller does not answer yet."""
    command = ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
    done = subprocess.run(command, env=slurm.env, capture_output=True, text=True, timeout=60, check=False)
    return len(set(done.stdout.split())) if done.returncode == 0 else 0


def _logs(folder: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in sorted(folder.glob("*.log")))
