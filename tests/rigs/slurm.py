"""A real Slurm cluster with two nodes on this machine; it needs root, but not systemd."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port
from tests.rigs.processes import venv_environment, wait_until

NODES = ("n1", "n2")
CPUS, GPUS = 4, 2  # of a node, whatever this machine has
ACTIVE_STATES = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
# Slurm confuses a job that starts in the second in which it was requeued with the one that was ended.
START_DELAY_S = 2
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
# Each node has a host name, an /etc/hosts and a processor core, which its jobs inherit.
START_NODE = """hostname "$1"; mount --bind "$2/hosts" /etc/hosts
exec taskset --cpu-list "$3" slurmd -D -N "$1" -f "$2/slurm.conf"
"""


@dataclass
class Slurm:
    """A running cluster.

    Attributes:
        folder: contains its state and logs, and the output of the jobs.
        env: the environment of its commands, and of the jobs that they submit.
    """

    folder: Path
    env: dict[str, str]

    def run(self, *command: object, check: bool = True) -> str:
        """Run a command and return its output; if `check` is set, a command that fails fails the test."""
        words = list(map(str, command))
        done = subprocess.run(
            words, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: object) -> str:
        """Submit a job from the repository's folder, and return its id."""
        output = self.folder / "job-%j.out"
        return self.run("sbatch", "--parsable", "--chdir", ROOT, "--output", output, *arguments).strip()

    def state(self, job: str) -> dict[str, str]:
        """Return the fields of a job, as `scontrol show job` prints them."""
        pairs = (word.partition("=") for word in self.run("scontrol", "-o", "show", "job", job).split())
        return {name: value for name, _, value in pairs}

    def output(self, job: str) -> str:
        """Return the output of a job, over all its starts."""
        path = self.folder / f"job-{self.state(job)['JobId']}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, condition: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Wait until the fields of a job fulfil a condition, and return them.

        Slurm delays the start of a requeued job by two minutes; the delay is shortened.
        """

        def fulfilled() -> bool:
            state = self.state(job)
            result = condition(state)
            assert result or state["JobState"] in ACTIVE_STATES, f"job {job}: {state}\n{self.output(job)}"
            if state["Reason"] == "BeginTime" and _seconds_until(state["EligibleTime"]) > 2 * START_DELAY_S:
                # Not checked: a job that has started in the meantime cannot be updated.
                start_time = f"StartTime=now+{START_DELAY_S}"
                self.run("scontrol", "update", f"JobId={job}", start_time, check=False)
            return result

        wait_until(fulfilled, describe=lambda: f"job {job}: {self.state(job)}\n{self.output(job)}")
        return self.state(job)

    def wait_for_end(self, job: str) -> dict[str, str]:
        """Wait for the end of a job, and return its fields."""
        return self.wait(job, lambda state: state["JobState"] not in ACTIVE_STATES)


def _seconds_until(time_of_day: str) -> float:
    return (datetime.fromisoformat(time_of_day) - datetime.now()).total_seconds()


def training_processes(**variables: str) -> list[tuple[int, dict[str, str]]]:
    """Return the pid and the environment of each training process that was started with these variables."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_text(errors="replace").split("\0")
            pairs = (
                item.partition("=") for item in (entry / "environ").read_text(errors="replace").split("\0")
            )
        except OSError:  # it has ended
            continue
        env = {name: value for name, _, value in pairs}
        if words[1:3] == ["-m", "infogan_dist.train"] and variables.items() <= env.items():
            processes.append((int(entry.name), env))
    return processes


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Start a cluster in a folder, and stop it with all its jobs at the end.

    The test is skipped where Slurm is not installed, or without root.
    """
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing; on Debian: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")
    _configure(folder)
    slurm = Slurm(folder, {**venv_environment(), "SLURM_CONF": str(folder / "slurm.conf")})
    socket, key = f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"
    munged = ["munged", "--foreground", "--force", socket, key, f"--pid-file={folder}/munge.pid"]
    munged += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    with ExitStack() as stack:
        stack.enter_context(_daemon(munged, slurm))
        wait_until((folder / "munge.socket").exists, 20, lambda: _logs(folder))
        stack.enter_context(_daemon(["slurmctld", "-D", "-f", slurm.env["SLURM_CONF"]], slurm))
        for name, core in zip(NODES, cycle(os.sched_getaffinity(0)), strict=False):
            node = ["sh", "-c", START_NODE, "sh", name, str(folder), str(core)]
            stack.enter_context(_daemon(["unshare", "--uts", "--mount", *node], slurm))
        wait_until(lambda: _idle_nodes(slurm) == len(NODES), 60, lambda: _logs(folder))
        try:
            yield slurm
        finally:
            slurm.run("scancel", "--user=root")
            wait_until(lambda: _idle_nodes(slurm) == len(NODES), 60, lambda: _logs(folder))


def _configure(folder: Path) -> None:
    host = os.uname().nodename.partition(".")[0]
    text, hosts = CONF.format(folder=folder, host=host, port=free_port()), f"127.0.0.1 localhost {host}\n"
    for i, name in enumerate(NODES, 11):
        address = f"127.0.0.{i}"
        text += NODE.format(name=name, address=address, port=free_port(), cpus=CPUS, gpus=GPUS) + "\n"
        hosts += f"{address} {name}\n"
    (folder / "slurm.conf").write_text(text)
    (folder / "hosts").write_text(hosts)
    # These GPUs cannot compute, but Slurm counts and assigns them like real ones.
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


def _idle_nodes(slurm: Slurm) -> int:
    """Return the number of idle nodes; 0 while the controller does not answer yet."""
    command = ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
    done = subprocess.run(command, env=slurm.env, capture_output=True, text=True, timeout=60, check=False)
    return len(set(done.stdout.split())) if done.returncode == 0 else 0


def _logs(folder: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in sorted(folder.glob("*.log")))
