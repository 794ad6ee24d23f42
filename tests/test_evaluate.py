"""Scores by command line and during training, in real processes."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_dist.data.sources import Source
from infogan_dist.data.write import write_shard_set
from infogan_dist.scores.disentanglement import disentanglement
from infogan_dist.scores.distributed_map import serial_map
from tests.conftest import Runner, images_source, line_of, read_metrics, same_weights, weights

NORMED = "networks.discriminator=[{kind: conv, out: 8, stride: 2, then: [batchnorm, lrelu]}]"


class Projection(torch.nn.Module):
    """Features for images of any content: fixed projections of the pixels."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.directions = torch.nn.Parameter(torch.randn(3 * 64, 5, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float() @ self.directions / 255


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "projection.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of TorchScript
        torch.jit.script(Projection()).save(str(path))
    return path


@pytest.fixture(scope="module")
def factor_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images of known brightness and side, as class and as factors."""
    out = tmp_path_factory.mktemp("factors")
    noise = np.random.default_rng(0).integers(0, 30, (240, 1, 8, 8))

    def read(i: int) -> tuple[np.ndarray, int]:
        bright, side = factors_of(i)
        image = noise[i].copy()
        image[:, :, 4 * side : 4 * side + 4] += 40 * (bright + 1)
        return image.astype(np.uint8), side

    def factors_of(i: int) -> list[int]:
        return [i % 4, i // 4 % 2]

    source = Source("bars", 240, ["left", "right"], read, {"brightness": 4, "side": 2}, factors_of)
    write_shard_set(source, out, shards=6)
    return out


@pytest.fixture
def trained(run_module: Runner, tiny: Path, tmp_path: Path, factor_set: Path) -> Path:
    run_module("train", tiny, NORMED, f"data.shards={factor_set}")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_scores_are_the_same_on_one_two_and_three_processes(
    run_module: Runner, trained: Path, tmp_path: Path, factor_set: Path, features: Path
):
    words = [trained, f"data={factor_set}", f"scores.features={features}", "scores.images=700"]
    found = []
    for processes in (1, 2, 3):
        out = tmp_path / f"{processes}.json"
        done = run_module("evaluate", *words, "--out", out, processes=processes)
        found.append(json.loads(out.read_text()))
        assert "accuracy_test_hungarian" in done.stdout
    one = found[0]
    assert one["left_out"] == {}
    named = (
        "accuracy_test_hungarian_recalibrated",
        "bound_digit",
        "control_width_style.1",
        "fid",
        "kid",
        "mig",
    )
    assert set(named) <= one["scores"].keys()
    assert all(np.isfinite(v) for v in one["scores"].values())
    for other in found[1:]:
        assert other["scores"].keys() == one["scores"].keys()
        assert other["protocol"].keys() == one["protocol"].keys()
        for name, value in one["scores"].items():
            # Each piece of images is computed alone; but threads differ, and with them the order of sums.
            assert other["scores"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_real_features_come_from_the_cache_the_second_time(
    run_module: Runner, trained: Path, tmp_path: Path, features: Path
):
    words = [trained, "scores=fidelity", f"scores.features={features}", "scores.images=100"]
    run_module("evaluate", *words, "--out", tmp_path / "first.json")
    (kept,) = (tmp_path / "cache").rglob("features/*.safetensors")
    stamp = kept.stat().st_mtime_ns
    run_module("evaluate", *words, "--out", tmp_path / "again.json", processes=2)
    assert kept.stat().st_mtime_ns == stamp
    first, again = (json.loads((tmp_path / f"{n}.json").read_text())["scores"] for n in ("first", "again"))
    assert again == pytest.approx(first, rel=1e-5)
    run_module("evaluate", *words, "scores.limit=100", "--out", tmp_path / "other.json")
    assert (
        len(list((tmp_path / "cache").rglob("features/*.safetensors"))) == 2
    )  # other images, other features


def test_a_known_factor_that_a_code_shows_is_found(factor_set: Path):
    """The factors themselves, read as codes, are told apart perfectly by what evaluate computes with."""
    numbers = np.arange(240)
    known = np.stack([numbers % 4, numbers // 4 % 2], axis=1)
    found = dict(disentanglement(known.astype(float), [False, False], known, 0, serial_map))
    assert found["mig"] == pytest.approx(1.0)


def test_scores_in_training_are_logged_for_sweeps_and_change_nothing(
    run_module: Runner, tiny: Path, tmp_path: Path, factor_set: Path
):
    options = [tiny, NORMED, "train.precision=fp64", f"data.shards={factor_set}", f"data.test={factor_set}"]
    options += ["train.steps=5", "scores.names=[recovery,information]", "scores.images=100"]
    run_module("train", *options, f"run={tmp_path}/plain")
    for processes in (1, 2):
        scored = tmp_path / f"scored{processes}"
        words = ["train.evaluate_every=2", "checkpoint.best=score/nmi_test", f"run={scored}"]
        run_module("train", *options, *words, processes=processes)
    assert same_weights(weights(tmp_path / "plain", 5), weights(tmp_path / "scored1", 5))
    lines = read_metrics(tmp_path / "scored1")
    with_scores = [line for line in lines if "score/accuracy_test_hungarian" in line]
    assert [line["step"] for line in with_scores] == [2, 4, 5]
    assert [line for line in lines if line not in with_scores] == read_metrics(tmp_path / "plain")
    about = json.loads((tmp_path / "scored1/checkpoints/step_00000005/run.json").read_text())
    assert about["metrics"]["score/nmi_test"] == with_scores[-1]["score/nmi_test"]
    assert (tmp_path / "scored1/pictures/step_00000005/score_confusion_test.png").exists()
    # Networks whose batch norm is each process's own differ; but both processes have scored alike.
    assert [line["step"] for line in read_metrics(tmp_path / "scored2") if "score/nmi_test" in line] == [
        2,
        4,
        5,
    ]


def test_the_confusion_matrix_is_a_picture(run_module: Runner, trained: Path):
    run_module("evaluate", trained, "scores=recovery")
    with Image.open(trained / "confusion_train.png") as picture:
        assert picture.width == 3 * 44  # two classes and their head
        assert picture.height >= 2 * 26
    names = json.loads((trained / "scores.json").read_text())["scores"]
    assert "accuracy_train_hungarian" in names
    assert not any("test" in name for name in names)  # no held-out images were named


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scores=recoverr"], "recoverr"),
        (["scores=fidelity"], "scores.features=FILE"),
        (["scores=disentanglement", "data.shards={plain}"], "known factors"),
        (["data={tmp}/nowhere"], "no shard set there"),
        (["data={other}"], "images of [1, 4, 4]"),
        (["step=7"], "no whole checkpoint of step 7"),
        (["recovery"], "not key=value"),
        (["scores.imagess=3"], "did you mean scores.images"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(
    run_module: Runner, trained: Path, small_set: Path, tmp_path: Path, words: list[str], said: str
):
    write_shard_set(images_source(16, (1, 4, 4)), tmp_path / "other", shards=1)
    places = {"tmp": tmp_path, "other": tmp_path / "other", "plain": small_set}
    done = run_module("evaluate", trained, *(w.format(**places) for w in words), status=2)
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert said in lines[0]
    assert "Traceback" not in done.stderr
    assert not (trained / "scores.json").exists()


def test_a_run_that_is_none_is_refused(run_module: Runner, tmp_path: Path):
    assert "no whole checkpoint there" in line_of(run_module("evaluate", tmp_path, status=2))
