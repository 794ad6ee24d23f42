"""The table of scores: names, directions, scores.json, and the kinds of codes that are scored."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infogan_dist.config import schema
from infogan_dist.errors import DataError
from infogan_dist.model.codes import CODES, CategoricalCode
from infogan_dist.scores import evaluation, interventions, representation
from infogan_dist.scores.evaluation import Scores, evaluate, write_scores
from infogan_dist.scores.score import Score, ScoreUnavailableError
from infogan_dist.scores.scored_model import ScoredModel
from tests.scores.conftest import write_factor_set


def test_each_score_of_the_schema_has_a_function():
    assert tuple(evaluation.SCORES) == schema.SCORES


def test_scores_json_lists_the_scores_of_which_lower_is_better(tmp_path: Path):
    scores = [Score("recall", 0.5, {"samples": 3}), Score("fid", 2.0, higher_is_better=False)]
    write_scores(
        tmp_path / "new" / "scores.json", Scores(scores, left_out={"control": "needs x"}), {"step": 7}
    )
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == {
        "step": 7,
        "scores": {"recall": 0.5, "fid": 2.0},
        "lower_is_better": ["fid"],
        "protocol": {"recall": {"samples": 3}, "fid": {}},
        "left_out": {"control": "needs x"},
    }


def test_distances_are_the_scores_of_which_lower_is_better(
    make_model, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["scores.images=100", "scores.limit=100", "networks.discriminator=[{kind: dense, out: 4}]"]
    result = evaluate(make_model(*options, train=digits, test=digits))
    assert result.lower_is_better() == ["fid", "kid", "fid_of_test_images", "fid_within"]
    assert set(result.left_out) == {"disentanglement"}


def test_a_requested_score_that_is_unavailable_is_an_error(make_model):
    assert set(evaluate(make_model("scores.images=50")).left_out) == {"fidelity", "disentanglement"}
    model = make_model("scores.images=50", "scores.names=[information,disentanglement]")
    with pytest.raises(
        ScoreUnavailableError, match=r"^scores\.names: disentanglement needs .* 0; provide it, or"
    ):
        evaluate(model)


def test_an_error_of_one_score_does_not_discard_the_others(
    make_model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(model: ScoredModel) -> Iterator[Score]:
        yield Score("half", 1.0)
        raise ZeroDivisionError("division\nby zero")

    def unreadable(model: ScoredModel) -> Iterator[Score]:
        raise DataError("shard 3: missing; restore it")
        yield

    monkeypatch.setitem(evaluation.SCORES, "recovery", broken)
    monkeypatch.setitem(evaluation.SCORES, "control", unreadable)
    result = evaluate(make_model("scores.images=50", "scores.names=[recovery,information,control]"))
    names = {name.partition("_")[0] for name in result.values()}
    assert names == {"bound", "gain"}
    assert result.left_out == {
        "recovery": "fails (ZeroDivisionError: division by zero)",
        "control": "fails (shard 3: missing; restore it)",
    }
    assert [record.levelname for record in caplog.records if record.name.startswith("infogan_dist")] == [
        "WARNING",
        "WARNING",
    ]
    assert "recovery is not computed: ZeroDivisionError: division by zero" in caplog.text


def test_protocols_state_the_sample_of_real_images(make_model):
    result = evaluate(
        make_model("scores.images=50", "scores.limit=100", "scores.names=[recovery,information]")
    )
    protocols = {score.name: score.protocol for score in result.scores}
    assert protocols["accuracy_train_hungarian"]["sampling"] == "100 random of 240 images"
    assert "sampling" not in protocols["bound_digit"]


class RenamedCode(CategoricalCode):
    """A categorical code of another class."""


def test_a_subclass_of_a_categorical_code_is_scored_like_its_base(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (representation, interventions):  # for speed
        monkeypatch.setattr(module, "TRAIN_SIZE", 200)
        monkeypatch.setattr(module, "TEST_SIZE", 100)
    folder = write_factor_set(tmp_path / "factors")
    results = []
    for code_class in (CategoricalCode, RenamedCode):
        monkeypatch.setitem(CODES, "categorical", code_class)
        model = make_model("scores.images=100", "codes.digit.count=2", train=folder, test=folder)
        assert type(model.spec.codes["digit"]) is code_class
        results.append(evaluate(model))
    base, subclass = results
    assert subclass.scores == base.scores
    assert subclass.left_out.keys() == base.left_out.keys() == {"fidelity"}
    assert all(np.array_equal(subclass.pictures[name], base.pictures[name]) for name in base.pictures)
    protocols = {score.name: score.protocol for score in subclass.scores}
    assert "digit.1/accuracy_test_hungarian" in protocols
    assert "digit.0=3" in protocols["control_slant_style.0"]["rho"]
