"""What `launch/` holds is true: heads, keys, schemas; and its command lines are run as they stand."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from infogan_dist.errors import EXIT_STOPPED
from tests.conftest import ROOT, Runner, environment, free_port, same_weights, weights
from tests.rigs.hosts import half_of_the_cores

LAUNCH = ROOT / "launch"
FILES = sorted(p for p in LAUNCH.rglob("*") if p.suffix in (".yaml", ".sh", ".sbatch"))
ACCELERATE = sorted(LAUNCH.glob("accelerate/*.yaml"))
POD = LAUNCH / "kubernetes" / "pytorchjob.yaml"


def name_of(path: Path) -> str:
    return str(path.relative_to(LAUNCH))


def command_in(path: Path) -> list[str]:
    """The words of the command that a file's head gives, less its [key=value ...]."""
    lines = path.read_text().splitlines()
    return shlex.split(lines[lines[0].startswith("#!")].removeprefix("# ").partition(" [")[0])


def tiny_options(tiny: Path, run: Path, steps: int = 4) -> list[str]:
    """To be put behind configs/mnist.yaml: the small run instead."""
    shards = yaml.safe_load(tiny.read_text())["data"]["shards"]
    return [str(tiny), f"run={run}", f"data.shards={shards}", f"train.steps={steps}"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_head_of_three_lines_begins_each_file(path: Path):
    lines = path.read_text().splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    assert [line.startswith("# ") for line in lines[:4]] == [True, True, True, False]


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix != ".yaml"], ids=name_of)
def test_shell_files_parse(path: Path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_knows_every_key_and_starts_as_many_processes_as_it_says(path: Path):
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    assert isinstance(config, ClusterConfig)
    assert f"--config_file {path.relative_to(ROOT)}" in path.read_text().splitlines()[0]
    # Of MULTI_CPU accelerate makes one process, however many are asked for.
    assert config.distributed_type == ("MULTI_GPU" if config.num_processes > 1 else "NO")
    assert config.num_processes % config.num_machines == 0


def kubernetes_job() -> dict[str, Any]:
    return yaml.safe_load(POD.read_text())


def test_the_operator_s_client_reads_the_pytorchjob_and_loses_nothing():
    """A misspelt key is lost on the way, a value of another type comes back changed."""
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


def test_the_pytorchjob_starts_pods_again_that_have_saved_and_stopped():
    """The operator's ExitCode takes a status from 1 to 127 for final; OnFailure none."""
    assert 1 <= EXIT_STOPPED < 128
    replicas = kubernetes_job()["spec"]["pytorchReplicaSpecs"].values()
    assert {replica["restartPolicy"] for replica in replicas} == {"OnFailure"}


def start(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    out, err = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err, text=True)


def start_pods(options: list[str]) -> list[subprocess.Popen[str]]:
    """The job's pods as processes of this machine, with what the operator (1.9) adds to their environment."""
    replicas = kubernetes_job()["spec"]["pytorchReplicaSpecs"]
    kinds = [kind for kind in ("Master", "Worker") for _ in range(replicas[kind]["replicas"])]
    operator = {"WORLD_SIZE": str(len(kinds)), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    pods = []
    for rank, kind in enumerate(kinds):
        (container,) = replicas[kind]["template"]["spec"]["containers"]
        own = {entry["name"]: entry["value"] for entry in container["env"]}
        env = {**environment(), **own, **operator, "RANK": str(rank), "PYTHONUNBUFFERED": "1"}
        node = ["taskset", "--cpu-list", half_of_the_cores(rank % 2)]
        pods.append(start([*node, *container["command"], *container["args"], *options], env))
    return pods


def ends(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit statuses, and all that was said."""
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.terminate()  # those that keep the test waiting
    return [process.returncode for process in processes], "".join(said)


@pytest.mark.rig
@pytest.mark.parametrize(
    ("file", "flags", "processes"),
    [("cpu", [], 2), ("one_gpu", [], 1), ("multi_gpu", ["--num_processes=2"], 2)],
    ids=["cpu", "one_gpu", "multi_gpu"],
)
def test_accelerate_configs_train_as_processes_do_by_themselves(
    run_module: Runner, tiny: Path, tmp_path: Path, file: str, flags: list[str], processes: int
):
    """On a machine without GPUs, which all of them must come to terms with."""
    words = command_in(LAUNCH / "accelerate" / f"{file}.yaml")
    config = words.index("-m")
    command = [*words[:config], *flags, *words[config:], *tiny_options(tiny, tmp_path / "launched")]
    statuses, said = ends([start([*command, f"train.processes={processes}"], environment())])
    assert statuses == [0], said
    run_module("train", "configs/mnist.yaml", *tiny_options(tiny, tmp_path / "run"), processes=processes)
    assert same_weights(weights(tmp_path / "launched", 4), weights(tmp_path / "run", 4))


@pytest.mark.rig
def test_torchrun_trains_as_processes_do_by_themselves(run_module: Runner, tiny: Path, tmp_path: Path):
    command = [
        *command_in(LAUNCH / "torchrun.sh"),
        *tiny_options(tiny, tmp_path / "launched"),
        "train.processes=2",
    ]
    statuses, said = ends([start(command, environment() | {"PROCESSES": "2"})])
    assert statuses == [0], said
    run_module("train", "configs/mnist.yaml", *tiny_options(tiny, tmp_path / "run"), processes=2)
    assert same_weights(weights(tmp_path / "launched", 4), weights(tmp_path / "run", 4))


@pytest.mark.rig
def test_pods_save_when_one_is_stopped_and_go_on_when_started_again(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    run, seldom = tmp_path / "pods", ["train.log_every=10", "checkpoint.every=100000"]
    pods = start_pods([*tiny_options(tiny, run, 100_000), *seldom])
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(pods[-1].pid, signal.SIGTERM)
    statuses, said = ends(pods)
    assert statuses == [EXIT_STOPPED] * len(pods), said
    steps = int(re.findall(r"stopped at step ([\d,]+)", said)[0].replace(",", "")) + 5
    statuses, said = ends(start_pods([*tiny_options(tiny, run, steps), *seldom]))
    assert statuses == [0] * len(pods), said
    options = ["configs/mnist.yaml", *tiny_options(tiny, tmp_path / "through", steps), *seldom]
    run_module("train", *options, processes=len(pods))
    assert same_weights(weights(run, steps), weights(tmp_path / "through", steps))
