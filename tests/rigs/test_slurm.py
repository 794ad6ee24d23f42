"""The Slurm scripts on a real cluster: several nodes, preemption, crashes, refused configs, GPUs, sweeps."""

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
from tests.rigs.slurm import Slurm, cluster, training_processes

pytestmark = pytest.mark.rig
TRAIN, SWEEP = "launch/slurm/train.sbatch", "launch/slurm/sweep.sbatch"
TWO_NODES, ONE_CPU = "--nodes=2", "--cpus-per-task=1"
STEPS, LOG_EVERY = 400, 10
PACE = [f"train.steps={STEPS}", f"train.log_every={LOG_EVERY}", "checkpoint.every=100"]
PACE += ["tracking.pictures_every=100000"]
ENDLESS = [*PACE, "train.steps=100000"]
LOGGED_STEPS = list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, small_set: Path) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(f"{TINY}\ndata: {{shards: {small_set}, workers: 0}}\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    """A run of two processes without Slurm."""
    folder = config.parent
    started = Started(folder, "train", config, *PACE, f"run={folder}/run", processes=2)
    for process in started.processes:
        # One thread each, as for the tasks of the nodes: more threads could sum in another order.
        os.sched_setaffinity(process.pid, [min(os.sched_getaffinity(0))])
    done = started.wait(240)
    assert done.status == 0, done.stderr
    return folder / "run"


def logged_steps(run: Path) -> list[float]:
    return [line["step"] for line in read_metrics(run)]


def metadata(run: Path, step: int) -> dict[str, object]:
    return json.loads((run / "checkpoints" / f"step_{step:08d}" / "run.json").read_text())


def wait_for_step(slurm: Slurm, job: str, run: Path, step: int, restarts: int) -> None:
    """Wait until a job has logged a step.

    Args:
        slurm: the cluster.
        job: the job.
        run: its run folder.
        step: the step.
        restarts: number of times that the job has been requeued.
    """

    def reached(state: dict[str, str]) -> bool:
        metrics, lines = run / "metrics.jsonl", step // LOG_EVERY
        logged = metrics.exists() and metrics.read_text().count("\n") >= lines
        return logged and (state["JobState"], state["Restarts"]) == ("RUNNING", str(restarts))

    slurm.wait(job, reached)


def test_two_nodes_equal_two_processes(slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path):
    run = tmp_path / "run"
    job = slurm.submit(TWO_NODES, ONE_CPU, TRAIN, config, *PACE, f"run={run}")
    assert slurm.wait_for_end(job)["JobState"] == "COMPLETED", slurm.output(job)
    assert logged_steps(run) == LOGGED_STEPS
    assert metadata(run, STEPS)["world"] == 2
    assert same_weights(weights(run, STEPS), weights(undisturbed, STEPS))


def test_two_preemptions_and_a_killed_worker_do_not_change_the_weights(
    slurm: Slurm, config: Path, undisturbed: Path, tmp_path: Path
):
    run = tmp_path / "run"
    job = slurm.submit(TWO_NODES, ONE_CPU, TRAIN, config, *PACE, f"run={run}")
    wait_for_step(slurm, job, run, 50, restarts=0)
    slurm.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time limit
    wait_for_step(slurm, job, run, 150, restarts=1)
    slurm.run("scancel", "--signal=USR1", job)  # only to the tasks
    wait_for_step(slurm, job, run, 250, restarts=2)
    ((worker, _),) = training_processes(SLURM_JOB_ID=job, RANK="1")
    os.kill(worker, signal.SIGKILL)
    state = slurm.wait_for_end(job)
    output = slurm.output(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "2"), output
    assert (output.count("stopped at step"), output.count("start 1 ended with status 137")) == (2, 1)
    assert logged_steps(run) == LOGGED_STEPS
    assert same_weights(weights(run, STEPS), weights(undisturbed, STEPS))


def test_a_refused_config_fails_the_job_with_one_line(slurm: Slurm, config: Path, tmp_path: Path):
    job = slurm.submit(TWO_NODES, ONE_CPU, TRAIN, config, "train.steeps=3", f"run={tmp_path}/run")
    state = slurm.wait_for_end(job)
    output = slurm.output(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0"), output
    assert output.count("did you mean train.steps") == 1
    assert "Traceback" not in output


def test_a_job_that_crashes_repeatedly_is_not_started_again(slurm: Slurm, config: Path, tmp_path: Path):
    """The job crashes because it is submitted without the virtual environment."""
    without_venv = "--export=ALL,PATH=/usr/bin:/bin"
    job = slurm.submit(without_venv, ONE_CPU, TRAIN, config, f"run={tmp_path}/run")
    state = slurm.wait_for_end(job)
    output = slurm.output(job)
    assert (state["JobState"], state["Restarts"]) == ("FAILED", "0"), output
    assert [f"start {i} ended with" in output for i in range(1, 5)] == [True, True, True, False]


def test_each_gpu_has_a_process_and_a_cancelled_job_saves_and_stays_cancelled(
    slurm: Slurm, config: Path, tmp_path: Path
):
    run = tmp_path / "run"
    # The GPUs of these nodes exist in Slurm's configuration only.
    options = [*ENDLESS, "train.device=cpu", f"run={run}"]
    job = slurm.submit("--gpus-per-node=2", "--cpus-per-task=2", TRAIN, config, *options)
    wait_for_step(slurm, job, run, LOG_EVERY, restarts=0)
    tasks = [env for _, env in sorted(training_processes(SLURM_JOB_ID=job), key=lambda task: task[1]["RANK"])]
    assert [task["LOCAL_RANK"] for task in tasks] == ["0", "1"]
    assert {task["SLURMD_NODENAME"] for task in tasks} == {slurm.state(job)["NodeList"]}
    # Both GPUs are visible to each process, which selects one by LOCAL_RANK.
    assert [task["CUDA_VISIBLE_DEVICES"] for task in tasks] == ["0,1", "0,1"]
    slurm.run("scancel", job)
    assert slurm.wait_for_end(job)["JobState"] == "CANCELLED"
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    assert metadata(run, int(checkpoint.name.removeprefix("step_")))["world"] == 2


def test_a_job_whose_gpus_do_not_work_fails_at_once(slurm: Slurm, config: Path, tmp_path: Path):
    job = slurm.submit("--gpus-per-node=2", "--cpus-per-task=2", TRAIN, config, f"run={tmp_path}/run")
    state, output = slurm.wait_for_end(job), slurm.output(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0"), output
    assert output.count("error: train.device: SLURM_GPUS_ON_NODE=2, but torch") == 1, output
    assert not (tmp_path / "run").exists()


def test_an_array_of_agents_completes_a_sweep_in_spite_of_a_preemption(
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
        user.run("wandb", "sweep", tmp_path / "sweep.yaml")
        array = user.submit("--array=0-1", ONE_CPU, SWEEP, f"{ENTITY}/{PROJECT}/sweep0")
        first = tmp_path / "sweep" / "suggested0"
        user.wait(f"{array}_0", lambda state: (first / "metrics.jsonl").exists())
        ((_, env),) = training_processes(WANDB_RUN_ID="suggested0")
        preempted = f"{array}_{env['SLURM_ARRAY_TASK_ID']}"
        user.run("scancel", "--batch", "--signal=USR1", preempted)
        states = {f"{array}_{i}": user.wait_for_end(f"{array}_{i}") for i in range(2)}
    output = user.output(preempted)
    assert {state["JobState"] for state in states.values()} == {"COMPLETED"}, output
    assert states[preempted]["Restarts"] == "1"
    ends = {name: run.ends for name, run in server.runs.items()}
    assert ends.pop("suggested0") == ["preempted", "finished"], output
    assert ends == {"suggested1": ["finished"], "suggested2": ["finished"]}
    for name in server.runs:
        assert logged_steps(tmp_path / "sweep" / name) == LOGGED_STEPS
