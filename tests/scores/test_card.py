"""The numbers of a scorecard, and the records that it is computed from."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import Effect
from infogan_dist.errors import ConfigError, DataError
from infogan_dist.scores import card
from infogan_dist.scores.page import format_markdown
from tests.conftest import ROOT


def make_records(scores: list[dict[str, float]]) -> list[card.Record]:
    metadata: dict[str, Any] = {"step": 7, "version": "1", "data": {}}
    metadata["lower_is_better"] = ["fid"] if "fid" in scores[0] else []
    config = read_config(["configs/mnist5k.yaml"])
    records = []
    for i, values in enumerate(scores):
        config.seed = i
        protocol = {name: {"split": "test"} for name in values}
        left_out = {"control": "needs x"}
        content = {**metadata, "scores": values, "protocol": protocol, "left_out": left_out}
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
    # Student's t with 2 degrees of freedom: 25 plus or minus 4.3027 * 5 / sqrt(3).
    assert result["scores"]["fid"]["interval_95"] == pytest.approx([12.5793, 37.4207], abs=1e-4)
    page = format_markdown(result)
    assert "| fid | 25.0000 | 12.5793 to 37.4207 | 5.0000 | 30.0000 | 20.0000 30.0000 25.0000 |" in page
    assert "Not computed: control, which needs x." in page


def test_one_seed_has_no_standard_deviation():
    result = card.scorecard("x", make_records([{"fid": 3.0}]))
    assert result["scores"]["fid"]["std"] is None
    assert result["scores"]["fid"]["interval_95"] is None
    assert "| fid | 3.0000 | - | - | 3.0000 | 3.0000 |" in format_markdown(result)


def test_scores_that_a_seed_lacks_are_null_and_shift_no_other_value():
    records = make_records(
        [{"fid": 3.0}, {"accuracy_test": 0.5, "fid": 4.0}, {"accuracy_test": 0.7, "fid": 5.0}]
    )
    records[0]["left_out"]["recovery"] = "needs labels"
    records[1]["data"] = {"test": {"name": "t", "fingerprint": "f"}}
    result = card.scorecard("x", records)
    assert result["scores"]["accuracy_test"]["per_seed"] == [None, 0.5, 0.7]
    assert result["scores"]["accuracy_test"]["mean"] == pytest.approx(0.6)
    assert result["scores"]["fid"]["per_seed"] == [3.0, 4.0, 5.0]
    assert result["left_out"] == {"control": "needs x", "recovery": "needs labels (seeds 0)"}
    assert result["data"] == records[1]["data"]
    page = format_markdown(result)
    assert "| - 0.5000 0.7000 |" in page
    assert "Not computed: recovery, which needs labels (seeds 0)." in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_on": {"name": "a", "fingerprint": "f2"}}, "different training images (a f1, a f2)"),
        ({"data": {"test": {"name": "b", "fingerprint": "f2"}}}, "different test images of the scores"),
        ({"protocol": {"fid": {"features": "net, f2"}}}, "different features (f1, f2)"),
        ({"step": 8}, "different numbers of steps (7, 8)"),
    ],
)
def test_records_of_different_data_are_refused(changes: dict[str, Any], message: str):
    records = make_records([{"fid": 3.0}, {"fid": 3.5}, {"fid": 4.0}])
    for record in records:
        record["trained_on"] = {"name": "a", "fingerprint": "f1"}
        record["data"] = {"test": {"name": "b", "fingerprint": "f1"}}
        record["protocol"] = {"fid": {"features": "network, f1"}}
    card.scorecard("x", records)
    records[2] |= changes
    with pytest.raises(ConfigError, match=r"^scorecard: seeds 0 and 2 have [^\n]*$") as caught:
        card.scorecard("x", records)
    assert message in str(caught.value)


def test_other_versions_and_machines_are_mentioned():
    records = make_records([{"fid": 3.0}, {"fid": 3.5}, {"fid": 4.0}])
    assert card.scorecard("x", records)["mixed"] == {}
    records[1]["version"] = "2"
    records[2]["machine"]["gpus"] = ["H100", "H100"]
    result = card.scorecard("x", records)
    assert result["mixed"] == {
        "version": {"1": [0, 2], "2": [1]},
        "machine.gpus": {"none": [0, 1], "H100, H100": [2]},
    }
    assert "Mixed records: version is 1 (seeds 0, 2), 2 (seeds 1)." in format_markdown(result)


def test_unknown_training_times_are_null():
    records = make_records([{"fid": 3.0}, {"fid": 3.5}])
    records[0]["training_seconds"] = None
    result = card.scorecard("x", records)
    assert result["wall_time"] == {"training_seconds": 60.0, "per_seed": [None, 60.0]}
    records[1]["training_seconds"] = None
    result = card.scorecard("x", records)
    assert result["wall_time"]["training_seconds"] is None
    assert "7 steps each, trained on" in format_markdown(result)


def test_a_page_states_a_common_protocol_once_and_the_main_scores_first():
    names = ["nmi_test", "accuracy_test_hungarian", "fid", "kid", "bound_digit", "control_slant_and_width"]
    (record,) = make_records([dict.fromkeys(names, 0.5)])
    shared = {"split": "test", "samples": 1000, "batch_norm": "running statistics"}
    record["protocol"] = {
        "nmi_test": {**shared, "normaliser": "mean"},
        "accuracy_test_hungarian": {**shared, "matching": "hungarian | x", "interval_95": [0.4, 0.6]},
        "fid": {"samples": 1000, "interval_95": [0.4, 0.6], "interval": "bootstrap"},
        "kid": {"samples": 1000, "deviation": 0.1},
        "bound_digit": {"samples": 500},
        "control_slant_and_width": {"statistic": "mean of |rho|", "rho": {"all": 0.1}},
    }
    page = format_markdown(card.scorecard("x", [record]))
    assert page.count("split: test; samples: 1,000; batch norm: running statistics.") == 1
    main, rest = page.split("## All scores")
    rows = [line.split(" | ")[0].strip("| ") for line in main.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["accuracy_test_hungarian", "bound_digit", "fid", "kid", "control_slant_and_width"]
    headings = [line for line in rest.splitlines() if line.startswith("### ")]
    assert headings == ["### nmi, accuracy (test)", "### fid, kid", "### bound", "### control"]
    assert "matching: hungarian \\| x |" in page
    assert "bootstrap" not in page
    # No cell contains a separator that is not escaped.
    for line in page.splitlines():
        if line.startswith("| ") and "---" not in line:
            assert re.sub(r"\\\|", "", line).count("|") in (7, 8)


def test_the_command_line_is_not_recorded_because_it_has_places_of_files():
    config = read_config(["configs/mnist5k.yaml"])
    assert "command" not in card.seed_record(config, {"scores": {}, "command": "evaluate runs/x"}, 1.0)


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
    same = read_config(["configs/mnist5k.yaml", "run=elsewhere", "data.workers=3", "seed=4"])
    assert card.config_differences(record, same, effects) == []
    other = read_config(
        ["configs/mnist5k.yaml", "optim.generator.lr=0.5", "train.steps=9", "scores.images=50"]
    )
    assert {line.partition(":")[0] for line in card.config_differences(record, other, effects)} == {
        "optim.generator.lr",
        "train.steps",
        "scores.images",
    }


def test_a_key_that_a_record_of_an_earlier_version_lacks_has_its_default():
    (record,) = make_records([{"fid": 3.0}])
    del record["config"]["objective.r1"]
    config = read_config(["configs/mnist5k.yaml"])
    assert card.config_differences(record, config, {Effect.TRAINING}) == []
    config.objective.r1 = 0.5
    assert card.config_differences(record, config, {Effect.TRAINING}) == ["objective.r1: 0.0 -> 0.5"]


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
    assert format_markdown(result) == (folder / f"{name}.md").read_text()
    assert "lower_is_better" in json.loads((folder / name / "seed_0.json").read_text())
