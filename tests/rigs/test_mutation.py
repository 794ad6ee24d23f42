"""Planted faults: the tests find most of a sample, and a fault that no test finds is reported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, environment

pytestmark = pytest.mark.rig

# The tests found 14 of 15 changes of `training` and 15 of 15 of `model` (docs/testing.md). If 29 of 30 is the
# true share, fewer than 6 of 8 are found with a probability of 0.2%; with the share of the first measurement,
# 20 of 30, the probability is 53%. A change of the source also changes the sample.
SAMPLE, MIN_FOUND = 4, 6

# Two functions with the same two changes each, and a test that calls both but checks the value of one.
SOURCE = """def checked(x):
    return x + 1


def unchecked(x):
    return x + 1
"""
TEST = """from infogan_dist.model.successor import checked, unchecked


def test_successor():
    unchecked(2)
    assert checked(2) == 3
"""


def run_mutants(tree: Path, report: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """Run a tree's script on 4 changes of each package with seed 1, and return outcomes and output."""
    command = [sys.executable, "scripts/mutation_run.py", "--sample", str(SAMPLE), "--seed", "1"]
    command += ["--json", str(report), *arguments]
    done = subprocess.run(
        command, cwd=tree, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text()), done.stdout


def test_most_of_a_sample_is_found(tmp_path: Path):
    outcomes, output = run_mutants(
        ROOT, tmp_path / "mutants.json", "--package", "training", "--package", "model"
    )
    assert [o["package"] for o in outcomes] == ["training"] * SAMPLE + ["model"] * SAMPLE
    assert sum(o["result"] in ("killed", "timed out") for o in outcomes) >= MIN_FOUND, output


def test_a_change_that_no_test_finds_is_reported_as_survived(tmp_path: Path):
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "scripts", tree / "scripts")
    for name in ("infogan_dist/model", "tests/model", "tests/training", "configs", "docs"):
        (tree / name).mkdir(parents=True)
    for name in (
        "infogan_dist/__init__.py",
        "infogan_dist/model/__init__.py",
        "tests/training/test_step.py",
        "tests/training/test_processes.py",
        "pyproject.toml",
        "README.md",
    ):
        (tree / name).touch()
    source = tree / "infogan_dist/model/successor.py"
    source.write_text(SOURCE)
    (tree / "tests/model/test_successor.py").write_text(TEST)

    outcomes, output = run_mutants(tree, tmp_path / "mutants.json", "--package", "model")

    results = sorted(("def unchecked" in o["diff"], o["result"]) for o in outcomes)
    assert results == [(False, "killed")] * 2 + [(True, "survived")] * 2
    assert output.endswith("model: 2 killed, 2 survived, 0 timed out; 50% found\n")
    assert source.read_text() == SOURCE  # changes are planted in a copy
