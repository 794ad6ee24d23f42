"""Configs: how files and overrides are merged, and the message for each mistake."""

import dataclasses
import os
from pathlib import Path

import pytest

from infogan_dist.config.codes import BernoulliConfig, CategoricalConfig, ContinuousConfig
from infogan_dist.config.fields import Effect
from infogan_dist.config.help import help_text
from infogan_dist.config.load import (
    differences,
    flatten,
    load_config,
    presets,
    read_config,
    resume_conflicts,
    save_config,
)
from infogan_dist.config.schema import Config
from infogan_dist.errors import ConfigError

QUICK = "configs/mnist5k.yaml"


def test_later_files_win_over_earlier_and_overrides_over_files(tmp_path: Path):
    extra = tmp_path / "extra.yaml"
    extra.write_text("seed: 7\ntrain: {steps: 11}\ncodes: {style: null, coin: {kind: bernoulli}}\n")
    config = read_config([QUICK, str(extra), "train.steps=12", "codes.digit.size=20"])
    assert (config.seed, config.train.steps, config.codes["digit"].size) == (7, 12, 20)  # type: ignore[union-attr]
    assert list(config.codes) == ["digit", "coin"]
    assert config.noise == 62


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=None", "train.steps", None),
        ("train.epochs=2.5", "train.epochs", 2.5),
        ("train.compile=true", "train.compile", True),
        ("tracking.trackers=[wandb,tensorboard]", "tracking.trackers", ["wandb", "tensorboard"]),
        ("tracking.trackers=[]", "tracking.trackers", []),
        ("optim.generator.lr=1e-4", "optim.generator.lr", 1e-4),
        ("codes.style.sigma=0.5", "codes.style.sigma", 0.5),
        ("tracking.name=a=b", "tracking.name", "a=b"),
        ("tracking.name=12:30:00", "tracking.name", "12:30:00"),
        ("tracking.group=007", "tracking.group", "007"),
        ("tracking.notes=fix #3", "tracking.notes", "fix #3"),
        ("tracking.notes=lr: 1e-3", "tracking.notes", "lr: 1e-3"),
        ("tracking.notes=[a", "tracking.notes", "[a"),
        ("tracking.notes=null", "tracking.notes", None),
        ("tracking.project=null", "tracking.project", "null"),
        ("data.test=${oc.env:HOME}/x", "data.test", f"{Path.home()}/x"),
        ("run=~/runs/x", "run", f"{Path.home()}/runs/x"),
        ("train.init_from=~/runs/x", "train.init_from", f"{Path.home()}/runs/x"),
        ("checkpoint.every=2e4", "checkpoint.every", 20000),
        ("checkpoint.every=1.5E+3", "checkpoint.every", 1500),
        ("--seed=3", "seed", 3),
        ("codes={digit: {kind: categorical, size: 7}}", "codes.digit.size", 7),
    ],
)
def test_overrides_are_read_as_yaml(override: str, key: str, value: object):
    other = (
        "train.epochs=1"
        if key == "train.steps"
        else "train.steps=null"
        if key == "train.epochs"
        else "seed=0"
    )
    words = [QUICK, other, override]
    assert flatten(read_config(words))[key] == value


MISTAKES = [
    ("trian.steps=3", "did you mean train.steps"),
    ("train.stps=3", "did you mean train.steps"),
    ("lr=3", "optim.discriminator.lr"),
    ("codes.digit.siez=3", "did you mean codes.digit.size"),
    ("qqq=3", "--help"),
    ("train.steps=many", "train.steps"),
    ("train.batch_size=1.5", "train.batch_size"),
    ("train.batch_size=1.55e1", "train.batch_size"),
    ("train=3", "train"),
    ("codes.digit.kind=foo", "categorical, uniform, gaussian, bernoulli"),
    ("codes.new.size=3", "codes.new.kind: not given"),
    ("codes.digit.size=1", "at least 2"),
    ("codes.style.count=2", "codes.style.size=2"),
    ("codes.digit.sigma=1", "only for continuous"),
    ("codes.style.balanced=true", "only for categorical"),
    ("codes.style.sigma=0", "above 0"),
    ("codes.digit.weight=-1", "from 0 up"),
    ("codes.a-b.kind=uniform", "one word"),
    ("objective.loss=wasserstein", "nonsaturating, hinge, least_squares"),
    ("objective.q_step=both", "discriminator, generator"),
    ("optim.generator.lr=0", "above 0"),
    ("optim.generator.lr=nan", "finite"),
    ("optim.discriminator.beta1=1", "below 1"),
    ("train.ema_decay=1", "below 1"),
    ("train.precision=fp8", "fp32, tf32, bf16, fp16, fp64"),
    ("train.epochs=3", "both given"),
    ("train.steps=null", "neither given"),
    ("train.batch_size=0", "from 1 up"),
    ("train.batch_size=60", "train.batch_size=56 or 64"),
    ("train.batch_size=3", "train.batch_size=8"),
    ("train.processes=3", "data.lanes=6 or 9"),
    ("train.accumulation=7", "multiple of 56"),
    ("networks.generator=[]", "configs/mnist.yaml"),
    ("networks.generator=[{kind: dense, then: [gelu]}]", r"networks.generator\[0\].then\[0\]"),
    ("tracking.wandb_mode=maybe", "auto, online, offline, disabled"),
    ("train.steps", "no such config file"),
    ("=3", "key=value"),
    ("train..steps=3", "key=value"),
    ("tracking.trackers=[a", "YAML"),
    ("no/such.yaml", "configs/mnist.yaml"),
]


def test_whole_numbers_in_files_may_be_written_with_a_power_of_ten(tmp_path: Path):
    path = tmp_path / "powers.yaml"
    path.write_text("train: {batch_size: 1e3, steps: null, epochs: 1e1}\nrun: 1e3\n")
    config = read_config([QUICK, str(path)])
    assert (config.train.batch_size, config.train.epochs, config.run) == (1000, 10, "1e3")


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_each_mistake_gets_one_line_with_the_key_and_the_remedy(mistake: str, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        read_config([QUICK, mistake])
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [("- 1\n- 2\n", "key: value"), ("a: [1\n", "YAML"), ("sed: 3\n", "did you mean seed")],
)
def test_broken_files_are_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_config([str(path)])
    assert "broken.yaml" in str(error.value)


def test_the_resolved_config_is_read_back_unchanged(tmp_path: Path):
    config = read_config([QUICK, "codes.style.sigma=0.5", "tracking.name=x"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_only_keys_that_change_the_weights_conflict_with_a_resume():
    config = read_config([QUICK])
    free = ["train.steps=9", "run=elsewhere", "tracking.trackers=[]", "checkpoint.keep=9", "data.workers=0"]
    assert resume_conflicts(config, read_config([QUICK, *free])) == []
    fixed = ["seed=1", "codes.style=null", "optim.generator.lr=0.5", "train.log_every=1", "data.lanes=4"]
    changed = resume_conflicts(config, read_config([QUICK, *fixed]))
    assert {line.split(":")[0].split(".")[0] for line in changed} == {
        "seed",
        "codes",
        "optim",
        "train",
        "data",
    }


def test_help_lists_every_field_with_its_default_and_its_meaning():
    text = help_text()
    for key in flatten(Config()):
        if not key.endswith(("codes", "networks")):
            assert f"  {key} " in text
    assert "codes.NAME.kind" in text
    assert "default 0.001" in text
    for spec in dataclasses.fields(Config):
        assert spec.metadata["meaning"]


@pytest.mark.parametrize("preset", presets(), ids=lambda p: p.stem)
def test_presets_are_valid_and_begin_with_three_lines_on_command_time_and_result(preset: Path):
    read_config([str(preset)])
    head = preset.read_text().splitlines()[:3]
    assert all(line.startswith("# ") for line in head)
    assert f"-m infogan_dist.train configs/{preset.name}" in head[0]


def test_length_in_steps_and_in_epochs():
    assert read_config([QUICK, "train.steps=7"]).length(5000) == 7
    assert read_config([QUICK, "train.steps=null", "train.epochs=2"]).length(5000) == 157  # 10,000 / 64, up
    halves = ["configs/mnist_tutorial.yaml", "train.steps=null", "train.epochs=1"]
    assert read_config(halves).length(64000) == 2000  # 32 real images a step


def test_a_name_from_the_environment_is_inserted_or_reported_as_missing(monkeypatch: pytest.MonkeyPatch):
    words = ["configs/mnist.yaml", "run=runs/${oc.env:A_RUN_S_NAME}"]
    monkeypatch.setenv("A_RUN_S_NAME", "x7")
    assert read_config(words).run == "runs/x7"
    monkeypatch.delenv("A_RUN_S_NAME")
    with pytest.raises(ConfigError, match=r"^run: Environment variable 'A_RUN_S_NAME' not found; set it"):
        read_config(words)


def test_codes_are_checked_by_the_class_of_their_kind():
    codes = read_config([QUICK, "codes.coin={kind: bernoulli}", "codes.pose={kind: gaussian}"]).codes
    assert [type(code) for code in codes.values()] == [
        CategoricalConfig,
        ContinuousConfig,
        BernoulliConfig,
        ContinuousConfig,
    ]


@pytest.mark.parametrize("without_codes", [["codes.digit=null", "codes.style=null"]])
def test_a_config_without_codes_is_refused(without_codes: list[str]):
    with pytest.raises(ConfigError, match="codes: none; add one"):
        read_config([QUICK, *without_codes])


@pytest.mark.parametrize(
    ("change", "effect"),
    [
        ("optim.generator.lr=0.5", Effect.TRAINING),
        ("codes.digit.size=5", Effect.TRAINING),
        ("networks.slope=0.3", Effect.TRAINING),
        ("train.steps=7", Effect.LENGTH),
        ("scores.images=77", Effect.SCORES),
        ("tracking.project=x", Effect.NONE),
        ("data.shards=elsewhere", Effect.NONE),
    ],
)
def test_each_key_has_one_effect(change: str, effect: Effect):
    old, new = flatten(read_config([QUICK])), flatten(read_config([QUICK, change]))
    for other in Effect:
        assert bool(differences(old, new, {other})) == (other is effect)
    assert differences(old, new, set(Effect)) == [
        f"{change.split('=')[0]}: {old[change.split('=')[0]]} -> {new[change.split('=')[0]]}"
    ]


SECRET_URLS = ["https://ann:se cret@host/set", "https://host/set?token=secret", "https://ann:secret/@host/[x"]
CARELESS_WORDS = ["{}", "data.shard={}", "train.steps={}", "data.lanes=[{}]", "data.lanes=[{}", "--x={}"]
CARELESS_FILES = ["data: {{shard: '{}'}}", "train: {{steps: '{}'}}", "data: {{shards: ['{}']}}", "x: [{}"]


@pytest.mark.parametrize("url", SECRET_URLS)
@pytest.mark.parametrize("mistake", CARELESS_WORDS + CARELESS_FILES)
def test_the_message_of_a_mistake_contains_no_credentials(mistake: str, url: str, tmp_path: Path):
    argument = mistake.format(url)
    if mistake in CARELESS_FILES:
        path = tmp_path / "mistake.yaml"
        path.write_text(argument)
        argument = str(path)
    with pytest.raises(ConfigError) as error:
        read_config([QUICK, argument])
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    ("shards", "mode"), [("https://ann:secret@host/set", 0o600), ("https://host/set", 0o644)]
)
def test_only_the_user_may_read_a_saved_config_with_credentials(tmp_path: Path, shards: str, mode: int):
    previous = os.umask(0o022)
    try:
        save_config(read_config([QUICK, f"data.shards={shards}"]), tmp_path / "config.yaml")
    finally:
        os.umask(previous)
    assert (tmp_path / "config.yaml").stat().st_mode & 0o777 == mode
    assert load_config(tmp_path / "config.yaml").data.shards == shards
