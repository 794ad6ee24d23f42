"""The real launchers, the compiler, and full MNIST."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infogan_dist.data.sources import mnist
from infogan_dist.data.write import write_shard_set
from tests.conftest import Runner, environment, read_metrics, same_weights, weights
from tests.test_train import largest_difference

pytestmark = pytest.mark.rig
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no"]
ACCELERATE += ["--dynamo_backend=no", "--num_cpu_threads_per_process=1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def launch(launcher: list[str], *words: object) -> subprocess.Popen[str]:
    env = {**environment(), "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, "-m", "infogan_dist.train", *map(str, words)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=300)[0]


@pytest.mark.parametrize(
    "launcher",
    [[*ACCELERATE, "--multi_gpu", "--num_processes=2"], [*TORCHRUN, "--nproc-per-node=2"]],
    ids=["accelerate", "torchrun"],
)
def test_two_launched_processes_equal_one(
    run_module: Runner, tiny: Path, tmp_path: Path, launcher: list[str]
):
    options = [tiny, "train.precision=fp64"]
    run_module("train", *options, f"run={tmp_path}/one")
    process = launch(launcher, *options, f"run={tmp_path}/two", "train.processes=2")
    text = said(process)
    assert process.returncode == 0, text
    assert largest_difference(tmp_path / "one", tmp_path / "two", 3) < 1e-9


def test_a_launcher_that_quietly_starts_one_process_is_found_out(tiny: Path):
    process = launch([*ACCELERATE, "--cpu", "--num_processes=2"], tiny, "train.processes=2")
    assert "train.processes: 2 asked for, 1 came up" in said(process)
    assert process.returncode != 0


def test_torchrun_passes_a_stop_on_and_the_next_start_goes_on(run_module: Runner, tiny: Path, tmp_path: Path):
    run, options = tmp_path / "run", [tiny, "train.log_every=10", "checkpoint.every=100000"]
    process = launch([*TORCHRUN, "--nproc-per-node=2"], *options, f"run={run}", "train.steps=100000")
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert "stopped at step" in said(process)
    (folder,) = (run / "checkpoints").iterdir()
    end = int(folder.name.removeprefix("step_")) + 5
    for where in (run, tmp_path / "through"):
        run_module("train", *options, f"run={where}", f"train.steps={end}", processes=2)
    assert same_weights(weights(run, end), weights(tmp_path / "through", end))


@pytest.mark.parametrize("q_step", ["discriminator", "generator"])
def test_compiled_networks_train_as_eager_ones(tiny: Path, tmp_path: Path, q_step: str):
    options = [tiny, "train.precision=fp64", f"objective.q_step={q_step}", "objective.r1=0.5"]
    for compiled in ("false", "true"):
        process = launch(
            [sys.executable], *options, f"run={tmp_path}/{compiled}", f"train.compile={compiled}"
        )
        text = said(process)
        assert process.returncode == 0, text
    assert largest_difference(tmp_path / "false", tmp_path / "true", 3) < 1e-9


def test_the_paper_s_preset_binds_the_digit_code_on_full_mnist(tmp_path: Path):
    where = os.environ.get("INFOGAN_MNIST_DIR")
    if where is None:
        pytest.skip("INFOGAN_MNIST_DIR names no folder of the four MNIST files")
    write_shard_set(mnist(Path(where), "train"), tmp_path / "set")
    run = tmp_path / "run"
    options = [f"data.shards={tmp_path}/set", f"run={run}", "tracking.trackers=[]", "train.steps=300"]
    process = launch([sys.executable], "configs/mnist.yaml", *options)
    text = said(process)
    assert process.returncode == 0, text
    last = read_metrics(run)[-1]
    # 2.18 nats where this was written; a code that is not learned stays near 0, and none exceeds ln 10
    assert 2.0 < last["bound/digit"] < last["entropy/digit"]
    assert last["gain/style"] > 1.0
