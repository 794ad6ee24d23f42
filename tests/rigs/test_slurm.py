"""The Slurm scripts on a real cluster: many nodes, preemption, crashes, mistakes, GPUs, sweeps."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY, Started, read_metrics, same_weights, weights
from tests.rigs.fake_wandb import ENTITY, PROJECT, serving
from tests.rigs.slurm import Slurm, cluster, trainers

pytestmark = pytest.mark.rig
TRAIN, SWEEP = "launch/slurm/train.sbatch", "launch/slurm/sweep.sbatch"
TWO_NODES, ONE_CPU = "--nodes=2", "--cpus-per-task=1"
STEPS, LOG_EVERY = 400, 10
PACE = [f"train.steps={STEPS}", f"train.log_every={LOG_EVERY}", "checkpoint.every=100"]
PACE += ["tracking.pictures_every=100000"]
ENDLESS = [*PACE, "train.steps=100000"]
EVERY_LINE = list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with cluster(tmp_path_factory.mktemp("slurm")) as up:
        yield up


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, small_set: Path) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(f"{TINY}\ndata: {{shards: {small_set}, workers: 0}}\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    """A run of two processes that Slurm knows nothing of."""
    folder = config.parent
    running = Started(folder, "train", config, *PACE, f"run={folder}/run", processes=2)
    for process in running.processes:
        # One thread each, as the nodes' tasks have: more could sum in another order.
        os.sched_setaffinity(process.pid, [min(os.sched_getaffinity(0))])
    done = running.wait(240)
    assert done.status == 0, done.stderr
    return folder / "run"


def steps(run: Path) -> list[float]:
    return [line["step"] for line in read_metrics(run)]


def about(run: Path, step: int) -> dict[str, object]:
    return json.loads((run / "checkpoints" / f"step_{step:08d}" / "run.json").read_text())


def reach(slurm: Slurm, job: str, run: Path, step: int, restarts: int) -> None:
    """Waits until a job has logged a step after so many requeues."""

    def reached(state: dict[str, str]) -> bool:
        metrics, lines = run / "metrics.jsonl", step // LOG_EVERY
        there = metrics.exists() and metrics.read_text().count("\n") >= lines
        return there and (state["JobState"], state["Restarts"]) == ("RUNNING", str(restarts))

    slurm.wait(job, reached)


def test_two_nodes_train_as_two_processes_do(slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path):
    run = tmp_path / "run"
    job = slurm.submit(TWO_NODES, ONE_CPU, TRAIN, config, *PACE, f"run={run}")
    assert slurm.end(job)["JobState"] == "COMPLETED", slurm.said(job)
    assert steps(run) == EVERY_LINE
    assert about(run, STEPS)["world"] == 2
    assert same_weights(weights(run, STEPS), weights(undisturbed, STEPS))


def test_a_job_preempted_twice_and_a_worker_killed_end_in_the_same_weights(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
):
    run = tmp_path / "run"
    job = slurm.submit(TWO_NODES, ONE_CPU, TRAIN, config, *PACE, f"run={run}")
    reach(slurm, job, run, 50, restarts=0)
    slurm.call("scancel", "--batch", "--signal=USR1", job)  # as before the time limit
    reach(slurm, job, run, 150, restarts=1)
    slurm.call("scancel", "--signal=USR1", job)  # to the tasks alone
    reach(slurm, job, run, 250, restarts=2)
    ((worker, _),) = trainers(SLURM_JOB_ID=job, RANK="1")
    os.kill(worker, signal.SIGKILL)
    ended = slurm.end(job)
    said = slurm.said(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), said
    assert (said.count("stopped at step"), said.count("start 1 ended with status 137")) == (2, 1)
    assert steps(run) == EVERY_LINE
    assert same_weights(weights(run, STEPS), weights(undisturbed, STEPS))


def test_a_mistake_fails_the_job_with_one_line(slurm: Slurm, config: Path, tmp_path: Path):
    job = slurm.submit(TWO_NODES, ONE_CPU, TRAIN, config, "train.steeps=3", f"run={tmp_path}/run")
    ended = slurm.end(job)
    said = slurm.said(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), said
    assert said.count("did you mean train.steps") == 1
    assert "Traceback" not in said


def test_what_crashes_again_and_again_is_given_up(slurm: Slurm, config: Path, tmp_path: Path):
    """Here for want of the package: as if submitted without the environment."""
    nothing = "--export=ALL,PATH=/usr/bin:/bin"
    job = slurm.submit(nothing, ONE_CPU, TRAIN, config, f"run={tmp_path}/run")
    ended = slurm.end(job)
    said = slurm.said(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), said
    assert [f"start {i} ended with" in said for i in range(1, 5)] == [True, True, True, False]


def test_each_gpu_gets_a_process_and_a_cancelled_job_saves_and_stays_cancelled(
    slurm: Slurm, config: Path, tmp_path: Path
):
    run = tmp_path / "run"
    job = slurm.submit("--gpus-per-node=2", "--cpus-per-task=2", TRAIN, config, *ENDLESS, f"run={run}")
    reach(slurm, job, run, LOG_EVERY, restarts=0)
    tasks = [env for _, env in sorted(trainers(SLURM_JOB_ID=job), key=lambda task: task[1]["RANK"])]
    assert [task["LOCAL_RANK"] for task in tasks] == ["0", "1"]
    assert {task["SLURMD_NODENAME"] for task in tasks} == {slurm.job(job)["NodeList"]}
    # Each sees both, and takes the one that LOCAL_RANK says.
    assert [task["CUDA_VISIBLE_DEVICES"] for task in tasks] == ["0,1", "0,1"]
    slurm.call("scancel", job)
    assert slurm.end(job)["JobState"] == "CANCELLED"
    (saved,) = (run / "checkpoints").glob("step_*")
    assert about(run, int(saved.name.removeprefix("step_")))["world"] == 2


def test_an_array_of_agents_completes_a_sweep_through_a_preemption(
    slurm: Slurm, config: Path, tmp_path: Path
):
    run = f"run={tmp_path}/sweep/${{oc.env:WANDB_RUN_ID}}"
    command = ["${env}", "accelerate", "launch", "-m", "infogan_dist.train", str(config), *PACE, run]
    command += ["tracking.trackers=[wandb]", "${args_no_hyphens}"]
    rates = {"optim.generator.lr": {"values": [1e-4, 1e-3, 3e-3]}}
    sweep = {"program": "train", "method": "grid", "command": command, "parameters": rates}
    (tmp_path / "sweep.yaml").write_text(yaml.dump(sweep))
    with serving() as server:
        home = {"HOME": str(tmp_path), "WANDB_DIR": str(tmp_path)}
        user = replace(slurm, env={**slurm.env, **server.environment(), **home})
        user.call("wandb", "sweep", tmp_path / "sweep.yaml")
        array = user.submit("--array=0-1", ONE_CPU, SWEEP, f"{ENTITY}/{PROJECT}/sweep0")
        first = tmp_path / "sweep" / "suggested0"
        user.wait(f"{array}_0", lambda state: (first / "metrics.jsonl").exists())
        ((_, env),) = trainers(WANDB_RUN_ID="suggested0")
        preempted = f"{array}_{env['SLURM_ARRAY_TASK_ID']}"
        user.call("scancel", "--batch", "--signal=USR1", preempted)
        ended = {f"{array}_{i}": user.end(f"{array}_{i}") for i in range(2)}
    said = user.said(preempted)
    assert {state["JobState"] for state in ended.values()} == {"COMPLETED"}, said
    assert ended[preempted]["Restarts"] == "1"
    ends = {name: run.ends for name, run in server.runs.items()}
    assert ends.pop("suggested0") == ["preempted", "finished"], said
    assert ends == {"suggested1": ["finished"], "suggested2": ["finished"]}
    for name in server.runs:
        assert steps(tmp_path / "sweep" / name) == EVERY_LINE
