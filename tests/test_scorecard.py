"""The scorecard's command line: it trains, scores, and continues from what is stored."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from infogan_dist.creation.write import write_shard_set
from infogan_dist.errors import EXIT_STOPPED, ConfigError
from infogan_dist.scorecard import parse_seeds
from tests.conftest import ROOT, Runner, Started, images_source, line_of


@pytest.mark.rig
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


def records_of(out: Path) -> list[dict[str, Any]]:
    paths = sorted(out.with_suffix("").glob("seed_*.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.rig
def test_a_card_covers_stored_seeds_and_scores_them_again_for_new_data(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    """The runs are shorter than `train.log_every`, so that the duration of their training is unknown."""
    out, held_out = tmp_path / "card.json", tmp_path / "held_out"
    write_shard_set(images_source(60, seed=1), held_out, shards=2)
    words = [tiny, "scores.images=50", "scores.names=[recovery]", "train.log_every=10", "--out", out]
    run_module("scorecard", *words, "seeds=0")
    assert json.loads(out.read_text())["wall_time"] == {"training_seconds": None, "per_seed": [None]}

    with_test = [*words, f"data.test={held_out}"]
    run_module("scorecard", *with_test, "seeds=1")
    card = json.loads(out.read_text())
    assert card["seeds"] == [0, 1]
    assert card["scores"]["nmi_test"]["per_seed"][0] is None
    assert None not in card["scores"]["nmi_train"]["per_seed"]

    config_file = tmp_path / "run/seed_0/config.yaml"
    stamp = config_file.stat().st_mtime_ns
    run_module("scorecard", *with_test, "seeds=0")
    assert config_file.stat().st_mtime_ns == stamp  # not trained again
    assert None not in json.loads(out.read_text())["scores"]["nmi_test"]["per_seed"]
    before = records_of(out)

    done = run_module("scorecard", *words, "seeds=0", "train.steps=2", status=2)
    assert "was trained for 3 steps already and has no checkpoint of step 2; set train.steps=3" in done.stderr
    other = tmp_path / "other"
    write_shard_set(images_source(240, seed=1), other, shards=8)
    done = run_module("scorecard", *words, "seeds=2", f"data.shards={other}", status=2)
    assert "contains scores of another setting (training images: " in done.stderr
    assert not (tmp_path / "run/seed_2").exists()
    assert records_of(out) == before


@pytest.mark.rig
def test_a_setting_in_epochs_is_extended(run_module: Runner, tiny: Path, tmp_path: Path):
    out = tmp_path / "card.json"
    words = [
        tiny,
        "seeds=0",
        "scores.images=50",
        "scores.names=[information]",
        "train.steps=null",
        "--out",
        out,
    ]
    for epochs, steps in ((0.25, 2), (0.5, 4)):  # of 240 images in batches of 32
        run_module("scorecard", *words, f"train.epochs={epochs}")
        assert json.loads(out.read_text())["steps"] == steps
    lines = (tmp_path / "run/seed_0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]  # continued, not trained from 0


def test_an_output_that_cannot_be_written_is_refused_before_training(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    (tmp_path / "file").touch()
    done = run_module("scorecard", tiny, "--out", tmp_path / "file" / "card.json", status=2)
    assert "cannot be written" in line_of(done)
    assert not (tmp_path / "run").exists()


def write_scores(path: Path, scores: dict[str, float], samples: int = 100) -> Path:
    """Write a score file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    protocol = {name: {"samples": samples, "interval_95": [0, 1]} for name in scores}
    path.write_text(json.dumps({"scores": scores, "protocol": protocol}))
    return path


def test_scores_are_compared_side_by_side(run_module: Runner, tmp_path: Path):
    first = write_scores(tmp_path / "a" / "scores.json", {"fid": 1.5, "nmi_test": 0.25})
    second = write_scores(tmp_path / "b" / "scores.json", {"fid": 2.5, "a|b": 1.0}, samples=200)
    published = ROOT / "docs" / "results" / "mnist.json"
    done = run_module("scorecard", "compare", first.parent, second, published)
    lines = done.stdout.splitlines()
    assert lines[0] == "| score | a | b | mnist |"
    assert lines[2] == "| fid | 1.5000 | 2.5000 | 8.1039 ± 0.9913 |"
    assert "| a\\|b | - | 1.0000 | - |" in lines
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "warning: fid: samples differs (100; 200; 10,000)" in warnings
    assert not any("interval" in line for line in warnings)

    run_module("scorecard", "compare", first, second, "--out", tmp_path / "new" / "table.csv")
    rows = (tmp_path / "new" / "table.csv").read_text().splitlines()
    assert rows == ["score,a,b", "fid,1.5,2.5", "nmi_test,0.25,-", "a|b,-,1.0"]


def test_a_file_without_scores_cannot_be_compared(run_module: Runner, tmp_path: Path):
    (tmp_path / "x.json").write_text("[]")
    for path, message in (
        (tmp_path / "x.json", "contains no scores"),
        (tmp_path / "y.json", "cannot be read"),
    ):
        assert message in line_of(run_module("scorecard", "compare", path, status=2))


@pytest.mark.rig
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
