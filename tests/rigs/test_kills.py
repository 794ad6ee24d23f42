"""Kills at random moments: every run ends with the weights and metrics of an undisturbed one, bit for bit."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Runner, Started, same_weights, weights
from tests.training.steps import CLUSTERED

pytestmark = pytest.mark.rig
SEED = 20261125
OPTIONS = ["train.log_every=10", "checkpoint.every=25", "checkpoint.keep=2"]
# A first stage that takes half of the run, with several searches for neighbours.
TWO_STAGES = [
    *CLUSTERED,
    "clustering.steps=200",
    "clustering.rebuild_every=30",
    "clustering.balanced_steps=60",
]
# Processes, options, kills, steps of the run, and the longest time from a start to a kill in seconds. The
# latter covers the start, loading, training and saving.
KILLS = [
    (1, [], 20, 1000, 1.5),
    (2, [], 20, 600, 2.0),
    (4, [], 10, 300, 3.0),
    (1, TWO_STAGES, 10, 400, 1.5),
    (2, TWO_STAGES, 10, 400, 2.0),
]


@pytest.mark.parametrize(
    ("processes", "overrides", "kills", "steps", "longest"),
    KILLS,
    ids=lambda value: "two_stages" if value == TWO_STAGES else None,
)
def test_a_run_that_is_killed_at_random_moments_ends_like_an_undisturbed_one(
    run_module: Runner,
    tiny: Path,
    tmp_path: Path,
    processes: int,
    overrides: list[str],
    kills: int,
    steps: int,
    longest: float,
):
    rng = random.Random(SEED + processes)
    print(f"seed {SEED + processes}")
    run = tmp_path / "killed"
    options = [tiny, *overrides, *OPTIONS, f"train.steps={steps}"]
    started = Started(tmp_path, "train", *options, f"run={run}", processes=processes)
    while not list((run / "checkpoints").glob("step_*")):
        assert all(process.is_alive() for process in started.processes), started.wait()
        time.sleep(0.05)
    started.send(signal.SIGKILL)
    started.wait()
    moments = []
    for i in range(kills):
        started = Started(tmp_path, "train", *options, f"run={run}", processes=processes)
        moments.append(rng.uniform(0, longest))
        time.sleep(moments[-1])
        # Of several processes one dies first, at random, as with a lost node.
        for process in rng.sample(started.processes, processes):
            process.kill()
            time.sleep(rng.choice([0, 0, 0.05]))
        started.wait()
        assert list((run / "checkpoints").glob("step_*")), (i, moments)
    run_module("train", *options, f"run={run}", processes=processes)
    run_module("train", *options, f"run={tmp_path}/undisturbed", processes=processes)
    assert same_weights(weights(run, steps), weights(tmp_path / "undisturbed", steps)), moments
    logs = [(folder / "metrics.jsonl").read_bytes() for folder in (run, tmp_path / "undisturbed")]
    assert logs[0] == logs[1], moments
