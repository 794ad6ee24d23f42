"""The comparison with other loaders: this project's loader in all cases, and that mistakes are counted."""

import importlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "rivals" / "compare.py"
sys.path.insert(0, str(SCRIPT.parent))  # as for a script that is started by its path
adapter, compare, harness = map(importlib.import_module, ("adapter_infogan_dist", "compare", "harness"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    source = Source("images", harness.SAMPLES, [], lambda i: (np.asarray(harness.image_of(i))[None], -1))
    write_shard_set(source, folder, harness.SHARDS)
    return folder


def run_case(case: Any, shards: Path, folder: Path, loader: type = adapter.Loader) -> Any:
    """Run a case's processes one after the other in this process; a killed one ends without a state."""

    def start(tasks: list[Any]) -> float:
        begin = time.time()
        for task in tasks:
            harness.read_batches(task, loader)
        return begin

    return harness.run_case(case, "infogan_dist", shards, folder, 0, start)


@pytest.fixture(scope="module")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of an epoch without interruption, on one process."""
    case = harness.Case("reference", (harness.Segment(1),))
    return run_case(case, shards, tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("case", harness.CASES, ids=lambda case: case.name)
def test_no_interruption_loses_or_doubles_a_sample_or_changes_a_batch(
    case: Any, shards: Path, reference: Any, tmp_path: Path
):
    outcome = run_case(case, shards, tmp_path / "interrupted")
    row = compare.describe_outcome(outcome, reference)
    assert (row["lost"], row["doubled"], row["batches"]) == (0, 0, "same")


def test_a_killed_case_continues_from_a_state_that_is_older_than_the_last_batch(shards: Path, tmp_path: Path):
    (case,) = (case for case in harness.CASES if case.name == "killed, 2 to 2")
    run_case(case, shards, tmp_path)
    first, second = (
        [json.loads(line)[0] for line in record.read_text().splitlines()[1:]]
        for record in sorted(tmp_path.glob("segment*/rank0.jsonl"))
    )
    repeated = [step for step, count in Counter(first + second).items() if count > 1]
    assert repeated == [6, 7]


@pytest.mark.parametrize(
    ("error", "lost", "doubled"),
    [(-1, 0, 48), (1, 48, 0)],
    ids=["a batch again", "a batch skipped"],
)
def test_a_wrong_state_is_counted(
    error: int, lost: int, doubled: int, shards: Path, reference: Any, tmp_path: Path
):
    class WrongState(adapter.Loader):
        def state(self) -> int:
            return self.step + error

    case = harness.Case("stopped", (harness.Segment(2, 7), harness.Segment(2)))
    outcome = run_case(case, shards, tmp_path, WrongState)
    assert (outcome.lost, outcome.doubled) == (lost, doubled)
    assert compare.describe_outcome(outcome, reference)["batches"] == "different"


def test_a_loader_that_is_not_installed_has_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(compare.LOADERS, "absent", ("a-package-that-does-not-exist",))
    rows = list(compare.measure_loader("absent", tmp_path, tmp_path / "absent", 1))
    assert rows == [{"loader": "absent", "case": "not installed"}]


@pytest.mark.rig
def test_the_command_with_real_processes_that_are_killed(tmp_path: Path):
    result = tmp_path / "rivals.json"
    command = [sys.executable, str(SCRIPT), "--loader", "infogan_dist", "--json", str(result)]
    subprocess.run(command, check=True, timeout=600)
    rows = json.loads(result.read_text())
    assert [row["case"] for row in rows] == [case.name for case in harness.CASES]
    assert {(row["lost"], row["doubled"], row["batches"]) for row in rows} == {(0, 0, "same")}
