"""Runs whose first stage clusters the real images: laws of their steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.inference import load_model
from tests.conftest import Runner, line_of, read_metrics
from tests.training.steps import CLUSTERED


def state_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint's networks, those of the first stage included."""
    files = sorted((run / "checkpoints" / f"step_{step:08d}").glob("*.safetensors"))
    assert {"classifier", "classifier_ema", "neighbours"} < {file.stem for file in files}
    return {f"{file.stem}.{k}": v for file in files for k, v in load_file(file).items()}


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.rig)])
def test_both_stages_do_not_depend_on_the_number_of_processes(
    run_module: Runner, tiny: Path, tmp_path: Path, processes: int
):
    """In fp64 to 1e-9: four steps of each stage, with both losses, a search by features, R1 and R2."""
    options = [tiny, *CLUSTERED, "train.precision=fp64", "train.batch_size=24", "data.lanes=24"]
    options += ["data.shards=" + str(tmp_path / "set"), "train.log_every=1"]
    pixels = np.random.default_rng(0).integers(0, 256, (240, 1, 8, 8), np.uint8)
    write_shard_set(Source("noise", 240, [], lambda i: (pixels[i], -1)), tmp_path / "set", shards=24)
    run_module("train", *options, f"run={tmp_path}/one")
    run_module("train", *options, f"run={tmp_path}/more", processes=processes)
    one, more = state_of(tmp_path / "one", 8), state_of(tmp_path / "more", 8)
    assert one.keys() == more.keys()
    for name, value in one.items():
        assert torch.allclose(more[name].double(), value.double(), rtol=1e-9, atol=1e-12), name
    for a, b in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "more"), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.rig), 3, 4, 6])
def test_a_run_resumes_bit_for_bit_in_each_stage(run_module: Runner, tiny: Path, tmp_path: Path, stop: int):
    """Before and after the search by features, at the end of the first stage, and in the second."""
    options = [tiny, *CLUSTERED, f"checkpoint.keep_every={stop}", "checkpoint.keep=9", "train.log_every=3"]
    run_module("train", *options, f"run={tmp_path}/whole")
    run_module("train", *options, f"run={tmp_path}/parts")
    # As after a kill: what follows the checkpoint is lost.
    folders = (tmp_path / "parts" / "checkpoints").iterdir()
    for folder in [f for f in folders if f.name > f"step_{stop:08d}"]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    run_module("train", *options, f"run={tmp_path}/parts")
    whole, parts = state_of(tmp_path / "whole", 8), state_of(tmp_path / "parts", 8)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_each_stage_trains_its_own_networks(run_module: Runner, tiny: Path, tmp_path: Path):
    options = [tiny, *CLUSTERED, "checkpoint.keep_every=4", "checkpoint.keep=9", f"run={tmp_path}/run"]
    run_module("train", *options, "clustering.steps=4", "train.steps=8")
    middle, end = state_of(tmp_path / "run", 4), state_of(tmp_path / "run", 8)
    changed = {name.split(".")[0] for name in middle if not torch.equal(middle[name], end[name])}
    assert changed == {"generator", "discriminator", "recognition", "generator_ema"}
    rows = read_metrics(tmp_path / "run")
    assert [("classifier/loss" in row, "d/loss" in row) for row in rows] == [(True, False)] * 4 + [
        (False, True)
    ] * 4


def test_learning_rates_fall_at_the_end_of_each_stage(run_module: Runner, tiny: Path, tmp_path: Path):
    options = [tiny, *CLUSTERED, "clustering.decay=0.5", "clustering.lr=1", f"run={tmp_path}/run"]
    run_module("train", *options, "optim.generator.lr=1", "optim.discriminator.lr=2")
    rows = read_metrics(tmp_path / "run")
    # 1 - step / 4, divided by the share 1/2, and at most 1.
    factors = [1, 1, 1, 0.5]
    assert [row["lr/classifier"] for row in rows[:4]] == pytest.approx(factors)
    assert [row["lr/g"] for row in rows[4:]] == pytest.approx(factors)
    assert [row["lr/d"] for row in rows[4:]] == pytest.approx([2 * f for f in factors])


def test_a_run_with_a_decay_has_a_fixed_length(run_module: Runner, tiny: Path, tmp_path: Path):
    options = [tiny, *CLUSTERED, f"run={tmp_path}/run"]
    run_module("train", *options)
    message = line_of(run_module("train", *options, "train.steps=9", status=2))
    assert "train.steps: 8 -> 9" in message


@pytest.mark.rig
def test_patterns_are_found_without_labels(run_module: Runner, tiny: Path, tmp_path: Path):
    """A bright quadrant in noise: almost every image of a quadrant gets one category, which no other has."""
    rng = np.random.default_rng(0)
    patterns = np.kron(np.eye(4).reshape(4, 1, 2, 2), np.ones((1, 1, 4, 4))) * 180
    noisy = patterns[np.arange(480) % 4] + rng.normal(40, 20, (480, 1, 8, 8))
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    names = [str(i) for i in range(4)]
    write_shard_set(Source("patterns", 480, names, lambda i: (pixels[i], i % 4)), tmp_path / "set", shards=8)
    options = [tiny, *CLUSTERED, f"run={tmp_path}/run", f"data.shards={tmp_path}/set", "codes.digit.size=4"]
    options += ["clustering.batch_size=48", "clustering.balanced_steps=60", "clustering.rebuild_every=60"]
    options += ["clustering.lr=0.01", "clustering.steps=100", "train.steps=101", "train.log_every=20"]
    run_module("train", *options)
    posteriors = load_model(tmp_path / "run").encode(torch.from_numpy(pixels).float() / 127.5 - 1)
    categories = posteriors["digit"].probs.argmax(-1)[:, 0].numpy()  # type: ignore[attr-defined]
    table = np.zeros((4, 4))
    np.add.at(table, (np.arange(480) % 4, categories), 1)
    assert sorted(table.argmax(1)) == [0, 1, 2, 3]
    assert table.max(1).sum() / 480 > 0.95


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clustering.code=style", "clustering.code: style is no categorical code with one variable"),
        ("networks.classifier=[]", "networks.classifier: no layers"),
        ("objective.d_updates=split", "objective.d_updates: split has no categories"),
        ("train.steps=3", "train.steps: 3 includes the 4 of clustering.steps"),
        ("objective.equivariance={style.2: shear}", "style.2: no variable of a continuous code"),
        ("objective.equivariance={digit: shear}", "digit: no variable of a continuous code"),
        ("objective.equivariance={style.0: hue}", "'hue' is refused; use shear, dilation"),
        ("objective.q_step=generator", "objective.equivariance: needs q_step=discriminator"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(run_module: Runner, tiny: Path, override: str, message: str):
    assert message in line_of(run_module("train", tiny, *CLUSTERED, override, status=2))


def test_penalties_are_logged_as_their_mean(run_module: Runner, tiny: Path, tmp_path: Path):
    """In every second step they have twice the weight, so that both runs start with the same mean."""
    options = [tiny, *CLUSTERED, "train.steps=6", "train.log_every=1"]
    for every in (1, 2):
        run_module("train", *options, f"objective.penalty_every={every}", f"run={tmp_path}/{every}")
    each, second = (
        [json.loads(line) for line in (tmp_path / str(n) / "metrics.jsonl").read_text().splitlines()][4:]
        for n in (1, 2)
    )
    for name in ("d/r1", "d/r2"):
        assert second[0][name] == pytest.approx(2 * each[0][name], rel=1e-5)
        assert each[0][name] > 0
        assert second[1][name] == 0
