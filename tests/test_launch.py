"""The files in `launch/`: checks of their heads, keys and schemas, and runs of their commands as written."""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from infogan_dist.errors import EXIT_STOPPED
from tests.conftest import ROOT, Runner, environment, free_port, same_weights, weights
from tests.rigs.hosts import half_of_the_cores
from tests.rigs.processes import wait_until

LAUNCH = ROOT / "launch"
FILES = sorted(p for p in LAUNCH.rglob("*") if p.suffix in (".yaml", ".sh", ".sbatch"))
ACCELERATE = sorted(LAUNCH.glob("accelerate/*.yaml"))
POD = LAUNCH / "kubernetes" / "pytorchjob.yaml"


def name_of(path: Path) -> str:
    return str(path.relative_to(LAUNCH))


def command_in(path: Path) -> list[str]:
    """Return the arguments of the command in a file's head, without `[key=value ...]`."""
    lines = path.read_text().splitlines()
    return shlex.split(lines[lines[0].startswith("#!")].removeprefix("# ").partition(" [")[0])


def accelerate_command(file: str, flags: list[str], *options: str) -> list[str]:
    """Return the command in the comment of an Accelerate config, with flags of the launcher and options."""
    arguments = command_in(LAUNCH / "accelerate" / f"{file}.yaml")
    module = arguments.index("-m")
    return [*arguments[:module], *flags, *arguments[module:], *options]


def tiny_options(tiny: Path, run: Path, steps: int = 4) -> list[str]:
    """Return arguments that, after configs/mnist.yaml, replace it by the small run."""
    shards = yaml.safe_load(tiny.read_text())["data"]["shards"]
    return [str(tiny), f"run={run}", f"data.shards={shards}", f"train.steps={steps}"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_file_begins_with_three_comment_lines(path: Path):
    lines = path.read_text().splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    assert [line.startswith("# ") for line in lines[:4]] == [True, True, True, False]


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix != ".yaml"], ids=name_of)
def test_shell_scripts_have_valid_syntax(path: Path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_accepts_every_key_and_starts_the_configured_number_of_processes(path: Path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert isinstance(config, ClusterConfig)
    assert f"--config_file {path.relative_to(ROOT)}" in path.read_text().splitlines()[0]
    # For MULTI_CPU accelerate starts one process, whatever num_processes is.
    assert config.distributed_type == ("MULTI_GPU" if config.num_processes > 1 else "NO")
    assert config.num_processes % config.num_machines == 0


def kubernetes_job() -> dict[str, Any]:
    return yaml.safe_load(POD.read_text())


def test_the_operator_s_client_reads_every_key_of_the_pytorchjob():
    """A misspelt key would be missing after reading and writing, and a value of a wrong type would differ."""
    training = pytest.importorskip("kubeflow.training")
    job = kubernetes_job()
    with training.ApiClient() as client:
        read = client.deserialize(SimpleNamespace(data=json.dumps(job)), "KubeflowOrgV1PyTorchJob")
        assert client.sanitize_for_serialization(read) == job
    container = training.constants.PYTORCHJOB_CONTAINER
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        pod = replica["template"]["spec"]
        assert [c["name"] for c in pod["containers"]] == [container]
        mounted = [mount["name"] for mount in pod["containers"][0]["volumeMounts"]]
        assert mounted == [volume["name"] for volume in pod["volumes"]]


def test_the_pytorchjob_restarts_pods_that_were_stopped():
    """With ExitCode the operator does not restart after a status from 1 to 127; with OnFailure it does."""
    assert 1 <= EXIT_STOPPED < 128
    replicas = kubernetes_job()["spec"]["pytorchReplicaSpecs"].values()
    assert {replica["restartPolicy"] for replica in replicas} == {"OnFailure"}


def start(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    out, err = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err, text=True)


def start_pods(options: list[str]) -> list[subprocess.Popen[str]]:
    """Start the job's pods as processes of this machine, with the variables that the operator (1.9) sets."""
    replicas = kubernetes_job()["spec"]["pytorchReplicaSpecs"]
    roles = [role for role in ("Master", "Worker") for _ in range(replicas[role]["replicas"])]
    operator = {"WORLD_SIZE": str(len(roles)), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    pods = []
    for rank, role in enumerate(roles):
        (container,) = replicas[role]["template"]["spec"]["containers"]
        own = {entry["name"]: entry["value"] for entry in container["env"]}
        env = {**environment(), **own, **operator, "RANK": str(rank), "PYTHONUNBUFFERED": "1"}
        node = ["taskset", "--cpu-list", half_of_the_cores(rank % 2)]
        pods.append(start([*node, *container["command"], *container["args"], *options], env))
    return pods


def wait_for_all(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Return the exit statuses and the output of all processes."""
    try:
        output = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.terminate()  # one that has not ended within the timeout
    return [process.returncode for process in processes], "".join(output)


@pytest.mark.rig
@pytest.mark.parametrize(
    ("file", "flags", "processes"),
    [("cpu", [], 2), ("one_gpu", [], 1), ("multi_gpu", ["--num_processes=2"], 2)],
    ids=["cpu", "one_gpu", "multi_gpu"],
)
def test_accelerate_configs_give_the_same_weights_as_processes_without_a_launcher(
    run_module: Runner, tiny: Path, tmp_path: Path, file: str, flags: list[str], processes: int
):
    """The configs for GPUs work on a CPU as well, if that is what the command asks for."""
    command = accelerate_command(file, flags, *tiny_options(tiny, tmp_path / "launched"))
    command += [f"train.processes={processes}", "train.device=cpu"]
    statuses, output = wait_for_all([start(command, environment())])
    assert statuses == [0], output
    run_module("train", "configs/mnist.yaml", *tiny_options(tiny, tmp_path / "run"), processes=processes)
    assert same_weights(weights(tmp_path / "launched", 4), weights(tmp_path / "run", 4))


@pytest.mark.rig
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
@pytest.mark.parametrize(("file", "flags"), [("one_gpu", []), ("multi_gpu", ["--num_processes=2"])])
def test_configs_for_gpus_are_refused_on_a_machine_without_gpus(
    tiny: Path, tmp_path: Path, file: str, flags: list[str]
):
    command = accelerate_command(file, flags, *tiny_options(tiny, tmp_path / "launched"))
    (status,), output = wait_for_all([start(command, environment())])
    assert status == 1  # of the launcher; its report contains that of training, 2
    assert output.count("error: train.device: cuda, but torch") == 1
    assert not (tmp_path / "launched").exists()


@pytest.mark.rig
@pytest.mark.parametrize("processes", [1, 2])
def test_fsdp_from_accelerate_launch_is_refused_in_one_line(tiny: Path, processes: int):
    """The launcher's own report follows, with the exit status of the first process that failed."""
    command = ["accelerate", "launch", "--use_fsdp", f"--num_processes={processes}", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    process = start([*command, "-m", "infogan_dist.train", str(tiny)], environment())
    (status,), output = wait_for_all([process])
    own, _, report = output.partition("\nE")  # torch's log lines begin with their level
    assert status == 1
    assert own.count("error: ACCELERATE_USE_FSDP=true: FSDP is not supported") == 1
    assert "Traceback" not in own
    assert re.search(r"exitcode\s*: 2", report), output


@pytest.mark.rig
def test_torchrun_gives_the_same_weights_as_processes_without_a_launcher(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    command = [
        *command_in(LAUNCH / "torchrun.sh"),
        *tiny_options(tiny, tmp_path / "launched"),
        "train.processes=2",
    ]
    statuses, output = wait_for_all([start(command, environment() | {"PROCESSES": "2"})])
    assert statuses == [0], output
    run_module("train", "configs/mnist.yaml", *tiny_options(tiny, tmp_path / "run"), processes=2)
    assert same_weights(weights(tmp_path / "launched", 4), weights(tmp_path / "run", 4))


@pytest.mark.rig
def test_pods_save_when_one_is_stopped_and_continue_when_restarted(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    run, rarely = tmp_path / "pods", ["train.log_every=10", "checkpoint.every=100000"]
    pods = start_pods([*tiny_options(tiny, run, 100_000), *rarely])
    wait_until((run / "metrics.jsonl").exists, timeout=120)
    os.kill(pods[-1].pid, signal.SIGTERM)
    statuses, output = wait_for_all(pods)
    assert statuses == [EXIT_STOPPED] * len(pods), output
    steps = int(re.findall(r"stopped at step ([\d,]+)", output)[0].replace(",", "")) + 5
    statuses, output = wait_for_all(start_pods([*tiny_options(tiny, run, steps), *rarely]))
    assert statuses == [0] * len(pods), output
    options = ["configs/mnist.yaml", *tiny_options(tiny, tmp_path / "uninterrupted", steps), *rarely]
    run_module("train", *options, processes=len(pods))
    assert same_weights(weights(run, steps), weights(tmp_path / "uninterrupted", steps))
