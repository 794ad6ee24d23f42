"""IDX files, gzipped or not, are read under their usual names, or the wrong one is reported."""

import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest

from infogan_dist.creation.idx import idx as idx_source
from infogan_dist.creation.idx import mnist, read_idx
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from infogan_dist.make_shards import main


def test_full_mnist_is_read_from_its_files():
    folder = os.environ.get("INFOGAN_MNIST_DIR")
    if folder is None:
        pytest.skip("INFOGAN_MNIST_DIR names no folder of the four MNIST files")
    for split, count, first in (("train", 60_000, [5, 0, 4, 1, 9]), ("test", 10_000, [7, 2, 1, 0, 4])):
        source = mnist(Path(folder), split)
        assert source.count == count
        assert [source.read(i)[1] for i in range(5)] == first  # the first labels of the official files


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    """An IDX file of bytes."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + content


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_idx_files_are_read_gzipped_or_not(tmp_path: Path, compress):
    (tmp_path / "x").write_bytes(compress(idx((2, 3), bytes(range(6)))))
    assert read_idx(tmp_path / "x").tolist() == [[0, 1, 2], [3, 4, 5]]


PACKED = gzip.compress(idx((99,), bytes(range(99))), mtime=0)


@pytest.mark.parametrize(
    "content", [b"", b"hello", idx((2, 3), b"12345"), PACKED[:20], PACKED[:12] + b"\xff" * 9 + PACKED[21:]]
)
def test_a_damaged_idx_file_is_reported(tmp_path: Path, content: bytes):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(DataError, match="broken: not a complete IDX file"):
        read_idx(tmp_path / "broken")


def test_a_folder_without_the_files_is_reported(tmp_path: Path):
    with pytest.raises(DataError, match="train-images"):
        mnist(tmp_path, "train")


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)
LABELS = [0, 2, 1, 2, 9, 0]


def save_pair(folder: Path, split: str, separator: str, ending: str, labels: list[int] = LABELS) -> Path:
    """Write six images of 4x5 pixels and their labels under the usual names."""
    folder.mkdir(exist_ok=True)
    compress = gzip.compress if ending else bytes
    images = idx(PIXELS.shape, PIXELS.tobytes())
    (folder / f"{split}-images{separator}idx3-ubyte{ending}").write_bytes(compress(images))
    (folder / f"{split}-labels{separator}idx1-ubyte{ending}").write_bytes(
        compress(idx((len(labels),), bytes(labels)))
    )
    return folder


@pytest.mark.parametrize(("separator", "ending"), [("-", ""), ("-", ".gz"), (".", ""), (".", ".gz")])
@pytest.mark.parametrize(("split", "file"), [("train", "train"), ("test", "t10k")])
def test_a_folder_of_idx_files_becomes_a_shard_set(
    tmp_path: Path, split: str, file: str, separator: str, ending: str
):
    folder = save_pair(tmp_path / "clothes", file, separator, ending)
    options = ["--split", split, "--names", "fashion-mnist", "--shards", "1", "--out", str(tmp_path / "set")]
    main(["idx", "--from", str(folder), *options])
    manifest = load_manifest(str(tmp_path / "set"))
    assert (manifest.name, manifest.image_shape) == (f"clothes-{split}", (1, 4, 5))
    assert [manifest.label_names[i] for i in (0, 9)] == ["T-shirt/top", "Ankle boot"]
    shard = read_shard(manifest, 0)
    pairs = sorted((im.tobytes(), int(label)) for im, label in zip(shard.images, shard.labels, strict=True))
    assert pairs == sorted((image.tobytes(), label) for image, label in zip(PIXELS, LABELS, strict=True))


@pytest.mark.parametrize(
    ("options", "name", "names"),
    [
        ([], "clothes-train", [str(i) for i in range(10)]),
        (["--name", "mine", "--names", "names.txt"], "mine-train", [f"class {i}" for i in range(10)]),
    ],
)
def test_names_are_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], name: str, names: list[str]
):
    monkeypatch.chdir(tmp_path)
    save_pair(tmp_path / "clothes", "train", "-", "")
    Path("names.txt").write_text("".join(f"class {i}\n" for i in range(10)) + "\n")
    main(["idx", "--from", "clothes", "--shards", "1", *options])
    manifest = load_manifest(f"shards/idx-{name.removesuffix('-train')}")
    assert (manifest.name, manifest.label_names) == (name, names)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        ("none.txt", LABELS, "none.txt: not a readable text file .*--names takes .* or one of fashion-mnist"),
        ("fashion-mnist", [0, 2, 1, 2, 10, 0], "labels from 0 to 10, but names of 10 classes"),
        ("fashion-mnist", LABELS[:5], "6 images but 5 labels"),
        ("fashion-mnist", None, "train-labels-idx1-ubyte.gz is missing"),
    ],
)
def test_wrong_labels_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str, labels: list[int] | None, message: str
):
    save_pair(tmp_path, "train", "-", "", labels or LABELS)
    if labels is None:
        (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["idx", "--from", str(tmp_path), "--names", names, "--out", str(tmp_path / "set")])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_images_in_the_place_of_labels_are_reported(tmp_path: Path):
    save_pair(tmp_path, "train", "-", "")
    (tmp_path / "train-images-idx3-ubyte").replace(tmp_path / "train-labels-idx1-ubyte")
    save_pair(tmp_path / "other", "train", "-", "")
    (tmp_path / "other" / "train-images-idx3-ubyte").replace(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: an array of 3 dimensions instead of 1"):
        idx_source(tmp_path, "train")
