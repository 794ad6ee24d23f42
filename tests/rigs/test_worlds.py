"""The presets, and compiled networks, on several processes, whose number changes rounding only."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from infogan_dist.creation.write import write_shard_set
from tests.conftest import ROOT, TINY, Started, images_source, read_metrics
from tests.rigs.test_launchers import TORCHRUN, launch, output_of
from tests.training.steps import NORMED

pytestmark = pytest.mark.rig
TIMEOUT_S = 400  # the largest run takes 10 s on two idle cores
WORLDS = (2, 3, 4)  # each is compared with one process
LANES = 12  # divided by every number of processes
SHARED = (f"data.lanes={LANES}", "data.workers=0", "train.log_every=1", "tracking.trackers=[]")

# Two images of each lane: the smallest batch of which D can learn from halves.
MNIST = ("configs/mnist.yaml", f"train.batch_size={2 * LANES}")
MNIST5K = ("configs/mnist5k.yaml", f"train.batch_size={2 * LANES}")
TUTORIAL = ("configs/mnist_tutorial.yaml", f"train.batch_size={2 * LANES}")
# A first stage with both kinds of targets and, between them, a search for neighbours by features.
QUICKSTART = (
    "configs/quickstart.yaml",
    f"train.batch_size={2 * LANES}",
    f"clustering.batch_size={2 * LANES}",
    "clustering.balanced_steps=1",
    "clustering.rebuild_every=1",
    "clustering.steps=2",
)

# In fp64 gradients are rounded by about 1e-16, and Adam divides them by its eps, 1e-8, where they are
# smaller than that. With a learning rate of 1e-3 such a weight moves by 1e-11 in each step, 1e-10 of the
# largest ones.
FP64 = 1e-9
# Sums of fp32 numbers of order 1, rounded to 6e-8, in one forward pass of each network. Later steps are not
# compared: Adam's first step is the gradient's sign, so that rounding decides where a gradient is near 0.
FP32 = 1e-5


@dataclass(frozen=True)
class Result:
    """What a run has computed.

    Attributes:
        losses: losses, their terms and bounds of each step.
        state: weights, running statistics and neighbours after the last step, by network and name.
    """

    losses: list[dict[str, float]]
    state: dict[str, Tensor]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 96 random images of MNIST's shape."""
    out = tmp_path_factory.mktemp("images")
    write_shard_set(images_source(96, (1, 28, 28)), out, shards=LANES)
    return out


def result_of(run: Path) -> Result:
    """Read what a finished run has computed, and remove its folder, which takes up to 360 MB."""
    prefixes = ("d/", "g/", "bound/", "classifier/")
    losses = [{k: v for k, v in step.items() if k.startswith(prefixes)} for step in read_metrics(run)]
    (checkpoint,) = (run / "checkpoints").iterdir()
    state = {
        f"{file.stem}.{name}": value.double()
        for file in checkpoint.glob("*.safetensors")
        for name, value in load_file(file).items()
    }
    shutil.rmtree(run)
    return Result(losses, state)


def train(folder: Path, words: Sequence[str], processes: int) -> Result:
    """Train a run by the command line on several processes, and return what it has computed."""
    words = (*words, f"run={folder}/run", f"train.processes={processes}")
    done = Started(folder, "train", *words, processes=processes).wait(TIMEOUT_S)
    assert done.status == 0, done.stdout + done.stderr
    return result_of(folder / "run")


def assert_equal(result: Result, expected: Result, tolerance: float) -> None:
    """Compare losses relative to their size, and weights relative to the largest one of their tensor."""
    for step, (losses, own) in enumerate(zip(expected.losses, result.losses, strict=True), 1):
        assert own == pytest.approx(losses, rel=tolerance, abs=0), f"step {step}"
    assert result.state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        limit = tolerance * float(value.abs().max())
        torch.testing.assert_close(result.state[name], value, rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize(
    "words",
    [
        MNIST,
        MNIST5K,
        TUTORIAL,
        QUICKSTART,
        (*MNIST5K, "objective.r1=1"),
        (*MNIST5K, "train.accumulation=2"),
    ],
    ids=" ".join,
)
def test_losses_and_weights_of_five_steps_are_equal_in_fp64(
    tmp_path: Path, images: Path, words: tuple[str, ...]
):
    preset, *options = words
    words = (str(ROOT / preset), f"data.shards={images}", *SHARED, *options)
    words = (*words, "train.precision=fp64", "train.steps=5")
    expected = train(tmp_path, words, 1)
    assert len(expected.losses) == 5
    for world in WORLDS:
        assert_equal(train(tmp_path, words, world), expected, FP64)


@pytest.mark.parametrize("words", [MNIST5K, (*QUICKSTART, "clustering.steps=0")], ids=" ".join)
def test_losses_of_the_first_step_are_equal_in_fp32(tmp_path: Path, images: Path, words: tuple[str, ...]):
    preset, *options = words
    words = (str(ROOT / preset), f"data.shards={images}", *SHARED, *options)
    words = (*words, "train.precision=fp32", "train.steps=1")
    (expected,) = train(tmp_path, words, 1).losses
    for world in WORLDS:
        (losses,) = train(tmp_path, words, world).losses
        for name in ("d/loss", "g/loss"):
            assert losses[name] == pytest.approx(expected[name], rel=FP32), f"{name} of {world} processes"


def test_compiled_networks_with_batch_norm_train_like_eager_ones(tmp_path: Path, small_set: Path):
    """R1 differentiates D twice, which is not compiled; G's update differentiates the compiled D once."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = (str(tmp_path / "tiny.yaml"), f"data.shards={small_set}", *SHARED, *NORMED)
    words = (*words, "train.batch_size=24", "train.precision=fp64", "objective.r1=1")
    eager = train(tmp_path, words, 2)
    # By a launcher, since the compiler's import has warnings, which are errors in `train`.
    words = (*words, "train.compile=true", "train.processes=2", f"run={tmp_path}/compiled")
    process = launch([*TORCHRUN, "--nproc-per-node=2"], *words)
    output = output_of(process)
    assert process.returncode == 0, output
    assert_equal(result_of(tmp_path / "compiled"), eager, FP64)
