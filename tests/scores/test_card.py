"""A scorecard's numbers."""

import statistics

import pytest

from infogan_dist.config.load import read_config
from infogan_dist.errors import ConfigError, DataError
from infogan_dist.scorecard import parse_seeds, training_seconds
from infogan_dist.scores import card


def records(scores: list[dict[str, float]]) -> list[card.Record]:
    about = {"step": 7, "version": "1", "data": {}, "left_out": {"control": "needs x"}}
    config = read_config(["configs/quickstart.yaml"])
    found = []
    for i, values in enumerate(scores):
        config.seed = i
        protocol = {name: {"split": "test"} for name in values}
        found.append(card.record(config, {**about, "scores": values, "protocol": protocol}, 60.0))
    return found


def test_the_worst_is_the_lowest_accuracy_and_the_highest_distance():
    values = [{"accuracy_test_hungarian": a, "fid": f} for a, f in ((0.9, 20.0), (0.7, 30.0), (0.8, 25.0))]
    made = card.card("x", records(values))
    accuracy = made["scores"]["accuracy_test_hungarian"]
    assert made["seeds"] == [0, 1, 2]
    assert accuracy["mean"] == pytest.approx(0.8)
    assert accuracy["std"] == pytest.approx(statistics.stdev([0.9, 0.7, 0.8]))
    assert accuracy["worst"] == 0.7
    assert accuracy["per_seed"] == [0.9, 0.7, 0.8]
    assert made["scores"]["fid"]["worst"] == 30.0
    assert made["wall_time"]["training_seconds"] == 180.0
    page = card.markdown(made)
    assert "| fid | 25.0000 | 5.0000 | 30.0000 | 20.0000 30.0000 25.0000 | split: test |" in page
    assert "Not computed: control, which needs x." in page


def test_one_seed_has_no_spread():
    made = card.card("x", records([{"fid": 3.0}]))
    assert made["scores"]["fid"]["std"] is None
    assert "| fid | 3.0000 |  | 3.0000 |" in card.markdown(made)


def test_where_files_lie_is_nobody_s_business():
    (kept,) = records([{"fid": 3.0}])
    assert not {"run", "data.shards", "tracking.project"} & kept["config"].keys()
    assert "train.batch_size" in kept["config"]


def test_a_record_of_another_setting_is_told_from_this_one_s():
    (kept,) = records([{"fid": 3.0}])
    same = read_config(["configs/quickstart.yaml", "run=elsewhere", "data.workers=3", "seed=4"])
    assert card.differing(kept, same) == []
    other = read_config(
        ["configs/quickstart.yaml", "optim.generator.lr=0.5", "train.steps=9", "scores.images=50"]
    )
    assert {line.partition(":")[0] for line in card.differing(kept, other)} == {
        "optim.generator.lr",
        "train.steps",
        "scores.images",
    }


def test_a_file_that_is_no_record_is_named(tmp_path):
    assert card.load(tmp_path / "none.json") is None
    (tmp_path / "cut.json").write_text('{"scores": {')
    with pytest.raises(DataError, match=r"cut\.json: not a seed's scores"):
        card.load(tmp_path / "cut.json")


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("3", [3]), ("5,1,5", [5, 1]), ("2..2", [2])]
)
def test_seeds_are_a_range_or_a_list(text: str, seeds: list[int]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4..0", "1..", "0-4", "-1"])
def test_other_seeds_are_refused(text: str):
    with pytest.raises(ConfigError, match=r"seeds=0\.\.4"):
        parse_seeds(text)


def test_a_run_s_seconds_add_up_over_its_starts(tmp_path):
    lines = [3.0, 5.0, 2.0, 4.0, 1.0]
    (tmp_path / "timing.jsonl").write_text("".join(f'{{"step": 1, "seconds": {s}}}\n' for s in lines))
    assert training_seconds(tmp_path) == 5.0 + 4.0 + 1.0
