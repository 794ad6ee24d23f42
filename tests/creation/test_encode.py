"""JPEG files are stored as they are only if they are asked for and are read as the same pixels."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.creation.sources import folder
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.make_shards import main


def save(
    path: Path, number: int, size: tuple[int, int] = (16, 12), mode: str = "RGB", **options: str
) -> bytes:
    """Write a random image, and return the bytes of its file."""
    path.parent.mkdir(exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


def members_of(out: Path) -> dict[str, bytes]:
    """The members of all shards of a set by name."""
    members = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                stream = tar.extractfile(info)
                assert stream is not None
                members[info.name] = stream.read()
    return members


def endings_of(out: Path) -> list[str]:
    return sorted(name.partition(".")[2] for name in members_of(out))


def images_of(out: Path) -> list[bytes]:
    return sorted(image.tobytes() for image in read_shard(load_manifest(str(out)), 0).images)


def write(source: Path, out: Path, *options: str) -> Path:
    main(["folder", "--from", str(source), "--shards", "1", "--out", str(out), "--quiet", *options])
    return out


@pytest.mark.parametrize("options", [[], ["--size", "16x12"]])
def test_jpeg_files_are_stored_as_they_are_on_request(tmp_path: Path, options: list[str]):
    files = [save(tmp_path / "in" / f"{i}.jpg", i) for i in range(3)]
    plain = write(tmp_path / "in", tmp_path / "png", *options)
    stored = write(tmp_path / "in", tmp_path / "jpg", "--keep-encoding", *options)
    assert endings_of(plain) == ["png"] * 3
    assert sorted(members_of(stored).values()) == sorted(files)
    assert endings_of(stored) == ["jpg"] * 3
    assert images_of(plain) == images_of(stored)


@pytest.mark.parametrize("options", [["--size", "8"], ["--size", "16x12", "--mode", "grey"]])
def test_an_image_that_is_changed_is_stored_as_png(tmp_path: Path, options: list[str]):
    save(tmp_path / "in" / "a.jpg", 0)
    stored = write(tmp_path / "in", tmp_path / "jpg", "--keep-encoding", *options)
    assert endings_of(stored) == ["png"]
    assert images_of(stored) == images_of(write(tmp_path / "in", tmp_path / "png", *options))


def test_each_image_of_a_mixed_folder_is_read_as_its_own_pixels(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    upright = io.BytesIO()
    Image.new("RGB", (12, 16), (200, 10, 10)).save(upright, "jpeg", exif=exif)
    files = {
        "same.jpg": save(tmp_path / "in" / "same.jpg", 0),
        "turned.jpg": upright.getvalue(),
        "lossless.png": save(tmp_path / "in" / "lossless.png", 1),
        "other.jpg": save(tmp_path / "in" / "other.jpg", 2, format="png"),  # a PNG by another name
        "large.jpg": save(tmp_path / "in" / "large.jpg", 3, (32, 24)),
        "grey.jpg": save(tmp_path / "in" / "grey.jpg", 4, mode="L"),
    }
    (tmp_path / "in" / "turned.jpg").write_bytes(files["turned.jpg"])
    stored = write(tmp_path / "in", tmp_path / "set", "--keep-encoding", "--size", "16x12")
    members = members_of(stored)
    jpegs = {content for name, content in members.items() if name.endswith("jpg")}
    assert jpegs == {files["same.jpg"], files["turned.jpg"]}
    assert len(members) == 6
    source = folder(tmp_path / "in", (3, 12, 16))
    assert images_of(stored) == sorted(source.read(i)[0].tobytes() for i in range(6))


def test_an_existing_set_of_another_encoding_is_another_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save(tmp_path / "in" / "a.jpg", 0)
    write(tmp_path / "in", tmp_path / "set")
    with pytest.raises(SystemExit):
        write(tmp_path / "in", tmp_path / "set", "--keep-encoding")
    assert "(encoding: PNG -> JPEG files as they are)" in capsys.readouterr().err
