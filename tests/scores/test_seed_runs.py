"""When a seed is trained and scored, and when its stored scores are used."""

import json
from pathlib import Path

import pytest

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import Config
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data.shards import Manifest
from infogan_dist.errors import EXIT_STOPPED, ConfigError
from infogan_dist.scores.card import Record, seed_record
from infogan_dist.scores.command_runner import CommandFailedError, CommandRunner
from infogan_dist.scores.seed_runs import (
    ScoredData,
    is_up_to_date,
    lacks_scores,
    score_seed,
    stored_records,
    training_seconds,
)
from tests.conftest import ROOT, images_source

PRESET = "configs/mnist5k.yaml"


class FakeRunner(CommandRunner):
    """Writes what the commands would write, and records the calls."""

    def __init__(self, run: Path):
        super().__init__()
        self.run_folder = run
        self.calls: list[tuple[str, ...]] = []

    def run(self, command: str, *arguments: str) -> None:
        self.calls.append((command, *arguments))
        self.run_folder.mkdir(exist_ok=True)
        (self.run_folder / "timing.jsonl").write_text('{"step": 1, "seconds": 2.0}\n')
        (self.run_folder / "scores.json").write_text('{"scores": {"fid": 1.0}, "lower_is_better": ["fid"]}')


def config_with(tmp_path: Path, *overrides: str) -> Config:
    return read_config([PRESET, *overrides, f"run={tmp_path}/run"])


def scored_commands(tmp_path: Path, *overrides: str) -> list[str]:
    """Score a seed; return the names of the commands that were run for it."""
    runner = FakeRunner(tmp_path / "run")
    arguments = [PRESET, *overrides]
    record = score_seed(runner, config_with(tmp_path, *overrides), arguments, tmp_path / "seed_0.json")
    assert record["scores"] == {"fid": 1.0}
    assert json.loads((tmp_path / "seed_0.json").read_text())["config"].keys() == record["config"].keys()
    return [call[0] for call in runner.calls]


def test_stored_scores_are_used_and_a_greater_length_is_trained(tmp_path: Path):
    assert scored_commands(tmp_path, "train.steps=9") == ["train", "evaluate"]
    assert scored_commands(tmp_path, "train.steps=9", "data.workers=0") == []
    assert scored_commands(tmp_path, "train.steps=12") == ["train", "evaluate"]
    assert scored_commands(tmp_path, "train.steps=12") == []


def test_a_setting_in_epochs_can_be_extended(tmp_path: Path):
    epochs = ["train.steps=null", "train.epochs=2"]
    assert scored_commands(tmp_path, *epochs) == ["train", "evaluate"]
    assert scored_commands(tmp_path, *epochs) == []
    assert scored_commands(tmp_path, "train.steps=null", "train.epochs=3.5") == ["train", "evaluate"]
    assert scored_commands(tmp_path, "train.steps=900") == ["train", "evaluate"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.generator.lr=0.5", "optim.generator.lr: 0.001 -> 0.5"),
        ("data.on_error=skip", "data.on_error: fail -> skip"),
        ("scores.images=50", "scores.images: 10000 -> 50"),
    ],
)
def test_scores_of_another_setting_are_refused(tmp_path: Path, override: str, message: str):
    path = tmp_path / "seed_0.json"
    scored_commands(tmp_path, "train.steps=9")
    before = path.read_bytes()
    # A difference in length does not hide another one.
    for length in ("train.steps=9", "train.steps=12"):
        runner = FakeRunner(tmp_path / "run")
        with pytest.raises(ConfigError, match=r"seed_0\.json: .*; choose another --out") as caught:
            score_seed(runner, config_with(tmp_path, length, override), [PRESET, length, override], path)
        assert message in str(caught.value)
        assert "train.steps" not in str(caught.value)
        assert runner.calls == []
    assert path.read_bytes() == before


def test_only_data_and_score_keys_are_passed_to_evaluate(tmp_path: Path):
    runner = FakeRunner(tmp_path / "run")
    arguments = [PRESET, "train.steps=9", "data.test=shards/x", "scores.images=50"]
    config = read_config([*arguments, "seed=3", f"run={tmp_path}/run"])
    score_seed(runner, config, arguments, tmp_path / "seed_3.json")
    assert runner.calls == [
        ("train", *arguments, "seed=3", f"run={tmp_path}/run"),
        ("evaluate", f"{tmp_path}/run", "data.test=shards/x", "scores.images=50"),
    ]


def test_a_published_record_is_that_of_its_preset():
    stored = json.loads((ROOT / "docs/results/mnist/seed_0.json").read_text())
    arguments = ["configs/mnist.yaml", "checkpoint.every=100", "scores.limit=10000"]
    path = Path("seed_0.json")
    assert is_up_to_date(stored, read_config([*arguments, "train.steps=1500"]), path)
    assert not is_up_to_date(stored, read_config([*arguments, "train.steps=1501"]), path)


def test_the_seconds_of_a_run_are_summed_over_its_starts(tmp_path: Path):
    lines = [3.0, 5.0, 2.0, 4.0, 1.0]
    (tmp_path / "timing.jsonl").write_text("".join(f'{{"step": 1, "seconds": {s}}}\n' for s in lines))
    assert training_seconds(tmp_path) == 5.0 + 4.0 + 1.0


def test_a_run_that_logged_nothing_has_no_known_duration(tmp_path: Path):
    assert training_seconds(tmp_path) is None


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_shard_set(images_source(20), tmp_path / "shards", shards=1)


@pytest.fixture
def other_manifest(tmp_path: Path) -> Manifest:
    return write_shard_set(images_source(20, seed=1), tmp_path / "other", shards=1)


def record_of(config: Config, manifest: Manifest, **content: object) -> Record:
    """Return a record of 9 steps on a shard set."""
    data = {"name": manifest.name, "images": 20, "fingerprint": manifest.fingerprint()}
    scores = {"scores": {"fid": 1.0}, "lower_is_better": ["fid"], "step": 9, "left_out": {}}
    return seed_record(config, {**scores, "trained_on": data, "data": {"train": data}, **content}, 1.0)


def test_a_record_of_other_data_is_another_setting(
    tmp_path: Path, manifest: Manifest, other_manifest: Manifest
):
    config, path = config_with(tmp_path, "train.steps=9"), Path("seed_0.json")
    record = record_of(config, manifest, protocol={"fid": {"features": "net, 0123456789ab"}})
    assert is_up_to_date(record, config, path, ScoredData(manifest, other_manifest, "0123456789abcdef"))
    test = {"name": "t", "images": 20, "fingerprint": manifest.fingerprint()}
    tested = {**record, "data": {**record["data"], "test": test}}
    for stored, data, message in (
        (record, ScoredData(other_manifest, None, None), "training images: "),
        (record, ScoredData(manifest, None, "fedcba"), "scores.features: 0123456789ab -> fedcba"),
        (tested, ScoredData(manifest, other_manifest, None), "data.test: "),
    ):
        with pytest.raises(ConfigError, match=r"^seed_0\.json: contains scores of another setting") as caught:
            is_up_to_date(stored, config, path, data)
        assert message in str(caught.value)
    assert is_up_to_date(tested, config, path, ScoredData(manifest, None, None))


def test_scores_that_can_be_computed_by_now_are_missing(
    tmp_path: Path, manifest: Manifest, other_manifest: Manifest
):
    config = config_with(tmp_path, "train.steps=9")
    record, data = record_of(config, manifest), ScoredData(manifest, None, None)
    assert not lacks_scores(record, config, data)
    assert lacks_scores(record, config, ScoredData(manifest, other_manifest, None))
    assert lacks_scores({**record, "step": 12}, config, data)
    without_network = {**record, "left_out": {"fidelity": "needs scores.features=FILE"}}
    assert not lacks_scores(without_network, config, data)
    assert lacks_scores(without_network, config_with(tmp_path, "scores.features=net.pt"), data)
    assert lacks_scores({**record, "left_out": {"fidelity": "fails (RuntimeError: x)"}}, config, data)


def test_a_card_covers_all_stored_records_of_the_setting(
    tmp_path: Path, manifest: Manifest, other_manifest: Manifest
):
    config, data = config_with(tmp_path, "train.steps=9"), ScoredData(manifest, None, None)
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "seed_notes.json").write_text("{}")

    def store(seed: int, record: Record) -> None:
        (folder / f"seed_{seed}.json").write_text(json.dumps({**record, "seed": seed}))

    for seed in (10, 2):
        store(seed, record_of(config, manifest))
    store(4, record_of(config_with(tmp_path, "train.steps=12"), manifest, step=12))
    store(5, record_of(config, manifest, step=12))  # of a run that had been trained for longer
    assert [record["seed"] for record in stored_records(folder, config, data)] == [2, 10]
    store(3, record_of(config, other_manifest))
    with pytest.raises(ConfigError, match=r"seed_3\.json: contains scores of another setting"):
        stored_records(folder, config, data)


def test_no_command_is_started_after_a_request_to_stop(tmp_path: Path):
    runner = CommandRunner()
    runner.is_stopped = True
    with pytest.raises(CommandFailedError) as caught:
        runner.run("train", "configs/mnist5k.yaml", f"run={tmp_path}/run")
    assert caught.value.status == EXIT_STOPPED
    assert not (tmp_path / "run").exists()
