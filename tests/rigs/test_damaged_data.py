"""Of thousands of damaged tars and images each is read whole, refused in one line, or counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

pytestmark = pytest.mark.rig

COUNT, SEED = 2000, 1
MAX_PEAK_MIB = 500


@pytest.mark.parametrize("kind", ["tars", "images"])
def test_no_damaged_file_is_lost_without_a_message(kind: str, tmp_path: Path):
    command = [sys.executable, "-m", "tests.rigs.damaged_data", kind, str(COUNT), str(SEED), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    seeds = f"seeds ({SEED}, 0) to ({SEED}, {COUNT - 1})"
    print(f"{kind}, {seeds}: {report['outcomes']}, {report['peak_mib']:.0f} MiB")
    assert report["failures"] == []
    assert "Traceback" not in done.stderr
    assert sum(report["outcomes"].values()) == COUNT
    # Both outcomes must occur often, or the damage would test nothing.
    assert min(report["outcomes"][outcome] for outcome in ("whole", "refused")) > COUNT / 100
    assert report["peak_mib"] < MAX_PEAK_MIB
