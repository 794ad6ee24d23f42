"""W&B's real command line with a server on the loopback interface: sweeps, and runs that are resumed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infogan_dist.config.load import load_config, read_config
from infogan_dist.errors import EXIT_STOPPED
from tests.conftest import Runner, read_metrics
from tests.rigs.fake_wandb import ENTITY, PROJECT, FakeWandb, serving
from tests.rigs.processes import venv_environment, wait_until
from tests.test_sweeps import nested

pytestmark = pytest.mark.rig
TRAIN = ["-m", "infogan_dist.train"]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node=1"]
ACCELERATE = ["accelerate", "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1"]
LOGGED_TO_WANDB = {"tracking.trackers": ["wandb"]}
ENDLESS = {**LOGGED_TO_WANDB, "checkpoint.every": 10**6}


@pytest.fixture
def server() -> Iterator[FakeWandb]:
    with serving() as backend:
        yield backend


@pytest.fixture
def start(server: FakeWandb, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a command as a user who is logged in; it is stopped at the end."""
    env = {**venv_environment(), **server.environment(), "ACCELERATE_USE_CPU": "true"}
    env |= {"HOME": str(tmp_path), "WANDB_DIR": str(tmp_path)}
    processes = []

    def popen(*words: Any) -> subprocess.Popen[str]:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(list(map(str, words)), env=env, **pipes)
        processes.append(process)
        return process

    yield popen
    for process in processes:
        if process.poll() is None:
            for _ in range(2):  # at the second signal the agent ends its run
                process.send_signal(signal.SIGINT)
                time.sleep(1)
            process.communicate(timeout=200)


def output_of(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for the end of a process, check its exit status, and return its output."""
    output = process.communicate(timeout=500)[0]
    assert process.returncode == status, output
    return output


def start_sweep(
    start: Any, tiny: Path, launcher: list[str], parameters: dict[str, Any], *configs: str
) -> subprocess.Popen[str]:
    """Create a sweep and start an agent on it; the run folders are in `sweep/`, next to the config file.

    Args:
        start: the fixture.
        tiny: the config file.
        launcher: starts the processes of a run.
        parameters: of the sweep.
        configs: more config files.
    """
    run = f"run={tiny.parent}/sweep/${{oc.env:WANDB_RUN_ID}}"
    command = ["${env}", *launcher, *TRAIN, str(tiny), *configs, run, "${args_no_hyphens}"]
    sweep = {"program": "train", "method": "grid", "command": command, "parameters": parameters}
    path = tiny.parent / "sweep.yaml"
    path.write_text(yaml.dump(sweep))
    output = output_of(start("wandb", "sweep", path))
    assert "Creating sweep with ID: sweep0" in output
    return start("wandb", "agent", f"{ENTITY}/{PROJECT}/sweep0")


def launcher_of(agent: subprocess.Popen[str]) -> int:
    """Return the pid of the process that the agent has started for its run; W&B has another child process."""
    for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        if "infogan_dist.train" in Path(f"/proc/{pid}/cmdline").read_text():
            return int(pid)
    raise AssertionError("the agent has started no run")


def logged_metrics(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics in a run's history, without measured times and without W&B's own values."""
    rows = [row for row in history if "d/loss" in row]
    return [{k: v for k, v in row.items() if not k.startswith(("_", "timing/"))} for row in rows]


def constant(values: dict[str, Any]) -> dict[str, Any]:
    """Return parameters of a sweep that have the same value in all its runs."""
    return {key: {"value": value} for key, value in values.items()}


def stop_step(run: Path) -> int:
    """Wait until a run that saves only at its end has been stopped, and return its last step."""
    wait_until(lambda: any((run / "checkpoints").glob("step_*")))
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    return int(checkpoint.name.removeprefix("step_"))


def test_a_sweep_of_three_runs_on_two_processes_each(
    start: Any, server: FakeWandb, run_module: Runner, tiny: Path, tmp_path: Path
):
    values = {
        **LOGGED_TO_WANDB,
        "codes.style": None,
        "checkpoint.keep_every": None,
        "train.compile": False,
        "objective.q_step": "generator",
        "networks.recognition": [{"kind": "dense", "out": 8, "grid": False, "then": ["lrelu"]}],
    }
    parameters = {**constant(values), "optim.generator.lr": {"values": [1e-05, 0.001, 0.003]}}
    output = output_of(start_sweep(start, tiny, ACCELERATE, parameters))
    assert len(server.runs) == 3, output
    for name, run in server.runs.items():
        values, folder, single = (
            server.suggestions[name],
            tmp_path / "sweep" / name,
            tmp_path / f"single-{name}",
        )
        (tmp_path / "values.yaml").write_text(yaml.dump(nested(values)))
        words = [tiny, tmp_path / "values.yaml", f"run={folder}"]
        # The saved config contains the precision, which the launcher has chosen.
        config = read_config([*map(str, words), "train.precision=fp32"])
        assert load_config(folder / "config.yaml") == config
        # If the second process had other values, the gradients and so the losses would differ.
        run_module("train", *words, f"run={single}", "tracking.trackers=[]", processes=2)
        assert (folder / "metrics.jsonl").read_bytes() == (single / "metrics.jsonl").read_bytes()
        assert run.ends == ["finished"]
        assert {key: run.config[key] for key in values} == values
        assert logged_metrics(run.history) == read_metrics(folder)
        assert run.summary["bound/digit"] == read_metrics(folder)[-1]["bound/digit"]
    assert [run.config["optim.generator.lr"] for run in server.runs.values()] == [1e-05, 0.001, 0.003]


def test_a_preempted_run_of_a_sweep_is_requeued_and_continues(
    start: Any, server: FakeWandb, tiny: Path, tmp_path: Path
):
    length, run = tmp_path / "length.yaml", tmp_path / "sweep" / "suggested0"
    length.write_text("train: {steps: 1000000}")
    agent = start_sweep(start, tiny, ACCELERATE, constant(ENDLESS), str(length))
    wait_until((run / "metrics.jsonl").exists)
    os.kill(launcher_of(agent), signal.SIGTERM)
    end = stop_step(run) + 5
    length.write_text(f"train: {{steps: {end}}}")
    output = output_of(agent)
    assert list(server.runs) == ["suggested0"], output
    assert server.runs["suggested0"].ends == ["preempted", "finished"], output
    assert [row["step"] for row in logged_metrics(server.runs["suggested0"].history)] == list(
        range(1, end + 1)
    )
    assert logged_metrics(server.runs["suggested0"].history) == read_metrics(run)


def test_a_run_that_a_sweep_stops_early_saves_a_checkpoint(
    start: Any, server: FakeWandb, tiny: Path, tmp_path: Path
):
    run = tmp_path / "sweep" / "suggested0"
    agent = start_sweep(start, tiny, TORCHRUN, constant({**ENDLESS, "train.steps": 10**6}))
    wait_until((run / "metrics.jsonl").exists)
    server.stopping.add("suggested0")
    output = output_of(agent)
    assert stop_step(run) == read_metrics(run)[-1]["step"], output


def test_a_stopped_online_run_continues_the_same_wandb_run(
    start: Any, server: FakeWandb, tiny: Path, tmp_path: Path
):
    (tmp_path / "endless.yaml").write_text(yaml.dump(nested(ENDLESS)))
    command, run = [sys.executable, *TRAIN, tiny, tmp_path / "endless.yaml"], tmp_path / "run"
    first = start(*command, "train.steps=1000000")
    wait_until((run / "metrics.jsonl").exists)
    first.send_signal(signal.SIGTERM)
    output_of(first, EXIT_STOPPED)
    end = stop_step(run) + 5
    output_of(start(*command, f"train.steps={end}"))
    ((name, record),) = server.runs.items()
    assert name == (run / "wandb_id").read_text()
    assert record.ends == ["preempted", "finished"]
    assert [row["step"] for row in logged_metrics(record.history)] == list(range(1, end + 1))
    assert logged_metrics(record.history) == read_metrics(run)
    assert [row["_step"] for row in record.history] == list(range(len(record.history)))


def test_a_run_that_is_stopped_on_the_wandb_page_saves_a_checkpoint(
    start: Any, server: FakeWandb, tiny: Path, tmp_path: Path
):
    (tmp_path / "endless.yaml").write_text(yaml.dump(nested(ENDLESS)))
    process = start(sys.executable, *TRAIN, tiny, tmp_path / "endless.yaml", "train.steps=1000000")
    wait_until(lambda: any(run.history for run in server.runs.values()))
    server.stopping.update(server.runs)
    output = output_of(process, EXIT_STOPPED)
    assert stop_step(tmp_path / "run") == read_metrics(tmp_path / "run")[-1]["step"], output


def test_a_resumed_offline_run_is_synced_as_one_run(
    start: Any, server: FakeWandb, run_module: Runner, tiny: Path, tmp_path: Path
):
    for steps in (4, 6):
        run_module("train", tiny, "tracking.trackers=[wandb]", f"train.steps={steps}")
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    output_of(start("wandb", "sync", *folders))
    ((name, run),) = server.runs.items()
    assert name == (tmp_path / "run" / "wandb_id").read_text()
    assert logged_metrics(run.history) == read_metrics(tmp_path / "run")
    assert run.config["train.batch_size"] == 32
