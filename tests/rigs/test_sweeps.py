"""W&B's real command line against a server on loopback: sweeps, and runs that go on."""

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
from tests.conftest import Runner, environment, read_metrics
from tests.rigs.fake_wandb import ENTITY, PROJECT, FakeWandb, serving
from tests.test_sweeps import nested

pytestmark = pytest.mark.rig
TRAIN = ["-m", "infogan_dist.train"]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node=1"]
ACCELERATE = ["accelerate", "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1"]
MIRRORED = {"tracking.trackers": ["wandb"]}
ENDLESS = {**MIRRORED, "checkpoint.every": 10**6}


@pytest.fixture
def server() -> Iterator[FakeWandb]:
    with serving() as backend:
        yield backend


@pytest.fixture
def start(server: FakeWandb, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command of a user who is logged in to the server; what still runs at the end is stopped."""
    bin_folder = Path(sys.executable).parent
    env = {**environment(), **server.environment(), "HOME": str(tmp_path), "ACCELERATE_USE_CPU": "true"}
    env |= {"PATH": f"{bin_folder}:{env['PATH']}", "WANDB_DIR": str(tmp_path)}
    started = []

    def popen(*words: Any) -> subprocess.Popen[str]:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(list(map(str, words)), env=env, **pipes)
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            for _ in range(2):  # the second makes the agent end its run
                process.send_signal(signal.SIGINT)
                time.sleep(1)
            process.communicate(timeout=200)


def said(process: subprocess.Popen[str], status: int = 0) -> str:
    text = process.communicate(timeout=500)[0]
    assert process.returncode == status, text
    return text


def start_sweep(
    start: Any, tiny: Path, launcher: list[str], parameters: dict[str, Any], *more: str
) -> subprocess.Popen[str]:
    """An agent on a new sweep, whose runs lie in `sweep/` beside the config file."""
    run = f"run={tiny.parent}/sweep/${{oc.env:WANDB_RUN_ID}}"
    command = ["${env}", *launcher, *TRAIN, str(tiny), *more, run, "${args_no_hyphens}"]
    sweep = {"program": "train", "method": "grid", "command": command, "parameters": parameters}
    path = tiny.parent / "sweep.yaml"
    path.write_text(yaml.dump(sweep))
    text = said(start("wandb", "sweep", path))
    assert "Creating sweep with ID: sweep0" in text
    return start("wandb", "agent", f"{ENTITY}/{PROJECT}/sweep0")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def launcher_of(agent: subprocess.Popen[str]) -> int:
    """The process that the agent has started for its run (it has one of W&B's own, too)."""
    for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        if "infogan_dist.train" in Path(f"/proc/{pid}/cmdline").read_text():
            return int(pid)
    raise AssertionError("no run is going")


def mirrored(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's history without the pictures, and without what a clock or W&B itself adds to the metrics."""
    rows = [row for row in history if "d/loss" in row]
    return [{k: v for k, v in row.items() if not k.startswith(("_", "timing/"))} for row in rows]


def constant(values: dict[str, Any]) -> dict[str, Any]:
    """A sweep's parameters that are the same in all its runs."""
    return {key: {"value": value} for key, value in values.items()}


def stopped_at(run: Path) -> int:
    """The step at which a run that saves at its end alone was stopped."""
    wait_for(lambda: any((run / "checkpoints").glob("step_*")))
    (saved,) = (run / "checkpoints").glob("step_*")
    return int(saved.name.removeprefix("step_"))


def test_a_sweep_of_three_runs_on_two_processes_each(
    start: Any, server: FakeWandb, run_module: Runner, tiny: Path, tmp_path: Path
):
    values = {
        **MIRRORED,
        "codes.style": None,
        "checkpoint.keep_every": None,
        "train.compile": False,
        "objective.q_step": "generator",
        "networks.recognition": [{"kind": "dense", "out": 8, "grid": False, "then": ["lrelu"]}],
    }
    parameters = {**constant(values), "optim.generator.lr": {"values": [1e-05, 0.001, 0.003]}}
    text = said(start_sweep(start, tiny, ACCELERATE, parameters))
    assert len(server.runs) == 3, text
    for name, run in server.runs.items():
        values, folder, plain = server.suggested[name], tmp_path / "sweep" / name, tmp_path / f"plain-{name}"
        (tmp_path / "values.yaml").write_text(yaml.dump(nested(values)))
        words = [tiny, tmp_path / "values.yaml", f"run={folder}"]
        assert load_config(folder / "config.yaml") == read_config(list(map(str, words)))
        # With other values on the second process the gradients, and so the losses, would be others.
        run_module("train", *words, f"run={plain}", "tracking.trackers=[]", processes=2)
        assert (folder / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
        assert run.ends == ["finished"]
        assert {key: run.config[key] for key in values} == values
        assert mirrored(run.history) == read_metrics(folder)
        assert run.summary["bound/digit"] == read_metrics(folder)[-1]["bound/digit"]
    assert [run.config["optim.generator.lr"] for run in server.runs.values()] == [1e-05, 0.001, 0.003]


def test_a_preempted_run_of_a_sweep_is_handed_out_again_and_goes_on(
    start: Any, server: FakeWandb, tiny: Path, tmp_path: Path
):
    length, run = tmp_path / "length.yaml", tmp_path / "sweep" / "suggested0"
    length.write_text("train: {steps: 1000000}")
    agent = start_sweep(start, tiny, ACCELERATE, constant(ENDLESS), str(length))
    wait_for((run / "metrics.jsonl").exists)
    os.kill(launcher_of(agent), signal.SIGTERM)
    end = stopped_at(run) + 5
    length.write_text(f"train: {{steps: {end}}}")
    text = said(agent)
    assert list(server.runs) == ["suggested0"], text
    assert server.runs["suggested0"].ends == ["preempted", "finished"], text
    assert [row["step"] for row in mirrored(server.runs["suggested0"].history)] == list(range(1, end + 1))
    assert mirrored(server.runs["suggested0"].history) == read_metrics(run)


def test_a_run_that_a_sweep_stops_early_saves_and_makes_way(
    start: Any, server: FakeWandb, tiny: Path, tmp_path: Path
):
    run = tmp_path / "sweep" / "suggested0"
    agent = start_sweep(start, tiny, TORCHRUN, constant({**ENDLESS, "train.steps": 10**6}))
    wait_for((run / "metrics.jsonl").exists)
    server.stopping.add("suggested0")
    text = said(agent)
    assert stopped_at(run) == read_metrics(run)[-1]["step"], text


def test_an_online_run_that_was_stopped_goes_on_in_place(
    start: Any, server: FakeWandb, tiny: Path, tmp_path: Path
):
    (tmp_path / "endless.yaml").write_text(yaml.dump(nested(ENDLESS)))
    command, run = [sys.executable, *TRAIN, tiny, tmp_path / "endless.yaml"], tmp_path / "run"
    first = start(*command, "train.steps=1000000")
    wait_for((run / "metrics.jsonl").exists)
    first.send_signal(signal.SIGTERM)
    said(first, EXIT_STOPPED)
    end = stopped_at(run) + 5
    said(start(*command, f"train.steps={end}"))
    ((name, seen),) = server.runs.items()
    assert name == (run / "wandb_id").read_text()
    assert seen.ends == ["preempted", "finished"]
    assert [row["step"] for row in mirrored(seen.history)] == list(range(1, end + 1))
    assert mirrored(seen.history) == read_metrics(run)
    assert [row["_step"] for row in seen.history] == list(range(len(seen.history)))


def test_a_run_that_is_stopped_on_w_and_b_s_page_saves(
    start: Any, server: FakeWandb, tiny: Path, tmp_path: Path
):
    (tmp_path / "endless.yaml").write_text(yaml.dump(nested(ENDLESS)))
    process = start(sys.executable, *TRAIN, tiny, tmp_path / "endless.yaml", "train.steps=1000000")
    wait_for(lambda: any(run.history for run in server.runs.values()))
    server.stopping.update(server.runs)
    text = said(process, EXIT_STOPPED)
    assert stopped_at(tmp_path / "run") == read_metrics(tmp_path / "run")[-1]["step"], text


def test_an_offline_run_that_went_on_is_synced_as_one(
    start: Any, server: FakeWandb, run_module: Runner, tiny: Path, tmp_path: Path
):
    for steps in (4, 6):
        run_module("train", tiny, "tracking.trackers=[wandb]", f"train.steps={steps}")
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    said(start("wandb", "sync", *folders))
    ((name, run),) = server.runs.items()
    assert name == (tmp_path / "run" / "wandb_id").read_text()
    assert mirrored(run.history) == read_metrics(tmp_path / "run")
    assert run.config["train.batch_size"] == 32
