"""Files of CIFAR-10, NPZ files and Parquet files are read as they were written, or the wrong one is named."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infogan_dist.creation.arrays import npz
from infogan_dist.creation.cifar import cifar10
from infogan_dist.creation.encode import encode_samples
from infogan_dist.creation.parquet import parquet
from infogan_dist.creation.source import Source
from infogan_dist.data.shards import Manifest, load_manifest, read_shard
from infogan_dist.errors import DataError
from infogan_dist.make_shards import main

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (10, 3, 32, 32), np.uint8)
LABELS = [3, 9, 0, 1, 1, 2, 8, 8, 5, 4]


def pairs_of(source: Source | Manifest) -> list[tuple[bytes, int]]:
    """Images and labels of a source, in its order, or of a shard set, in any order."""
    if isinstance(source, Source):
        samples = [source.read(i) for i in range(source.count)]
        assert [label for _, label in samples] == [source.label(i) for i in range(source.count)]
        return [(np.ascontiguousarray(image).tobytes(), label) for image, label in samples]
    shards = [read_shard(source, i) for i in range(len(source.shards))]
    return sorted(
        (image.tobytes(), int(label))
        for shard in shards
        for image, label in zip(shard.images, shard.labels, strict=True)
    )


EXPECTED = [(image.tobytes(), label) for image, label in zip(COLOUR, LABELS, strict=True)]


def save_cifar(folder: Path, version: str) -> None:
    """Write training batches of two images each, as of the Python or the binary version."""
    folder.mkdir(parents=True)
    for i in range(5):
        images, labels = COLOUR[2 * i : 2 * i + 2].reshape(2, -1), LABELS[2 * i : 2 * i + 2]
        if version == "py":
            batch = {b"batch_label": b"x", b"labels": labels, b"data": images, b"filenames": [b"a", b"b"]}
            (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch, protocol=2))
        else:
            records = np.concatenate([np.array(labels, np.uint8)[:, None], images], 1)
            (folder / f"data_batch_{i + 1}.bin").write_bytes(records.tobytes())


@pytest.mark.parametrize("version", ["py", "bin"])
@pytest.mark.parametrize("subfolder", [True, False])
def test_both_versions_of_cifar10_are_read(tmp_path: Path, version: str, subfolder: bool):
    save_cifar(tmp_path / f"cifar-10-batches-{version}" if subfolder else tmp_path / "x", version)
    source = cifar10(tmp_path if subfolder else tmp_path / "x", "train")
    assert pairs_of(source) == EXPECTED
    assert (source.name, source.label_names[3]) == ("cifar10-train", "cat")


def test_cifar10_becomes_a_shard_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_cifar(tmp_path / "in", "bin")
    (tmp_path / "in" / "data_batch_1.bin").rename(tmp_path / "in" / "test_batch.bin")
    main(["cifar10", "--from", "in", "--split", "test", "--shards", "1"])
    assert pairs_of(load_manifest("shards/cifar10-test")) == sorted(EXPECTED[:2])


class Command:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_of_a_batch_calls_no_function(tmp_path: Path):
    save_cifar(tmp_path / "in", "py")
    batch = {b"labels": [1], b"data": Command(tmp_path / "called")}
    (tmp_path / "in" / "data_batch_3").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_3: not a complete batch .*posix\.mkdir"):
        cifar10(tmp_path / "in", "train")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("version", "content", "message"),
    [
        ("bin", b"x" * 3072, r"data_batch_2\.bin: not a complete batch"),
        ("bin", b"", r"data_batch_2\.bin: not a complete batch"),
        ("bin", b"\x0a" * 3073, "labels from 1 to 10, but names of 10 classes"),
        ("py", b"", "data_batch_2: not a complete batch"),
        ("py", pickle.dumps({b"labels": [1], b"data": b""}), "data_batch_2: not a complete batch"),
        ("py", None, "data_batch_1, .* are not all there"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path: Path, version: str, content: bytes | None, message: str):
    save_cifar(tmp_path / "in", version)
    path = tmp_path / "in" / f"data_batch_2{'.bin' if version == 'bin' else ''}"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        cifar10(tmp_path / "in", "train")


@pytest.mark.parametrize(
    "images",
    [COLOUR, COLOUR.transpose(0, 2, 3, 1), COLOUR[:, 0], COLOUR[:, :1], COLOUR[:, 0, :, :, None]],
    ids=["NCHW", "NHWC", "NHW", "N1HW", "NHW1"],
)
@pytest.mark.parametrize("column", [False, True])
def test_arrays_are_read_in_every_order_of_their_dimensions(tmp_path: Path, images: np.ndarray, column: bool):
    labels = np.array(LABELS)[:, None] if column else np.array(LABELS)
    np.savez(tmp_path / "my.npz", images=images, labels=labels)
    expected = COLOUR if images.size == COLOUR.size else COLOUR[:, :1]
    source = npz(tmp_path / "my.npz")
    assert pairs_of(source) == [(image.tobytes(), k) for image, k in zip(expected, LABELS, strict=True)]
    assert source.read(0)[0].shape == expected.shape[1:]
    assert (source.name, source.label_names) == ("my", [str(i) for i in range(10)])


def test_an_npz_file_becomes_a_shard_set(tmp_path: Path):
    np.savez_compressed(tmp_path / "my.npz", x_train=COLOUR, y_train=np.array(LABELS, np.uint8))
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    names = ["--images", "x_train", "--labels", "y_train", "--names", str(tmp_path / "names.txt")]
    out = str(tmp_path / "set")
    main(["npz", "--from", str(tmp_path / "my.npz"), *names, "--shards", "2", "--out", out])
    assert pairs_of(load_manifest(out)) == sorted(EXPECTED)
    assert load_manifest(out).label_names == list("abcdefghij")


def test_an_npz_file_may_have_no_labels(tmp_path: Path):
    np.savez(tmp_path / "my.npz", images=COLOUR)
    source = npz(tmp_path / "my.npz")
    assert (source.label_names, pairs_of(source)[0][1]) == ([], -1)


@pytest.mark.parametrize(
    ("arrays", "labels", "message"),
    [
        ({"x": COLOUR}, None, r"contains x, but no array images; choose with --images"),
        ({"images": COLOUR}, "y", r"contains images, but no array y; choose"),
        ({"images": COLOUR / 255}, None, r"images of type float64 and shape \[10, 3, 32, 32\]"),
        ({"images": COLOUR[:, :2]}, None, r"shape \[10, 2, 32, 32\]"),
        ({"images": COLOUR[:0]}, None, "contains no images"),
        ({"images": COLOUR, "labels": np.zeros((10, 2), int)}, None, r"labels is int64 \[10, 2\]"),
        ({"images": COLOUR, "labels": np.zeros(10)}, None, r"labels is float64 \[10\]"),
        ({"images": COLOUR, "labels": np.zeros(9, int)}, None, "10 images but 9 labels"),
        ({"images": COLOUR, "labels": np.full(10, -2)}, None, "labels from -2 to -2"),
        ({"images": COLOUR, "labels": np.full(10, 10**9)}, None, "labels up to 1,000,000,000"),
        ({"images": np.array([{}, None])}, None, "not a readable NPZ file .*allow_pickle"),
        (None, None, "not a readable NPZ file"),
    ],
)
def test_wrong_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray] | None, labels: str | None, message: str
):
    path = tmp_path / "my.npz"
    if arrays is None:
        path.write_bytes(b"no archive")
    else:
        np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        npz(path, labels=labels)


def test_a_damaged_npz_file_is_reported(tmp_path: Path):
    np.savez_compressed(tmp_path / "my.npz", images=COLOUR)
    content = bytearray((tmp_path / "my.npz").read_bytes())
    content[1000:1100] = b"\xff" * 100
    (tmp_path / "my.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a readable NPZ file"):
        npz(tmp_path / "my.npz")


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


def save_parquet(path: Path, columns: dict[str, list[Any]], names: list[str] | None = None) -> Path:
    """Write a file; `names` are stored as by the library datasets."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(exist_ok=True)
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_files_become_a_shard_set(tmp_path: Path, nested: bool):
    images: list[Any] = [png(image) for image in COLOUR]
    if nested:
        images = [{"bytes": content, "path": None} for content in images]
    names = [f"class {k}" for k in range(10)]
    for i in range(2):
        rows = slice(5 * i, 5 * i + 5)
        columns = {"id": list(range(5)), "label": LABELS[rows], "image": images[rows]}
        save_parquet(tmp_path / "in" / f"train-{i}.parquet", columns, names)
    out = str(tmp_path / "set")
    main(["parquet", "--from", str(tmp_path / "in"), "--label", "label", "--shards", "2", "--out", out])
    manifest = load_manifest(out)
    assert pairs_of(manifest) == sorted(EXPECTED)
    assert (manifest.name, manifest.label_names) == ("in", names)


def source_of(path: Path, label: str | None = "label") -> Source:
    return parquet(path, "image", label, None, None)


def test_names_and_missing_labels_of_a_parquet_file(tmp_path: Path):
    images = [png(image) for image in COLOUR[:4]]
    path = save_parquet(tmp_path / "a.parquet", {"image": images, "label": ["b10", None, "b9", "b10"]})
    source = source_of(path)
    assert source.label_names == ["b9", "b10"]
    assert [label for _, label in pairs_of(source)] == [1, -1, 0, 1]
    numbers = save_parquet(tmp_path / "b.parquet", {"image": images, "label": [2, None, 0, 1]})
    assert source_of(numbers).label_names == ["0", "1", "2"]
    assert source_of(numbers, None).label_names == []
    assert parquet(numbers, "image", None, (1, 8, 9), None).read(0)[0].shape == (1, 8, 9)


def test_jpeg_files_of_a_parquet_file_are_stored_as_they_are_on_request(tmp_path: Path):
    buffer = io.BytesIO()
    Image.fromarray(COLOUR[0].transpose(1, 2, 0)).save(buffer, "jpeg")
    path = save_parquet(tmp_path / "a.parquet", {"image": [buffer.getvalue()], "label": [0]})
    source = parquet(path, "image", None, None, None, keep_encoding=True)
    assert buffer.getvalue() in encode_samples(source, [0])
    assert buffer.getvalue() not in encode_samples(source_of(path), [0])


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"img": [b""], "label": [1]}, None, "has no column image; choose among img, label with --image"),
        ({"image": [b""], "klass": [1]}, None, "has no column label; choose among image, klass"),
        ({"image": ["x"], "label": [1]}, None, "the column image is string, not the bytes of images"),
        ({"image": [png(COLOUR[0])], "label": [0.5]}, None, "has neither integers nor names"),
        ({"image": [png(COLOUR[0])], "label": [2]}, ["a", "b"], "labels from 2 to 2 of 2 classes"),
        ({"image": [png(COLOUR[0])], "label": [-2]}, None, "labels from -2 to -2 of 0 classes"),
        ({"image": [b"x"], "label": [0]}, None, "image 0: not a readable image"),
        ({"image": [png(COLOUR[0]), None], "label": [0, 0]}, None, "image 1: no image; leave the row out"),
        (
            {"image": [png(COLOUR[0]), png(COLOUR[0, :, :9])], "label": [0, 0]},
            None,
            r"image 1: shape \[3, 9, 32\] .*--size 32x32 --mode colour",
        ),
    ],
)
def test_wrong_columns_are_refused(
    tmp_path: Path, columns: dict[str, list[Any]], names: list[str] | None, message: str
):
    path = save_parquet(tmp_path / "a.parquet", columns, names)
    with pytest.raises(DataError, match=message):
        pairs_of(source_of(path))


def test_a_missing_parquet_file_is_refused(tmp_path: Path):
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="contains no Parquet files"):
        source_of(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        source_of(tmp_path)
