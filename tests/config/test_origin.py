"""The config that `--print-config` prints: a file that gives the same config, with origins of its values."""

from pathlib import Path

import pytest

from infogan_dist.config.load import presets, read_config
from infogan_dist.config.origin import config_with_origins
from tests.conftest import Runner, line_of

QUICK = "configs/mnist5k.yaml"


@pytest.mark.parametrize("preset", presets(), ids=lambda path: path.name)
def test_the_printed_config_gives_the_same_config(preset: Path, tmp_path: Path):
    words = [str(preset), "codes.digit.weight=0.5", "tracking.notes=fix #3: x", "tracking.group=007"]
    path = tmp_path / "printed.yaml"
    path.write_text(config_with_origins(words))
    assert read_config([str(path)]) == read_config(words)


def test_each_value_has_the_origin_that_won(tmp_path: Path):
    extra = tmp_path / "extra.yaml"
    extra.write_text("seed: 7\ntrain: {steps: 11}\n")
    text = config_with_origins([QUICK, str(extra), "train.steps=12", "codes={digit: {size: 20}}"])
    lines = [line.strip() for line in text.splitlines()]
    assert f"seed: 7  # {extra}" in lines
    assert "steps: 12  # train.steps=12" in lines
    assert "size: 20  # codes={digit: {size: 20}}" in lines
    assert f"noise: 62  # {QUICK}" in lines
    assert "ema: true  # default" in lines


def test_credentials_are_masked():
    text = config_with_origins([QUICK, "data.shards=https://ann:secret@host/set?token=secret"])
    assert "secret" not in text
    assert "host/set" in text


def test_the_command_prints_the_config_and_does_not_train(run_module: Runner, tiny: Path, tmp_path: Path):
    done = run_module("train", tiny, "train.steps=7", "--print-config")
    assert "  steps: 7  # train.steps=7\n" in done.stdout
    assert not (tmp_path / "run").exists()
    line = line_of(run_module("train", tiny, "train.stps=7", "--print-config", status=2))
    assert "did you mean train.steps" in line
