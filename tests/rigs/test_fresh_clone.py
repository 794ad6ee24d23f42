"""What a new user does: a clone in an empty folder, the README's commands, a wheel elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.data.sources import mnist5k
from tests.conftest import ROOT, environment

pytestmark = pytest.mark.rig
SHORT = "train.steps=2 train.log_every=1"


def shell(script: str, where: Path, timeout: float = 600, status: int = 0) -> str:
    env = {k: v for k, v in environment().items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=where,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def quickstarted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fresh clone in which quickstart.sh has run, and what it said."""
    clone = tmp_path_factory.mktemp("user") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    return clone, shell("bash scripts/quickstart.sh", clone, timeout=900)


def nearest(images: np.ndarray, others: np.ndarray | None = None) -> float:
    """The mean distance of images to their nearest neighbour among others, or among themselves."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (images, images if others is None else others))
    squared = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None]
    if others is None:
        np.fill_diagonal(squared, np.inf)
    return float(np.sqrt(np.maximum(squared.min(1), 0)).mean())


def test_quickstart_ends_with_readable_digits_and_says_how_it_went(quickstarted: tuple[Path, str]):
    clone, said = quickstarted
    run = clone / "runs" / "quickstart"
    assert re.search(r"[\d,]+ images/s", said)
    bound = float(re.search(r"bound of digit: ([\d.]+) nats, H\(c\) = 2\.303", said)[1])  # type: ignore[index]
    assert 2.2 < bound < 2.3026
    for name in ("samples", "traverse_digit", "traverse_style.0"):
        with Image.open(run / f"{name}.png") as picture:
            assert picture.size == (582, 582)
            assert str(run.relative_to(clone) / f"{name}.png") in said
    # Digits: as near to real ones as those are, which two laid over each other are not; and not all alike.
    command = "python -m infogan_dist.generate runs/quickstart grid=20x25 --out drawn.npz"
    shell(f". .venv/bin/activate && {command}", clone)
    drawn = np.load(clone / "drawn.npz")["images"][..., 0]
    source = mnist5k()
    mixed = np.random.default_rng(0).permutation(source.count)
    digits = np.stack([source.read(int(i))[0][0] for i in mixed])
    some, others = digits[:500], digits[500:]
    between_real = nearest(some, others)
    assert nearest(drawn, others) < 1.05 * between_real
    assert nearest(some[:250] // 2 + some[250:] // 2, others) > 1.05 * between_real
    assert nearest(drawn[:100]) > 0.6 * nearest(some[:100])


def test_a_second_call_takes_seconds(quickstarted: tuple[Path, str]):
    start = time.monotonic()
    assert "done at step 3,000" in shell("bash scripts/quickstart.sh", quickstarted[0])
    assert time.monotonic() - start < 60  # the work itself takes minutes


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def as_run_here(line: str, mnist: str) -> str:
    """A README command, shortened where it would train for long, and without a download."""
    if "make_shards mnist" in line:
        return f"{line} --from {mnist}"
    if "infogan_dist.evaluate" in line:
        return f"{line} scores.limit=500 scores.images=500"
    if "infogan_dist.scorecard" in line:
        return f"{line} {SHORT} scores.limit=500 scores.images=500"
    if line.endswith("fault_drill.py"):
        return f"{line} --only pipe"  # one fault for all: the others have a test of their own
    if any(f"{command} configs/" in line for command in ("train", "torchrun.sh", "doctor")):
        return f"{line} {SHORT}"
    return line


def test_the_readme_s_commands_run_in_order(quickstarted: tuple[Path, str]):
    mnist = os.environ.get("INFOGAN_MNIST_DIR")
    if mnist is None:
        pytest.skip(
            "INFOGAN_MNIST_DIR names no folder of the four MNIST files, which a command would download"
        )
    clone, _ = quickstarted
    for i, mode in enumerate(["RGB", "L"] * 20):
        folder = clone / "my_images" / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(
            0, 256, (40, 50, 3) if mode == "RGB" else (40, 50), np.uint8
        )
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (clone / "my_tars").mkdir()
    for i in range(2):
        pack = f"cd my_images/{'cats' if i else 'dogs'} && tar cf ../../my_tars/part-{i}.tar *.png"
        shell(pack, clone)
    commands = [c for c in readme_commands() if "quickstart.sh" not in c]  # which the fixture has run
    assert len(commands) >= 14
    activate = ". .venv/bin/activate && "
    for line in commands:
        gpu_less = line.endswith("gpu_check.py") and not Path("/dev/nvidia0").exists()
        shell(activate + as_run_here(line, mnist), clone, status=2 if gpu_less else 0)
    for made in (
        "slant.png",
        "samples.npz",
        "runs/mine/samples.png",
        "shards/tars/manifest.json",
        "runs/two",
        "runs/three",
        "runs/mnist/scores.json",
        "runs/mnist/confusion_test.png",
        "runs/scorecard.md",
    ):
        assert (clone / made).exists()


def test_presets_and_commands_work_from_a_wheel_elsewhere(tmp_path: Path, digits: Path):
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    shutil.rmtree(source)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python = f"PYTHONPATH={site} {sys.executable}"
    said = shell(f"{python} -c 'import infogan_dist; print(infogan_dist.__file__)'", elsewhere)
    assert str(site) in said
    assert "configs/mnist_tutorial.yaml" in shell(f"{python} -m infogan_dist.train --help", elsewhere)
    for preset in ("quickstart", "mnist", "mnist_tutorial"):
        options = f"data.shards={digits} run=out/{preset} {SHORT} tracking.trackers=[]"
        shell(f"{python} -m infogan_dist.train configs/{preset}.yaml {options}", elsewhere)
        shell(f"{python} -m infogan_dist.generate out/{preset} traverse=digit grid=2x2", elsewhere)
        assert (elsewhere / "out" / preset / "traverse_digit.png").exists()
