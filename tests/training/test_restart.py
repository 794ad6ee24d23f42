"""What a restart must not undo or change, with command lines in real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from infogan_dist.config.load import CONFIG_FILE, read_config
from infogan_dist.errors import TrainingError
from infogan_dist.runtime import checkpoint
from infogan_dist.training import loop
from infogan_dist.training.run import Run
from tests.conftest import Runner, environment, free_port, line_of


def test_a_restart_does_not_undo_on_nonfinite_fail(run_module: Runner, tiny: Path, tmp_path: Path):
    """No step is saved before its flags were read, so that every start fails at the same step."""
    options = [tiny, "optim.discriminator.lr=1e30", "checkpoint.every=1", "train.steps=5"]
    messages = {run_module("train", *options, status=3).stderr.splitlines()[-1] for _ in range(3)}
    saved = [checkpoint.step_of(path) for path in checkpoint.step_folders(tmp_path / "run")]
    (message,) = messages
    failed = int(message.partition("step ")[2].partition(":")[0])
    assert max(saved, default=0) == failed - 1


def test_a_request_to_stop_does_not_hide_a_step_that_is_not_finite(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    """The stop is requested in step 3, and step 4, in which all processes agree on it, is not finite."""
    run_step = Run.step

    def step(self: Run, batch: object):
        if self.state.step == 2:
            self.engine._stop = True
        flags = run_step(self, batch)  # type: ignore[arg-type]
        return flags + 1 if self.state.step == 4 else flags

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(Run, "step", step)
    config = read_config([str(tiny), "train.steps=9", "train.log_every=3"])
    with pytest.raises(TrainingError, match="step 4: the discriminator and generator"):
        loop.train(config)
    assert checkpoint.find(Path(config.run)) is None


def errors_of_two_processes(commands: list[list[str]], folders: list[Path]) -> list[str]:
    """Run two processes of one world, each with its arguments and in its folder; return what they print.

    Both must refuse to train.
    """
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    place |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "infogan_dist.train", *arguments],
            cwd=folder,
            env={**environment(), **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, (arguments, folder) in enumerate(zip(commands, folders, strict=True))
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    return errors


@pytest.mark.rig
def test_processes_with_different_checkpoints_are_refused(tiny: Path, tmp_path: Path, run_module: Runner):
    """As with a relative run folder in two working directories, of which only one contains a checkpoint."""
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    run_module("train", tiny, f"run={homes[0]}/run", "train.steps=3")
    errors = errors_of_two_processes([[str(tiny), "run=run", "train.steps=6"]] * 2, homes)
    assert errors[0].count("error: run: process 1 has another checkpoint than process 0") == 1
    assert "error" not in errors[1]
    assert not (homes[1] / "run" / "checkpoints").exists()


@pytest.mark.rig
def test_processes_with_different_configs_are_refused(tiny: Path, tmp_path: Path):
    commands = [[str(tiny), f"optim.generator.lr={lr}"] for lr in (0.001, 0.002)]
    errors = errors_of_two_processes(commands, [tmp_path, tmp_path])
    assert "process 1 has another config than process 0" in errors[0]


def test_the_launcher_s_precision_is_part_of_the_run(
    run_module: Runner, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run_module("train", tiny, "train.steps=2")
    assert yaml.safe_load((tmp_path / "run" / CONFIG_FILE).read_text())["train"]["precision"] == "bf16"
    run_module("train", tiny, "train.steps=3")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert "train.precision: bf16 -> fp32" in line_of(run_module("train", tiny, "train.steps=4", status=2))
    run_module("train", tiny, "train.steps=4", "train.precision=bf16")


def test_the_launcher_s_compilation_is_part_of_the_run(
    run_module: Runner, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_module("train", tiny, "train.steps=2")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert "train.compile: False -> True" in line_of(run_module("train", tiny, "train.steps=3", status=2))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    assert "use no or inductor" in line_of(run_module("train", tiny, "train.steps=3", status=2))


def test_a_run_that_continues_with_other_threads_reports_that_bits_may_differ(
    run_module: Runner, tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "rounding" not in run_module("train", tiny, "train.steps=2").stderr
    assert "rounding" not in run_module("train", tiny, "train.steps=3").stderr
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    output = run_module("train", tiny, "train.steps=4").stderr
    assert output.count("warning: the run continues on another machine (threads: 2 -> 3)") == 1


def test_a_config_file_may_have_an_equals_sign_in_its_path(tiny: Path, tmp_path: Path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    (folder / "a=b.yaml").write_text(tiny.read_text() + "seed: 77\n")
    assert read_config([str(folder / "a=b.yaml"), "noise=5"]).seed == 77


@pytest.mark.rig
def test_scores_that_an_interruption_has_prevented_are_computed_after_the_restart(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    """As if the run had been killed after the checkpoint of step 4, before its scores were logged."""
    options = [tiny, "train.evaluate_every=2", "scores.names=[information]", "scores.images=20"]
    scores = tmp_path / "run" / "scores.jsonl"
    run_module("train", *options, "train.steps=4")
    undisturbed = scores.read_text()
    assert [json.loads(line)["step"] for line in undisturbed.splitlines()] == [2, 4]
    scores.write_text(undisturbed.splitlines(keepends=True)[0])
    run_module("train", *options, "train.steps=4", processes=2)
    assert [json.loads(line)["step"] for line in scores.read_text().splitlines()] == [2, 4]
    run_module("train", *options, "train.steps=4")
    assert len(scores.read_text().splitlines()) == 2
