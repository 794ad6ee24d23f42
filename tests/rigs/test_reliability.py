"""Memory while reading ten million samples, and a part of the fault drill."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

pytestmark = pytest.mark.rig
STREAM = """
import sys
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import load_manifest

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

manifest = load_manifest(sys.argv[1])
order = Order(0, [s.samples for s in manifest.shards], 8, 1024)
loader = Loader(manifest, order, range(8), workers=1, cache_bytes=2**30)
batches, count, marks = loader.batches(0), 0, [60_000, 10_000_000]
while marks:
    count += len(next(batches).images)
    if count >= marks[0]:
        print(resident())
        marks.pop(0)
"""
# One fault of each kind; the full drill would take too long for a test.
QUICK = [
    "kill-worker-0",
    "usr1-one",
    "checkpoint-flip",
    "disk-full",
    "shard-swapped",
    "mode-skip",
    "http-drop",
    "s3-gone",
]


def test_memory_is_constant_over_ten_million_samples(digits: Path):
    command = [sys.executable, "-c", STREAM, str(digits)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=True)
    early, late = map(int, done.stdout.split())
    assert 0.9 * early < late < 1.1 * early


def test_a_part_of_the_drill_is_survived(tmp_path: Path):
    report = tmp_path / "drill.json"
    command = [sys.executable, "scripts/fault_drill.py", "--only", ",".join(QUICK), "--json", str(report)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(report.read_text())
    assert summary["tried"] == summary["survived"] == len(QUICK)
    assert (summary["samples_lost"], summary["samples_doubled"]) == (0, 0)
