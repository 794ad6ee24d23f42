"""The scorecard's command line: it trains, scores, and goes on from what is there."""

import json
import signal
import time
from pathlib import Path

from infogan_dist.errors import EXIT_STOPPED
from tests.conftest import Runner, Started, line_of


def test_a_scorecard_trains_scores_and_takes_over_what_is_there(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    out = tmp_path / "results" / "tiny.json"
    words = [tiny, "seeds=0..1", "scores.images=50", "--out", out]
    run_module("scorecard", *words)
    made = json.loads(out.read_text())
    each = [json.loads((tmp_path / f"results/tiny/seed_{i}.json").read_text()) for i in (0, 1)]
    assert made["seeds"] == [0, 1]
    for name, of in made["scores"].items():
        values = [record["scores"][name] for record in each]
        assert of["per_seed"] == values
        assert min(values) <= of["mean"] <= max(values)
    assert made["scores"]["bound_digit"]["std"] > 0  # the seeds are two
    assert out.with_suffix(".md").read_text().startswith("# tiny\n")
    assert str(tmp_path) not in out.read_text()
    stamps = [(tmp_path / f"run/seed_{i}/config.yaml").stat().st_mtime_ns for i in (0, 1)]

    (tmp_path / "results/tiny/seed_1.json").unlink()
    run_module("scorecard", *words)
    assert json.loads(out.read_text())["scores"] == made["scores"]
    now = [(tmp_path / f"run/seed_{i}/config.yaml").stat().st_mtime_ns for i in (0, 1)]
    assert now[0] == stamps[0]  # seed 0 was not touched
    assert now[1] > stamps[1]

    longer = [*words, "seeds=0", "train.steps=5"]
    run_module("scorecard", *longer)
    assert json.loads(out.read_text())["steps"] == 5
    assert (tmp_path / "run/seed_0/checkpoints/step_00000003").exists()  # it went on from there

    done = run_module("scorecard", *longer, "optim.generator.lr=0.1", status=2)
    assert "optim.generator.lr: 0.001 -> 0.1" in done.stderr


def test_a_scorecard_that_is_stopped_goes_on(tiny: Path, tmp_path: Path, run_module: Runner):
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
    run_module("scorecard", *words, f"train.steps={end}")
    assert json.loads((tmp_path / "run/scorecard.json").read_text())["steps"] == end


def test_a_child_s_refusal_is_the_scorecard_s(run_module: Runner, tiny: Path, tmp_path: Path):
    done = run_module("scorecard", tiny, "seeds=0", f"data.shards={tmp_path}/none", status=2)
    assert "no shard set there" in done.stderr
    assert "seeds=0..4" in line_of(run_module("scorecard", tiny, "seeds=x", status=2))
