"""Kills at random moments: every run ends with the weights and metrics of an undisturbed one, bit for bit."""

import random
import time
from pathlib import Path

import pytest

from tests.conftest import Runner, Started, same_weights, weights

pytestmark = pytest.mark.rig
SEED = 20261125
OPTIONS = ["train.log_every=10", "checkpoint.every=25", "checkpoint.keep=2"]
# By number of processes: kills, steps of the run, and the longest time from a start to a kill in seconds. The
# latter covers the start, loading, training and saving.
KILLS = {1: (20, 1000, 1.5), 2: (20, 600, 2.0), 4: (10, 300, 3.0)}


@pytest.mark.parametrize("processes", KILLS)
def test_a_run_that_is_killed_at_random_moments_ends_like_an_undisturbed_one(
    run_module: Runner, tiny: Path, tmp_path: Path, processes: int
):
    kills, steps, longest = KILLS[processes]
    rng = random.Random(SEED + processes)
    print(f"seed {SEED + processes}")
    run = tmp_path / "killed"
    options = [tiny, *OPTIONS, f"train.steps={steps}"]
    run_module(
        "train", tiny, *OPTIONS, "train.steps=25", f"run={run}", processes=processes
    )  # a first checkpoint
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
