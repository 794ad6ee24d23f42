"""The first commands of a new user: a fresh clone, the README's commands, a wheel outside the repository."""

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

from infogan_dist.creation.sources import mnist5k
from tests.conftest import ROOT, environment

pytestmark = pytest.mark.rig
SHORT = "train.steps=2 train.log_every=1"


def shell(script: str, folder: Path, timeout: float = 600, status: int = 0) -> str:
    """Run a shell script in a folder, check its exit status, and return its output."""
    env = {k: v for k, v in environment().items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fresh clone in which quickstart.sh has run, and the output."""
    clone = tmp_path_factory.mktemp("user") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    return clone, shell("bash scripts/quickstart.sh", clone, timeout=900)


def nearest_distance(images: np.ndarray, others: np.ndarray | None = None) -> float:
    """Return the mean distance of images to their nearest neighbours among others, or among themselves."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (images, images if others is None else others))
    squared = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None]
    if others is None:
        np.fill_diagonal(squared, np.inf)
    return float(np.sqrt(np.maximum(squared.min(1), 0)).mean())


def test_quickstart_generates_digits_and_prints_its_results(quickstart: tuple[Path, str]):
    clone, output = quickstart
    run = clone / "runs" / "quickstart"
    assert re.search(r"[\d,]+ images/s", output)
    bound = float(re.search(r"bound of digit: ([\d.]+) nats, H\(c\) = 2\.303", output)[1])  # type: ignore[index]
    # Of distorted views, which the classifier does not recognise with certainty.
    assert 2.1 < bound < 2.3026
    for name in ("samples", "traverse_digit", "traverse_style.0"):
        with Image.open(run / f"{name}.png") as picture:
            assert picture.size == (582, 582)
            assert str(run.relative_to(clone) / f"{name}.png") in output
    # The generated digits are as close to real digits as real ones are to each other, which means of two real
    # digits are not. They are not all alike.
    command = "python -m infogan_dist.generate runs/quickstart grid=20x25 --out generated.npz"
    shell(f". .venv/bin/activate && {command}", clone)
    generated = np.load(clone / "generated.npz")["images"][..., 0]
    source = mnist5k()
    order = np.random.default_rng(0).permutation(source.count)
    digits = np.stack([source.read(int(i))[0][0] for i in order])
    some, others = digits[:500], digits[500:]
    between_real = nearest_distance(some, others)
    assert nearest_distance(generated, others) < 1.05 * between_real
    assert nearest_distance(some[:250] // 2 + some[250:] // 2, others) > 1.05 * between_real
    assert nearest_distance(generated[:100]) > 0.6 * nearest_distance(some[:100])


def test_a_second_quickstart_takes_seconds(quickstart: tuple[Path, str]):
    start = time.monotonic()
    assert "done at step 3,100" in shell("bash scripts/quickstart.sh", quickstart[0])
    assert time.monotonic() - start < 60  # the training takes minutes


def readme_commands() -> list[str]:
    """Return the lines of all shell blocks of the README."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def shorten(line: str, mnist: str) -> str:
    """Return a README command that trains for a few steps, and reads MNIST from a folder."""
    if "make_shards mnist" in line:
        return f"{line} --from {mnist}"
    if "make_shards idx" in line:
        return line.replace("--from fashion", f"--from {mnist}")  # its files have the same names
    if "infogan_dist.evaluate" in line:
        return f"{line} scores.limit=500 scores.images=500"
    if "infogan_dist.scorecard" in line:
        return f"{line} {SHORT} scores.limit=500 scores.images=500"
    if line.endswith("fault_drill.py"):
        return f"{line} --only pipe"  # one fault; others are tested in test_reliability.py
    if any(f"{command} configs/" in line for command in ("train", "torchrun.sh", "doctor")):
        return f"{line} {SHORT}" + (" clustering.steps=1" if "mnist_best" in line else "")
    return line


def test_the_commands_of_the_readme_run_in_order(quickstart: tuple[Path, str]):
    mnist = os.environ.get("INFOGAN_MNIST_DIR")
    if mnist is None:
        pytest.skip("INFOGAN_MNIST_DIR is not set; it names a folder with the four MNIST files")
    clone, _ = quickstart
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
    commands = [c for c in readme_commands() if "quickstart.sh" not in c]  # the fixture has run it
    assert len(commands) >= 14
    activate = ". .venv/bin/activate && "
    for line in commands:
        no_gpu = line.endswith(("gpu_check.py", "gpu_benchmark.py")) and not Path("/dev/nvidia0").exists()
        shell(activate + shorten(line, mnist), clone, status=2 if no_gpu else 0)
    for name in (
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
        assert (clone / name).exists()


def test_presets_and_commands_work_from_a_wheel_outside_the_repository(tmp_path: Path, digits: Path):
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
    outside = tmp_path / "outside"
    outside.mkdir()
    python = f"PYTHONPATH={site} {sys.executable}"
    output = shell(f"{python} -c 'import infogan_dist; print(infogan_dist.__file__)'", outside)
    assert str(site) in output
    assert "configs/mnist_tutorial.yaml" in shell(f"{python} -m infogan_dist.train --help", outside)
    for preset in ("quickstart", "mnist", "mnist_tutorial"):
        options = f"data.shards={digits} run=out/{preset} {SHORT} tracking.trackers=[]"
        options += " clustering.steps=1" if preset == "quickstart" else ""
        shell(f"{python} -m infogan_dist.train configs/{preset}.yaml {options}", outside)
        shell(f"{python} -m infogan_dist.generate out/{preset} traverse=digit grid=2x2", outside)
        assert (outside / "out" / preset / "traverse_digit.png").exists()
