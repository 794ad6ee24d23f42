"""Scores that are named and cannot be computed are refused before a run starts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from infogan_dist.config import schema
from infogan_dist.config.load import read_config
from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data.shards import Manifest, load_manifest
from infogan_dist.errors import ConfigError
from infogan_dist.scores.evaluation import evaluate
from infogan_dist.scores.requirements import REQUIREMENTS, check_scores
from infogan_dist.scores.score import ScoreUnavailableError
from tests.conftest import TINY, images_source
from tests.scores.conftest import write_factor_set


@pytest.fixture
def check(tmp_path: Path, small_set: Path) -> Callable[..., None]:
    """Return a function that checks the scores of the small config with overrides."""
    (tmp_path / "checked.yaml").write_text(TINY)

    def run(*overrides: str, train: Manifest | None = None, test: Manifest | None = None) -> None:
        config = read_config([str(tmp_path / "checked.yaml"), f"data.shards={small_set}", *overrides])
        check_scores(config, train or load_manifest(str(small_set)), test)

    return run


def test_each_score_of_the_schema_has_its_requirements():
    assert REQUIREMENTS.keys() <= {*schema.SCORES}  # a score may have no requirement


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scores.names=[recovery]", "codes.digit=null"], "recovery needs a categorical code"),
        (["scores.names=[control]", "codes.style=null"], "control needs a continuous code"),
        (["scores.names=[fidelity]"], "fidelity needs scores.features=FILE"),
        (["scores.names=[information,disentanglement]"], "disentanglement needs at least two known factors"),
        (["scores.features=nowhere.pt"], "scores.features=nowhere.pt: no such file"),
        (["scores.features=nowhere.pt", "scores.names=[fidelity]"], "no such file"),
    ],
)
def test_what_cannot_be_computed_is_refused(check: Callable[..., None], overrides: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        check(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_refusal_is_that_of_the_score_itself(check: Callable[..., None], make_model):
    for overrides in (
        ["scores.names=[recovery]", "codes.digit=null"],
        ["scores.names=[control]", "codes.style=null"],
        ["scores.names=[fidelity]"],
        ["scores.names=[disentanglement]"],
    ):
        with pytest.raises(ScoreUnavailableError) as early:
            check(*overrides)
        with pytest.raises(ScoreUnavailableError) as late:
            evaluate(make_model("scores.images=50", *overrides))
        assert str(early.value) == str(late.value)


def test_too_few_images_are_refused(check: Callable[..., None], digits: Path):
    manifest = load_manifest(str(digits))
    for option in ("scores.images=3", "scores.limit=3"):
        with pytest.raises(ScoreUnavailableError, match="needs 4 generated and real images"):
            check("scores.names=[fidelity]", option, train=manifest)
        check("scores.names=[fidelity]", option.replace("3", "4"), train=manifest)


def test_labels_are_required_by_recovery_and_read_where_the_manifest_does_not_name_them(
    check: Callable[..., None], tmp_path: Path, small_set: Path
):
    plain = images_source(20)
    unlabelled = Source("plain", 20, [], lambda i: (plain.read(i)[0], -1))
    manifest = write_shard_set(unlabelled, tmp_path / "plain", shards=2)
    for arguments in ({"train": manifest}, {"test": manifest}):
        with pytest.raises(ScoreUnavailableError, match="recovery needs labels"):
            check("scores.names=[recovery]", **arguments)
    labelled = replace(load_manifest(str(small_set)), label_names=[])
    check("scores.names=[recovery]", train=labelled)


def test_held_out_images_of_another_shape_are_refused(check: Callable[..., None], tmp_path: Path):
    other = write_shard_set(images_source(16, (1, 4, 4)), tmp_path / "other", shards=1)
    with pytest.raises(ConfigError, match=r"data\.test: images of \[1, 4, 4\]"):
        check(test=other)


def test_what_is_not_named_is_optional(check: Callable[..., None], tmp_path: Path):
    check()
    check("codes.digit=null")
    factors = load_manifest(str(write_factor_set(tmp_path / "factors")))
    check("scores.names=[disentanglement,recovery,information,control]", train=factors, test=factors)
