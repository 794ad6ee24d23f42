from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.generate import main
from tests.conftest import Started
from tests.test_settings import QUICK


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A short run of the quickstart with two saved steps."""
    run = tmp_path_factory.mktemp("generate") / "run"
    options = [f"data.shards={digits}", "train.steps=4", "checkpoint.every=2", "tracking.trackers=[]"]
    done = Started(run.parent, "train", QUICK, f"run={run}", *options).wait()
    assert done.status == 0, done.stderr
    return run


def archive(run: Path, *words: str) -> dict[str, np.ndarray]:
    out = run / "out.npz"
    main([str(run), *words, "--out", str(out)])
    return dict(np.load(out))


def test_ten_by_ten_random_samples_are_the_default(run: Path, capsys: pytest.CaptureFixture[str]):
    main([str(run)])
    with Image.open(run / "samples.png") as picture:
        assert picture.size == (10 * 58 + 2, 10 * 58 + 2)  # 28 pixels twice enlarged, and gaps of 2
    assert f"{run}/samples.png: 100 images of step 4" in capsys.readouterr().out


def test_a_code_can_be_fixed(run: Path):
    drawn = archive(run, "codes.digit=1", "codes.style.1=-0.5", "grid=5x4")
    assert drawn["images"].shape == (20, 28, 28, 1)
    assert set(drawn["codes.digit"].flatten()) == {1}
    assert set(drawn["codes.style"][:, 1]) == {-0.5}
    assert len(set(drawn["codes.style"][:, 0])) == 20


def test_a_traversal_runs_one_variable_and_holds_the_rest(run: Path):
    drawn = archive(run, "traverse=style.0", "grid=3x5", "codes.digit=7")
    style = drawn["codes.style"].reshape(3, 5, 2)
    assert np.array_equal(style[:, :, 0], np.tile(np.linspace(-1, 1, 5, dtype=np.float32), (3, 1)))
    assert all(len(set(row[:, 1])) == 1 for row in style)
    assert set(drawn["codes.digit"].flatten()) == {7}
    assert archive(run, "traverse=digit", "grid=2x5")["codes.digit"].flatten().tolist() == [
        *range(10),
        *range(10),
    ]


def test_seed_and_step_choose(run: Path):
    first = archive(run)["images"]
    assert np.array_equal(archive(run, "step=4")["images"], first)
    assert not np.array_equal(archive(run, "seed=1")["images"], first)
    assert not np.array_equal(archive(run, "step=2")["images"], first)
    assert np.array_equal(archive(run / "checkpoints" / "step_00000004")["images"], first)


def test_pictures_of_the_run_are_what_generate_draws(run: Path):
    main([str(run), "traverse=style.1", "--out", str(run / "again.png")])
    logged = np.asarray(Image.open(run / "pictures" / "step_00000004" / "traversal_style.1.png"))
    assert np.array_equal(np.asarray(Image.open(run / "again.png")), logged)


@pytest.mark.parametrize(
    ("words", "says"),
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
def test_what_cannot_be_drawn_is_refused_in_one_line(
    run: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        main([str(run), *words])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing")])
    assert "no whole checkpoint there" in capsys.readouterr().err
