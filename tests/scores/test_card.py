"""The numbers of a scorecard, and the records that it is computed from."""

import json
import statistics
from pathlib import Path

import pytest

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import Effect
from infogan_dist.errors import DataError
from infogan_dist.scores import card
from tests.conftest import ROOT


def make_records(scores: list[dict[str, float]]) -> list[card.Record]:
    metadata = {"step": 7, "version": "1", "data": {}, "left_out": {"control": "needs x"}}
    metadata["lower_is_better"] = ["fid"] if "fid" in scores[0] else []
    config = read_config(["configs/quickstart.yaml"])
    records = []
    for i, values in enumerate(scores):
        config.seed = i
        protocol = {name: {"split": "test"} for name in values}
        content = {**metadata, "scores": values, "protocol": protocol}
        records.append(card.seed_record(config, content, 60.0))
    return records


def test_the_worst_value_is_the_lowest_accuracy_and_the_highest_distance():
    values = [{"accuracy_test_hungarian": a, "fid": f} for a, f in ((0.9, 20.0), (0.7, 30.0), (0.8, 25.0))]
    result = card.scorecard("x", make_records(values))
    accuracy = result["scores"]["accuracy_test_hungarian"]
    assert result["seeds"] == [0, 1, 2]
    assert accuracy["mean"] == pytest.approx(0.8)
    assert accuracy["std"] == pytest.approx(statistics.stdev([0.9, 0.7, 0.8]))
    assert accuracy["worst"] == 0.7
    assert accuracy["per_seed"] == [0.9, 0.7, 0.8]
    assert result["scores"]["fid"]["worst"] == 30.0
    assert result["lower_is_better"] == ["fid"]
    assert result["wall_time"]["training_seconds"] == 180.0
    page = card.format_markdown(result)
    assert "| fid | 25.0000 | 5.0000 | 30.0000 | 20.0000 30.0000 25.0000 | split: test |" in page
    assert "Not computed: control, which needs x." in page


def test_one_seed_has_no_standard_deviation():
    result = card.scorecard("x", make_records([{"fid": 3.0}]))
    assert result["scores"]["fid"]["std"] is None
    assert "| fid | 3.0000 |  | 3.0000 |" in card.format_markdown(result)


def test_the_direction_is_that_of_the_record_whatever_the_name():
    records = make_records([{"kidney": 1.0, "error": 1.0}, {"kidney": 2.0, "error": 2.0}])
    for record in records:
        record["lower_is_better"] = ["error"]
    scores = card.scorecard("x", records)["scores"]
    assert (scores["kidney"]["worst"], scores["error"]["worst"]) == (1.0, 2.0)


def test_a_record_without_directions_can_be_read(tmp_path: Path):
    scores = {
        "accuracy_test_hungarian": 0.5,
        "fid": 3.0,
        "kid": 1.0,
        "fid_of_test_images": 0.5,
        "recall": 1.0,
    }
    (record,) = make_records([scores])
    del record["lower_is_better"]
    (tmp_path / "seed_0.json").write_text(json.dumps(record))
    stored = card.read_record(tmp_path / "seed_0.json")
    assert stored is not None
    assert stored["lower_is_better"] == ["fid", "kid", "fid_of_test_images"]
    assert stored["scores"] == scores


def test_places_of_files_are_not_recorded():
    (record,) = make_records([{"fid": 3.0}])
    assert not {"run", "data.shards", "tracking.project"} & record["config"].keys()
    assert "train.batch_size" in record["config"]


def test_a_record_of_another_setting_is_recognised():
    (record,) = make_records([{"fid": 3.0}])
    effects = {Effect.TRAINING, Effect.LENGTH, Effect.SCORES}
    same = read_config(["configs/quickstart.yaml", "run=elsewhere", "data.workers=3", "seed=4"])
    assert card.config_differences(record, same, effects) == []
    other = read_config(
        ["configs/quickstart.yaml", "optim.generator.lr=0.5", "train.steps=9", "scores.images=50"]
    )
    assert {line.partition(":")[0] for line in card.config_differences(record, other, effects)} == {
        "optim.generator.lr",
        "train.steps",
        "scores.images",
    }


def test_a_file_that_is_not_a_record_is_named(tmp_path: Path):
    assert card.read_record(tmp_path / "none.json") is None
    (tmp_path / "cut.json").write_text('{"scores": {')
    with pytest.raises(DataError, match=r"cut\.json: not a seed's scores"):
        card.read_record(tmp_path / "cut.json")


@pytest.mark.parametrize("name", ["mnist", "mnist_tutorial"])
def test_published_scorecards_are_those_of_their_records(name: str):
    folder = ROOT / "docs" / "results"
    result = json.loads((folder / f"{name}.json").read_text())
    records = [card.read_record(folder / name / f"seed_{seed}.json") for seed in result["seeds"]]
    assert card.scorecard(name, [record for record in records if record is not None]) == result
    assert card.format_markdown(result) == (folder / f"{name}.md").read_text()
    assert "lower_is_better" in json.loads((folder / name / "seed_0.json").read_text())
