"""Intervals of means, standardised codes, and the options of commands, each against its definition."""

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infogan_dist.scores import command_runner
from infogan_dist.scores.command_runner import CommandRunner
from infogan_dist.scores.intervals import mean_interval
from infogan_dist.scores.representation import Representation


def test_an_interval_is_1_96_standard_errors_wide_on_both_sides():
    values = [1.0, 2.0, 4.0, 7.0, 11.0]
    mean, (low, high) = mean_interval(np.array(values))
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert mean == pytest.approx(5.0)
    assert [mean - low, high - mean] == pytest.approx([1.96 * error] * 2, rel=1e-4)


def test_standard_codes_have_mean_0_and_variance_1():
    codes = np.array([[5.0, 2.0, 7.0], [6.0, 9.0, 7.0], [9.0, 2.0, 7.0], [12.0, 4.0, 7.0]])
    standard = Representation(codes, [False, True, False], np.array([[0], [1], [0], [1]])).standard_codes
    assert float(standard[:, 0].mean()) == pytest.approx(0, abs=1e-12)
    assert float(standard[:, 0].var()) == pytest.approx(1, rel=1e-12)
    assert (np.diff(standard[:, 0]) > 0).all()
    assert standard[:, 1].tolist() == [0, 2, 0, 1]  # categories are numbered
    assert standard[:, 2].tolist() == [0] * 4  # a dead code


@pytest.mark.parametrize(("quiet", "options"), [(True, ["--quiet"]), (False, [])])
def test_a_command_is_run_with_its_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quiet: bool, options: list[str]
):
    commands: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: Any):
            commands.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(command_runner.subprocess, "Popen", Process)
    CommandRunner(quiet).run("train", "config.yaml", "seed=3")
    (command,) = commands
    start = command.index("infogan_dist.train")
    assert command[start:] == ["infogan_dist.train", "config.yaml", "seed=3", *options]
