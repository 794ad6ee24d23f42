"""Help and refused arguments are answered at once: the heavy libraries are imported only after that."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

MAX_CPU_S = 0.5
HEAVY = ("torch", "accelerate", "wandb", "webdataset", "scipy", "sklearn")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "--help"], 0, "train.batch_size"),
        (["train", "configs/mnist.yaml", "trian.steps=3"], 2, "did you mean train.steps?"),
        (["train", "configs/mnist.yaml", "codes.digit.size=1"], 2, "at least 2"),
        (["train", "configs/mnist.yaml", "objective.loss=wasserstein"], 2, "nonsaturating"),
        (["train", "configs/mnist.yaml", "train.batch_size=60"], 2, "train.batch_size=56 or 64"),
        (["train", "no/such.yaml"], 2, "no such config file"),
        (["doctor", "--help"], 0, "--quiet"),
        (["doctor", "configs/mnist.yaml", "--help"], 0, "accelerate launch"),
        (["generate", "--help"], 0, "codes.NAME"),
        (["generate", "runs/x", "grid=5"], 2, "grid=5x5"),
        (["evaluate", "--help"], 0, "recovery"),
        (["evaluate", "runs/x", "recovery"], 2, "not key=value"),
        (["evaluate", "{run}", "step=x"], 2, "whole number"),
        (["evaluate", "{run}", "scores.imagess=3"], 2, "scores.images"),
        (["scorecard", "--help"], 0, "seeds"),
        (["scorecard", "configs/mnist.yaml", "seeds=x"], 2, "seeds=0..4"),
        (
            ["scorecard", "configs/mnist.yaml", "train.stepz=3", "--out", "x.json"],
            2,
            "did you mean train.steps?",
        ),
        (["scorecard", "configs/mnist.yaml", "--out", "x.txt"], 2, ".json"),
        (["scorecard", "compare", "--help"], 0, "usage"),
        (["scorecard", "compare", "nowhere.json"], 2, "nowhere.json"),
        (["make_shards", "--help"], 0, "mnist5k"),
        (["make_shards", "folder"], 2, "--from"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_refusals_need_no_heavy_library(
    tmp_path: Path, arguments: list[str], status: int, message: str
):
    (tmp_path / "config.yaml").write_text((ROOT / "configs" / "mnist5k.yaml").read_text())
    module, *rest = (word.format(run=tmp_path) for word in arguments)
    script = f"""
import sys
from infogan_dist.{module} import main
try:
    main({rest!r})
finally:
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, heavy
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr.count("Traceback")) == (status, 0), done.stderr
    assert message in done.stdout + done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Two busy hardware threads of one core make each instruction up to twice as slow.
    assert seconds < MAX_CPU_S * (2 if os.environ.get("PYTEST_XDIST_WORKER") else 1)
