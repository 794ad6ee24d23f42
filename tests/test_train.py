"""The training command line in real processes: exactness over processes, resume, refused configs."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.errors import EXIT_STOPPED
from tests.conftest import Runner, Started, line_of, read_metrics, same_weights, weights

BATCH_NORM = "networks.discriminator=[{kind: conv, out: 8, stride: 2, then: [batchnorm, lrelu]}]"


def largest_difference(a: Path, b: Path, steps: int) -> float:
    """Return the largest relative difference between two runs' metrics and between their weights."""
    largest = 0.0
    for x, y in zip(read_metrics(a), read_metrics(b), strict=True):
        assert x.keys() == y.keys()
        largest = max(largest, *(abs(x[k] - y[k]) / max(abs(x[k]), 1e-9) for k in x))
    v, w = weights(a, steps), weights(b, steps)
    return max(largest, *(float((v[k] - w[k]).abs().max() / v[k].abs().max().clamp_min(1e-9)) for k in v))


@pytest.mark.parametrize(
    "options",
    [
        ["objective.q_step=discriminator"],
        ["objective.q_step=generator"],
        ["objective.q_step=discriminator", "objective.d_updates=split", "objective.r1=0.5"],
        ["objective.q_step=generator", "objective.d_updates=split", "objective.loss=hinge"],
    ],
    ids=" ".join,
)
def test_two_processes_equal_one(run_module: Runner, tiny: Path, tmp_path: Path, options: list[str]):
    """Losses, gradient norms and weights of a global batch on one process, on two, and in micro-batches."""
    options = [str(tiny), "train.precision=fp64", "data.lanes=4", *options]
    run_module("train", *options, f"run={tmp_path}/one")
    run_module("train", *options, f"run={tmp_path}/two", processes=2)
    run_module("train", *options, f"run={tmp_path}/parts", "train.accumulation=4", processes=2)
    # fp64, where Adam cannot amplify rounding to more than this
    assert largest_difference(tmp_path / "one", tmp_path / "two", 3) < 1e-9
    assert largest_difference(tmp_path / "one", tmp_path / "parts", 3) < 1e-9


def test_losses_agree_in_single_precision_too(run_module: Runner, tiny: Path, tmp_path: Path):
    run_module("train", tiny, f"run={tmp_path}/one")
    run_module("train", tiny, f"run={tmp_path}/two", processes=2)
    for x, y in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True):
        for name in ("d/loss", "g/loss", "grad_norm/d", "grad_norm/g"):
            assert x[name] == pytest.approx(y[name], rel=1e-5)


@pytest.mark.parametrize("processes", [1, 2, pytest.param(4, marks=pytest.mark.rig)])
def test_a_stopped_and_continued_run_equals_an_uninterrupted_one_bit_for_bit(
    run_module: Runner, tiny: Path, tmp_path: Path, processes: int
):
    """With batch norm, a partly filled metrics window, and stops at no multiple of any interval."""
    options = [tiny, BATCH_NORM, "train.log_every=4", "checkpoint.every=6"]
    through, halting = tmp_path / "through", tmp_path / "halting"
    run_module("train", *options, f"run={through}", "train.steps=14", processes=processes)
    for steps in (5, 11, 14):
        run_module("train", *options, f"run={halting}", f"train.steps={steps}", processes=processes)
    assert (through / "metrics.jsonl").read_bytes() == (halting / "metrics.jsonl").read_bytes()
    assert [m["step"] for m in read_metrics(through)] == [4, 8, 12]
    assert same_weights(weights(through, 14), weights(halting, 14))


def test_a_run_continues_under_another_number_of_processes(run_module: Runner, tiny: Path, tmp_path: Path):
    options = [tiny, "train.precision=fp64", "train.log_every=4", "train.steps=11"]
    run_module("train", *options, f"run={tmp_path}/through")
    for steps, processes in ((3, 4), (6, 2), (11, 1)):
        run_module("train", *options, f"run={tmp_path}/moved", f"train.steps={steps}", processes=processes)
    assert largest_difference(tmp_path / "through", tmp_path / "moved", 11) < 1e-9


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_signal_saves_and_the_next_start_goes_on(
    run_module: Runner, tiny: Path, tmp_path: Path, processes: int
):
    options = [tiny, "train.log_every=10", "checkpoint.every=100000"]
    run = tmp_path / "stopped"
    running = Started(tmp_path, "train", *options, f"run={run}", "train.steps=100000", processes=processes)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send(signal.SIGTERM)
    done = running.wait(60)
    assert done.status == EXIT_STOPPED, done.stderr
    assert "stopped at step" in done.stdout
    (folder,) = (run / "checkpoints").iterdir()
    step = int(folder.name.removeprefix("step_"))
    end = step + 5
    run_module("train", *options, f"run={run}", f"train.steps={end}", processes=processes)
    run_module("train", *options, f"run={tmp_path}/through", f"train.steps={end}", processes=processes)
    assert same_weights(weights(run, end), weights(tmp_path / "through", end))
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "through" / "metrics.jsonl").read_bytes()


def test_logs_are_truncated_to_the_last_checkpoint(run_module: Runner, tiny: Path, tmp_path: Path):
    run = tmp_path / "run"
    run_module("train", tiny, "train.steps=4")
    before = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(before + json.dumps({"step": 5, "d/loss": 0.0}) + '\n{"step": 6, "d/l')
    run_module("train", tiny, "train.steps=6")
    assert [m["step"] for m in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert (run / "metrics.jsonl").read_text().startswith(before)


def test_a_run_folder_refuses_a_config_or_data_that_changes_the_result(
    run_module: Runner, tiny: Path, digits: Path
):
    run_module("train", tiny)
    output = line_of(run_module("train", tiny, "seed=1", "optim.generator.lr=0.5", status=2))
    assert "seed: 0 -> 1" in output
    assert "optim.generator.lr: 0.001 -> 0.5" in output
    output = line_of(run_module("train", tiny, f"data.shards={digits}", "networks.init_std=0.1", status=2))
    assert "data.shards" in output


def test_init_from_starts_from_another_run_s_weights(run_module: Runner, tiny: Path, tmp_path: Path):
    run_module("train", tiny, "train.steps=5")
    other = tmp_path / "other"
    run_module("train", tiny, f"run={other}", f"train.init_from={tmp_path}/run", "train.steps=0", "seed=9")
    assert same_weights(weights(other, 0), weights(tmp_path / "run", 5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.shards=nowhere"], "nowhere: no shard set there"),
        (["train.processes=2"], "2 asked for, 1 came up"),
        (["train.precision=fp16"], "fp16 needs a GPU"),
        (["tracking.trackers=[comet]"], "comet is unknown or not installed"),
        (["train.init_from=nowhere"], "nowhere: no complete checkpoint"),
        (["codes={}", "codes.digit=null", "codes.style=null"], "codes: none"),
        (
            ["networks.generator=[{kind: dense, out: 1, grid: true}, {kind: deconv, stride: 3}]"],
            "multiples of 3",
        ),
        (["run=/dev/null/run"], "/dev/null/run cannot be created"),
        (["train.steeps=3"], "did you mean train.steps"),
    ],
)
def test_mistakes_get_one_line_and_status_2(
    run_module: Runner, tiny: Path, overrides: list[str], message: str
):
    assert message in line_of(run_module("train", tiny, *overrides, status=2))


def test_several_processes_report_a_mistake_once(run_module: Runner, tiny: Path):
    output = run_module("train", tiny, "data.lanes=3", "train.batch_size=48", processes=2, status=2).stderr
    assert (
        output.count("error: data.lanes: 3 lanes cannot be divided among 2 processes; use data.lanes=2 or 4")
        == 1
    )


def test_a_broken_shard_stops_all_processes_and_is_named(
    run_module: Runner, tiny: Path, tmp_path: Path, small_set: Path
):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in small_set.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "000002.tar").write_bytes((broken / "000002.tar").read_bytes()[:-1024])
    output = run_module("train", tiny, f"data.shards={broken}", processes=2, status=2).stderr
    assert output.count("000002.tar") == 1
    assert "bytes instead of the manifest's" in output
    assert "Traceback" not in output


def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_term(run_module: Runner, tiny: Path):
    # Weights so large that D's first logits overflow to infinity.
    done = run_module("train", tiny, "networks.init_std=1e30", status=3)
    *_, output = done.stderr.splitlines()
    assert output.startswith("error: step 1: the discriminator")
    assert "last checkpoint: none" in output


def test_steps_that_are_not_finite_can_be_skipped_and_counted(run_module: Runner, tiny: Path, tmp_path: Path):
    options = [
        tiny,
        "networks.init_std=1e30",
        "train.on_nonfinite=skip",
        "train.log_every=2",
        "train.steps=4",
    ]
    run_module("train", *options)
    run_module("train", *options, f"run={tmp_path}/first", "train.steps=0")
    for line in read_metrics(tmp_path / "run"):
        assert (line["nonfinite/d"], line["nonfinite/g"]) == (2, 2)
        assert line["d/loss"] is None  # every step of the window was left out
    trained, first = weights(tmp_path / "run", 4), weights(tmp_path / "first", 0)
    assert same_weights(trained, first)


def test_a_dead_code_is_reported_once_after_the_warm_up(run_module: Runner, tiny: Path, tmp_path: Path):
    done = run_module("train", tiny, "codes.style.weight=0", "train.warm_up=4", "train.steps=8")
    assert (
        done.stderr.count("warning: codes.style: the images show next to nothing of this code (step 4") == 1
    )
    assert [m["dead/style"] for m in read_metrics(tmp_path / "run")] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_going(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    first = Started(tmp_path, "train", tiny, "train.steps=100000")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        assert "belongs to a run that is still going" in line_of(run_module("train", tiny, status=2))
    finally:
        first.send(signal.SIGKILL)
        first.wait()
    run_module("train", tiny, "train.steps=3", f"run={tmp_path}/other")
    run_module("train", tiny)  # the lock ended with the first process


@pytest.mark.rig
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_continues_from_its_last_checkpoint(
    run_module: Runner, tiny: Path, tmp_path: Path, processes: int
):
    options = [tiny, "train.log_every=10", "checkpoint.every=25", "train.steps=400"]
    run = tmp_path / "killed"
    for step in (60, 200):  # killed twice
        running = Started(tmp_path, "train", *options, f"run={run}", processes=processes)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _reached(run, step):
            time.sleep(0.01)
        running.send(signal.SIGKILL)
        running.wait()
    run_module("train", *options, f"run={run}", processes=processes)
    run_module("train", *options, f"run={tmp_path}/through", processes=processes)
    assert same_weights(weights(run, 400), weights(tmp_path / "through", 400))
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "through" / "metrics.jsonl").read_bytes()


def _reached(run: Path, step: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= step // 10


def test_a_winning_discriminator_is_reported_once(run_module: Runner, tiny: Path):
    done = run_module(
        "train", tiny, "optim.discriminator.lr=0.05", "optim.generator.lr=1e-9", "train.steps=150"
    )
    assert done.stderr.count("the discriminator's loss stays below") == 1


def test_a_run_folder_contains_what_the_readme_describes(run_module: Runner, tiny: Path, tmp_path: Path):
    options = ["train.steps=6", "tracking.pictures_every=2", "checkpoint.every=2", "checkpoint.keep_every=4"]
    done = run_module("train", tiny, *options, "checkpoint.keep=1")
    run = tmp_path / "run"
    assert "bound of digit" in done.stdout
    assert "images/s" in done.stdout
    assert sorted(os.listdir(run)) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "pictures",
        "timing.jsonl",
    ]
    assert sorted(os.listdir(run / "checkpoints")) == ["step_00000004", "step_00000006"]
    names = {"samples.png", "traversal_digit.png", "traversal_style.0.png", "traversal_style.1.png"}
    assert {p.name for p in (run / "pictures" / "step_00000004").iterdir()} == names
    assert (run / "pictures" / "step_00000006" / "samples.png").exists()  # at the end too
    picture = np.asarray(Image.open(run / "pictures" / "step_00000000" / "real.png"))
    assert picture.ndim == 3
    timing = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    assert timing[-1].keys() == {"step", "images_per_second", "data_wait_share", "seconds"}
    assert 0 <= timing[-1]["data_wait_share"] <= 1
    metrics = read_metrics(run)[-1]
    assert metrics["lr/d"] == 2e-4
    assert metrics["entropy/digit"] == pytest.approx(np.log(10))


def test_help_needs_no_config(run_module: Runner):
    output = run_module("train", "--help").stdout
    assert "configs/mnist.yaml" in output
    assert "train.batch_size" in output
