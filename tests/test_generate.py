"""The command that generates images with a trained model, and the model for Python users."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_dist.data.images import to_float
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.generate import main
from infogan_dist.inference import load_model
from tests.config.test_load import QUICK
from tests.conftest import Started


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A short run of the quickstart with two saved steps."""
    run = tmp_path_factory.mktemp("generate") / "run"
    options = [f"data.shards={digits}", "train.steps=4", "checkpoint.every=2", "tracking.trackers=[]"]
    done = Started(run.parent, "train", QUICK, f"run={run}", *options).wait()
    assert done.status == 0, done.stderr
    return run


def generate_npz(run: Path, *words: str) -> dict[str, np.ndarray]:
    out = run / "out.npz"
    main([str(run), *words, "--out", str(out)])
    return dict(np.load(out))


def test_ten_by_ten_random_samples_are_the_default(run: Path, capsys: pytest.CaptureFixture[str]):
    main([str(run)])
    with Image.open(run / "samples.png") as picture:
        assert picture.size == (10 * 58 + 2, 10 * 58 + 2)  # 28 pixels twice enlarged, and gaps of 2
    assert f"{run}/samples.png: 100 images of step 4" in capsys.readouterr().out


def test_a_code_can_be_fixed(run: Path):
    images = generate_npz(run, "codes.digit=1", "codes.style.1=-0.5", "grid=5x4")
    assert images["images"].shape == (20, 28, 28, 1)
    assert set(images["codes.digit"].flatten()) == {1}
    assert set(images["codes.style"][:, 1]) == {-0.5}
    assert len(set(images["codes.style"][:, 0])) == 20


def test_a_traversal_varies_one_variable_and_fixes_the_rest(run: Path):
    images = generate_npz(run, "traverse=style.0", "grid=3x5", "codes.digit=7")
    style = images["codes.style"].reshape(3, 5, 2)
    assert np.array_equal(style[:, :, 0], np.tile(np.linspace(-1, 1, 5, dtype=np.float32), (3, 1)))
    assert all(len(set(row[:, 1])) == 1 for row in style)
    assert set(images["codes.digit"].flatten()) == {7}
    assert generate_npz(run, "traverse=digit", "grid=2x5")["codes.digit"].flatten().tolist() == [
        *range(10),
        *range(10),
    ]


def test_seed_and_step_select_the_images(run: Path):
    first = generate_npz(run)["images"]
    assert np.array_equal(generate_npz(run, "step=4")["images"], first)
    assert not np.array_equal(generate_npz(run, "seed=1")["images"], first)
    assert not np.array_equal(generate_npz(run, "step=2")["images"], first)
    assert np.array_equal(generate_npz(run / "checkpoints" / "step_00000004")["images"], first)


def test_generate_draws_the_same_pictures_as_the_run(run: Path):
    main([str(run), "traverse=style.1", "--out", str(run / "again.png")])
    logged = np.asarray(Image.open(run / "pictures" / "step_00000004" / "traversal_style.1.png"))
    assert np.array_equal(np.asarray(Image.open(run / "again.png")), logged)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["codes.digit=12"], "digit takes a whole number from 0 to 9"),
        (["codes.style.0=5"], "style.0 takes a number from -1 to 1"),
        (["codes.colour=1"], "there are digit, style.0, style.1"),
        (["traverse=style"], "there are digit, style.0, style.1"),
        (["traverse=digit", "codes.digit=1"], "is fixed too"),
        (["grid=5"], "grid=5x5"),
        (["grid=0x5"], "grid=5x5"),
        (["step=3"], "saved steps: 2, 4"),
        (["seed=x"], "whole number"),
        (["sed=1"], "there are codes.NAME, grid, traverse, step, seed"),
        (["--out", "x.jpg"], ".png or .npz"),
    ],
)
def test_an_impossible_request_is_refused_in_one_line(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        main([str(run), *words])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing")])
    assert "no complete checkpoint there" in capsys.readouterr().err


def test_a_loaded_model_samples_traverses_and_encodes(run: Path):
    model = load_model(run)
    assert model.step == 4
    latents = model.sample(12, seed=3, codes={"digit": "4"})
    images = model.generate(latents)
    assert images.shape == (12, 1, 28, 28)
    assert images.abs().max() <= 1
    posteriors = model.encode(images)
    assert posteriors["digit"].batch_shape == (12, 1)
    assert posteriors["style"].batch_shape == (12, 2)
    latents, columns = model.traverse("style.1", rows=2, columns=3)
    assert columns == 3
    assert latents.codes["style"][:, 1].tolist() == [-1, 0, 1, -1, 0, 1]


def test_a_loaded_model_encodes_as_the_scores_do(run: Path, digits: Path):
    """With running statistics, a batch of one gives the same posterior as a larger batch."""
    model = load_model(run)
    shard = read_shard(load_manifest(str(digits)), 0)
    images = to_float(torch.from_numpy(shard.images[:5]), torch.float32)
    together = model.encode(images)["digit"]
    alone = model.encode(images[2:3])["digit"]
    torch.testing.assert_close(
        alone.log_prob(torch.tensor([[3]])), together.log_prob(torch.full((5, 1), 3))[2:3]
    )
