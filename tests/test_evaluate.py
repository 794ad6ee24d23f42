"""Scores on the command line and during training, in real processes."""

import json
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_dist.creation.write import write_shard_set
from infogan_dist.scores.disentanglement import disentanglement
from infogan_dist.scores.distributed_map import serial_map
from infogan_dist.scores.output import code_origin, command_line
from infogan_dist.scores.representation import Representation
from tests.conftest import ROOT, Runner, images_source, line_of, read_metrics, same_weights, weights
from tests.scores.conftest import factor_values, write_factor_set

NORMED = "networks.discriminator=[{kind: conv, out: 8, stride: 2, then: [batchnorm, lrelu]}]"


class Projection(torch.nn.Module):
    """Features of any images: fixed projections of the pixels."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.directions = torch.nn.Parameter(torch.randn(3 * 64, 5, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float() @ self.directions / 255


class Logarithm(torch.nn.Module):
    """Features that are finite for black images only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (1 - images.flatten(1).float().mean(1, keepdim=True)).log()


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "projection.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, about TorchScript
        torch.jit.script(Projection()).save(str(path))
    return path


@pytest.fixture(scope="module")
def factor_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_factor_set(tmp_path_factory.mktemp("factors"))


@pytest.fixture
def trained(run_module: Runner, tiny: Path, tmp_path: Path, factor_set: Path) -> Path:
    run_module("train", tiny, NORMED, f"data.shards={factor_set}")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read_scores(run: Path) -> list[dict[str, float]]:
    """Return the lines of a run's scores.jsonl."""
    return [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]


@pytest.mark.rig
def test_scores_are_the_same_on_one_two_and_three_processes(
    run_module: Runner, trained: Path, tmp_path: Path, factor_set: Path, features: Path
):
    words = [trained, f"data={factor_set}", f"scores.features={features}", "scores.images=700"]
    results = []
    for processes in (1, 2, 3):
        out = tmp_path / f"{processes}.json"
        done = run_module("evaluate", *words, "--out", out, processes=processes)
        results.append(json.loads(out.read_text()))
        assert done.stdout.count("accuracy_test_hungarian ") == 1
    one = results[0]
    assert one["left_out"] == {}
    assert one["lower_is_better"] == ["fid", "kid", "fid_of_test_images", "fid_within"]
    names = (
        "accuracy_test_hungarian_recalibrated",
        "bound_digit",
        "control_width_style.1",
        "fid",
        "kid",
        "mig",
    )
    assert set(names) <= one["scores"].keys()
    assert all(np.isfinite(v) for v in one["scores"].values())
    for other in results[1:]:
        assert other["scores"].keys() == one["scores"].keys()
        assert other["protocol"].keys() == one["protocol"].keys()
        for name, value in one["scores"].items():
            # Each chunk of images is computed by one process, but with another number of threads, and
            # therefore in another order of summation.
            assert other["scores"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_real_features_are_read_from_the_cache_the_second_time(
    run_module: Runner, trained: Path, tmp_path: Path, features: Path
):
    words = [trained, "scores=fidelity", f"scores.features={features}", "scores.images=100"]
    run_module("evaluate", *words, "--out", tmp_path / "first.json")
    (cached,) = (tmp_path / "cache").rglob("features/*")
    assert cached.suffix == ".safetensors"
    stamp = cached.stat().st_mtime_ns
    run_module("evaluate", *words, "--out", tmp_path / "again.json", processes=2)
    assert cached.stat().st_mtime_ns == stamp
    first, again = (json.loads((tmp_path / f"{n}.json").read_text())["scores"] for n in ("first", "again"))
    assert again == pytest.approx(first, rel=1e-5)
    run_module("evaluate", *words, "scores.limit=100", "--out", tmp_path / "other.json")
    # Other images have other features.
    assert len(list((tmp_path / "cache").rglob("features/*.safetensors"))) == 2


def test_the_factors_themselves_are_disentangled():
    """As codes, the known factors of the shard set have the largest mutual information gap."""
    values = np.array([factor_values(i) for i in range(240)])
    codes = Representation(values.astype(float), [False, False], values)
    assert dict(disentanglement(codes, 0, serial_map))["mig"] == pytest.approx(1.0)


def test_scores_during_training_are_logged_and_change_nothing(
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
    assert read_metrics(tmp_path / "scored1") == read_metrics(tmp_path / "plain")
    assert not (tmp_path / "plain/scores.jsonl").exists()
    scores = read_scores(tmp_path / "scored1")
    assert [line["step"] for line in scores] == [2, 4, 5]
    assert all(
        "score/accuracy_test_hungarian" in line
        and all(name == "step" or name.startswith("score/") for name in line)
        for line in scores
    )
    # The checkpoint with the best score is among the saved ones.
    best = max(scores, key=lambda line: (line["score/nmi_test"], line["step"]))["step"]
    assert (tmp_path / f"scored1/checkpoints/step_{best:08d}").is_dir()
    assert (tmp_path / "scored1/pictures/step_00000005/score_confusion_test.png").exists()
    # Each process has batch norm of its own, so the weights are others; but both processes have the same
    # scores.
    assert [line["step"] for line in read_scores(tmp_path / "scored2") if "score/nmi_test" in line] == [
        2,
        4,
        5,
    ]


def test_the_origin_of_scores_is_recorded(run_module: Runner, trained: Path, tmp_path: Path):
    out = tmp_path / "new" / "folder" / "scores.json"
    run_module("evaluate", trained, "scores=information", "scores.images=50", "--out", out)
    content = json.loads(out.read_text())
    words = f"{trained} scores=information scores.images=50 --out {out}"
    assert content["command"] == f"python -m infogan_dist.evaluate {words}"
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert content["commit"] == head.stdout.strip()
        assert isinstance(content["dirty"], bool)
    else:
        assert not {"commit", "dirty"} & content.keys()


def test_passwords_are_not_recorded():
    words = ["runs/x", "data=https://user:secret@host/set?key=secret", "s3://user:secret@bucket/x"]
    assert command_line("evaluate", words) == (
        "python -m infogan_dist.evaluate runs/x data=https://host/set s3://bucket/x"
    )


def test_an_installed_package_has_no_commit(tmp_path: Path):
    (tmp_path / "__init__.py").touch()
    assert code_origin(tmp_path) == {}
    # Nor has one that lies within the checkout of another project.
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert code_origin(tmp_path) == {}


def test_an_output_that_cannot_be_written_is_refused_before_computing(
    run_module: Runner, trained: Path, tmp_path: Path
):
    (tmp_path / "file").touch()
    for out, message in ((tmp_path / "file" / "scores.json", "cannot be written"), (tmp_path, "is a folder")):
        done = run_module("evaluate", trained, "scores=information", "--out", out, status=2)
        assert message in line_of(done)
        assert "1/1" not in done.stderr


@pytest.mark.rig
def test_a_feature_network_that_fails_on_the_images_is_named_in_one_line(
    run_module: Runner, trained: Path, tmp_path: Path
):
    """It returns finite features of the black images that it is tried with at first."""
    path = tmp_path / "logarithm.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, about TorchScript
        torch.jit.script(Logarithm()).save(str(path))
    words = [trained, f"scores.features={path}", "scores.images=50"]
    for processes in (1, 2):
        done = run_module("evaluate", *words, "scores=fidelity", processes=processes, status=2)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr
        assert "logarithm: returns" in lines[0]
        assert "not finite" in lines[0]
        assert "Traceback" not in done.stderr
    out = tmp_path / "others.json"
    done = run_module("evaluate", *words, "scores=fidelity,information", "--out", out, processes=2)
    content = json.loads(out.read_text())
    assert content["left_out"].keys() == {"fidelity"}
    assert "bound_digit" in content["scores"]
    assert done.stderr.count("warning: fidelity is not computed: ") == 1


def test_the_confusion_matrix_is_a_picture(run_module: Runner, trained: Path):
    run_module("evaluate", trained, "scores=recovery")
    with Image.open(trained / "confusion_train.png") as picture:
        assert picture.width == 3 * 44  # two classes and the names of the rows
        assert picture.height >= 2 * 26
    names = json.loads((trained / "scores.json").read_text())["scores"]
    assert "accuracy_train_hungarian" in names
    assert not any("test" in name for name in names)  # without held-out images


def test_a_quiet_evaluation_prints_its_result_only(run_module: Runner, trained: Path):
    done = run_module("evaluate", trained, "scores=recovery", "--quiet")
    assert done.stderr == ""
    assert "accuracy_train_hungarian" in done.stdout
    assert "1/1" in run_module("evaluate", trained, "scores=recovery").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scores=recoverr"], "recoverr"),
        (["scores=fidelity"], "scores.features=FILE"),
        (["scores=disentanglement", "data.shards={plain}"], "known factors"),
        (["data={tmp}/nowhere"], "no shard set there"),
        (["data={other}"], "images of [1, 4, 4]"),
        (["step=7"], "no complete checkpoint of step 7"),
        (["recovery"], "not key=value"),
        (["scores.imagess=3"], "did you mean scores.images"),
    ],
)
def test_an_impossible_evaluation_is_refused_in_one_line(
    run_module: Runner, trained: Path, small_set: Path, tmp_path: Path, words: list[str], message: str
):
    write_shard_set(images_source(16, (1, 4, 4)), tmp_path / "other", shards=1)
    places = {"tmp": tmp_path, "other": tmp_path / "other", "plain": small_set}
    done = run_module("evaluate", trained, *(w.format(**places) for w in words), status=2)
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert not (trained / "scores.json").exists()


def test_a_folder_without_a_run_is_refused(run_module: Runner, tmp_path: Path):
    assert "no complete checkpoint there" in line_of(run_module("evaluate", tmp_path, status=2))
    assert "no such folder" in line_of(run_module("evaluate", tmp_path / "none", status=2))
