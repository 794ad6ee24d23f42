"""The scorecard's command line: it trains, scores, and continues from what is stored."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infogan_dist.errors import EXIT_STOPPED, ConfigError
from infogan_dist.scorecard import parse_seeds
from tests.conftest import Runner, Started, line_of


def test_a_scorecard_trains_scores_and_uses_stored_scores(run_module: Runner, tiny: Path, tmp_path: Path):
    out = tmp_path / "results" / "tiny.json"
    words = [tiny, "seeds=0..1", "scores.images=50", "--out", out]
    done = run_module("scorecard", *words)
    assert "seed 1 (2 of 2)" in done.stderr.splitlines()
    card = json.loads(out.read_text())
    records = [json.loads((tmp_path / f"results/tiny/seed_{i}.json").read_text()) for i in (0, 1)]
    assert card["seeds"] == [0, 1]
    assert card["lower_is_better"] == records[0]["lower_is_better"] == []  # fidelity needs digits
    for name, score in card["scores"].items():
        values = [record["scores"][name] for record in records]
        assert score["per_seed"] == values
        assert min(values) <= score["mean"] <= max(values)
    assert card["scores"]["bound_digit"]["std"] > 0  # the seeds differ
    assert out.with_suffix(".md").read_text().startswith("# tiny\n")
    assert str(tmp_path) not in out.read_text()
    stamps = [(tmp_path / f"run/seed_{i}/config.yaml").stat().st_mtime_ns for i in (0, 1)]

    (tmp_path / "results/tiny/seed_1.json").unlink()
    run_module("scorecard", *words)
    assert json.loads(out.read_text())["scores"] == card["scores"]
    now = [(tmp_path / f"run/seed_{i}/config.yaml").stat().st_mtime_ns for i in (0, 1)]
    assert now[0] == stamps[0]  # seed 0 was not trained again
    assert now[1] > stamps[1]

    longer = [*words, "seeds=0", "train.steps=5"]
    run_module("scorecard", *longer)
    assert json.loads(out.read_text())["steps"] == 5
    assert (tmp_path / "run/seed_0/checkpoints/step_00000003").exists()  # the run was continued from there

    done = run_module("scorecard", *longer, "optim.generator.lr=0.1", status=2)
    assert "optim.generator.lr: 0.001 -> 0.1" in done.stderr


def test_a_stopped_scorecard_continues(tiny: Path, tmp_path: Path, run_module: Runner):
    words = [tiny, "seeds=0", "scores.names=[information]", "scores.images=50", "train.log_every=10"]
    started = Started(tmp_path, "scorecard", *words, "train.steps=1000000")
    metrics = tmp_path / "run/seed_0/metrics.jsonl"
    deadline = time.monotonic() + 100
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send(signal.SIGUSR1)
    assert started.wait().status == EXIT_STOPPED
    (folder,) = (tmp_path / "run/seed_0/checkpoints").iterdir()
    end = int(folder.name.removeprefix("step_")) + 10
    done = run_module("scorecard", *words, f"train.steps={end}", "--quiet")
    assert json.loads((tmp_path / "run/scorecard.json").read_text())["steps"] == end
    assert done.stderr == ""
    assert "# scorecard" in done.stdout


def test_a_mistake_that_a_command_reports_ends_the_scorecard(run_module: Runner, tiny: Path, tmp_path: Path):
    done = run_module("scorecard", tiny, "seeds=0", f"data.shards={tmp_path}/none", status=2)
    assert "no shard set there" in done.stderr
    assert "seeds=0..4" in line_of(run_module("scorecard", tiny, "seeds=x", status=2))


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("3", [3]), ("5,1,5", [5, 1]), ("2..2", [2])]
)
def test_seeds_are_a_range_or_a_list(text: str, seeds: list[int]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4..0", "1..", "0-4", "-1"])
def test_other_seeds_are_refused(text: str):
    with pytest.raises(ConfigError, match=r"seeds=0\.\.4"):
        parse_seeds(text)


HEAVY = ("torch", "scipy", "sklearn", "wandb")
CHECK = f"""
import sys
from infogan_dist.scorecard import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not any(name in sys.modules for name in {HEAVY}), "imported too early"
    sys.exit(end.code)
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["configs/quickstart.yaml", "seeds=x"], 2),
        (["configs/quickstart.yaml", "train.stepz=3", "--out", "x.json"], 2),
        (["configs/quickstart.yaml", "--out", "x.txt"], 2),
    ],
)
def test_help_and_mistakes_are_answered_without_importing_torch(words: list[str], status: int):
    done = subprocess.run([sys.executable, "-c", CHECK, *words], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "imported too early" not in done.stderr
