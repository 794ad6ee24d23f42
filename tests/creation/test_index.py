"""Foreign tars are indexed completely; what is wrong with them is reported at the end, by name."""

import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.creation.index import index_tars
from infogan_dist.creation.tar_index import TarOptions
from infogan_dist.data.images import encode_png
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from infogan_dist.make_shards import main
from tests.data.test_tars import six, tar_of


def png(value: int = 7, size: tuple[int, int] = (8, 8)) -> bytes:
    return encode_png(np.full((1, size[1], size[0]), value, np.uint8))


def image_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, *members: tuple[str, bytes]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tar_of(*members))
    return str(path)


def error_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `make_shards` with a mistake, and return its only line on stderr apart from progress."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "%, " not in line]
    assert line.startswith("error: ")
    return line


def test_all_bad_tars_and_samples_are_named_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    urls = [write(tmp_path / f"{i:02d}.tar", ("a.png", png(i))) for i in range(4)]
    urls.append(write(tmp_path / "empty.tar"))
    (tmp_path / "cut.tar").write_bytes(six()[:5000])
    urls.append(str(tmp_path / "cut.tar"))
    urls.append(write(tmp_path / "broken.tar", ("a.png", png()), ("b.png", b"no png"), ("c.cls", b"1")))
    urls.append(str(tmp_path / "gone.tar"))
    line = error_line(["tars", *urls, "--out", str(tmp_path / "set")], capsys)
    assert "tars: 5 problems in 8 tars: " in line
    for problem in (
        "empty.tar: contains no samples",
        "cut.tar: not a readable tar",
        "broken.tar, b.png: not a readable",
        "broken.tar, c: no image",
        "gone.tar: no such tar",
    ):
        assert problem in line
    assert line.endswith("or use --skip-broken")
    assert not (tmp_path / "set").exists()
    main(["tars", *urls, "--out", str(tmp_path / "set"), "--skip-broken"])
    warnings = capsys.readouterr().err
    assert "1 samples cannot be decoded; train with data.on_error=skip" in warnings
    assert "3 of 8 tars cannot be used and are left out" in warnings
    assert f"1 files are part of no sample with an image, such as {tmp_path}/broken.tar, c" in warnings
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.shard_sizes == [1, 1, 1, 1, 2]
    assert read_shard(manifest, 4, skip=True).substituted.tolist() == [False, True]


def test_of_many_problems_ten_are_named(tmp_path: Path):
    for i in range(25):
        (tmp_path / f"{i:02d}.tar").write_bytes(b"no tar")
    with pytest.raises(DataError) as error:
        index_tars([f"{tmp_path}/{{00..24}}.tar"], tmp_path / "set", "x")
    message = str(error.value)
    assert message.startswith("x: 25 problems in 25 tars: ")
    assert message.count("not a readable tar") == 10
    assert "09.tar" in message
    assert "10.tar" not in message
    assert "and 15 more; correct them" in message


def test_the_image_of_a_sample_is_chosen_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photo = image_bytes(Image.new("L", (8, 8), 200), "jpeg")
    url = write(tmp_path / "x.tar", ("a.jpg", photo), ("a.png", png(1)), ("b.png", png(2)), ("b.jpg", photo))
    line = error_line(["tars", url, "--out", str(tmp_path / "set")], capsys)
    assert "a: several images, jpg, png" in line
    for ending, values in (("jpg", [200, 200]), (".PNG", [1, 2])):
        out = tmp_path / ending
        main(["tars", url, "--out", str(out), "--image", ending, "--size", "8", "--mode", "grey"])
        assert read_shard(load_manifest(str(out)), 0).images[:, 0, 0, 0].tolist() == values
    a, b = (load_manifest(str(tmp_path / ending)) for ending in ("jpg", ".PNG"))
    assert a.shards == b.shards
    assert a.fingerprint() != b.fingerprint()
    assert "--image: txt is no image" in error_line(["tars", url, "--image", "txt"], capsys)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"99999999999999999999", "not a class from 0 to 999,999"),
        (b"1000000", "not a class from 0 to 999,999"),
        (b"-7", "not a class from 0 to 999,999"),
        (b"9" * 5000, "not an integer"),
        (b"1.0", "not an integer"),
    ],
)
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, label: bytes, message: str):
    url = write(tmp_path / "x.tar", ("a.png", png()), ("a.cls", label))
    with pytest.raises(DataError, match=rf"x\.tar, a\.cls: {message}"):
        index_tars([url], tmp_path / "set", "x")


def test_a_label_without_a_name_is_refused_when_it_is_read(tmp_path: Path):
    url = write(tmp_path / "x.tar", ("a.png", png()), ("a.cls", b"2"))
    index_tars([url], tmp_path, "x")
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_names": ["cat", "dog"]}))
    with pytest.raises(DataError, match=r"x\.tar, a\.cls: not a class from 0 to 1"):
        read_shard(load_manifest(str(tmp_path)), 0)


def test_images_without_a_label_among_labelled_ones_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    url = write(tmp_path / "x.tar", ("a.png", png()), ("a.cls", b"1"), ("b.png", png()))
    plain = write(tmp_path / "y.tar", ("a.png", png()), ("b.png", png(9)))
    with caplog.at_level(logging.WARNING):
        index_tars([plain], tmp_path / "plain", "x")
        assert caplog.messages == []
        manifest = index_tars([url], tmp_path / "set", "x")
    assert caplog.messages == [
        f"1 of 2 images have no label, such as {url}, b; scores that need labels cannot be computed"
    ]
    assert read_shard(manifest, 0).labels.tolist() == [1, -1]


def test_files_that_are_no_images_are_no_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    members = [("README.md", b"hello"), ("a.png", png()), ("._a.png", b"fork"), ("b.png", b"no png")]
    with caplog.at_level(logging.WARNING):
        url = write(tmp_path / "x.tar", *members)
        manifest = index_tars([url], tmp_path / "set", "x", TarOptions(skip_broken=True))
    assert manifest.samples == 2
    assert any(message.startswith("2 files are part of no sample") for message in caplog.messages)
    assert read_shard(manifest, 0, skip=True).substituted.tolist() == [False, True]


def test_tars_within_the_folder_of_the_manifest_move_with_it(tmp_path: Path):
    inside = write(tmp_path / "set" / "a.tar", ("a.png", png()))
    outside = write(tmp_path / "b.tar", ("a.png", png(9)))
    index_tars([inside, outside], tmp_path / "set", "x")
    shutil.move(tmp_path / "set", tmp_path / "moved")
    manifest = load_manifest(str(tmp_path / "moved"))
    assert [shard.url for shard in manifest.shards] == ["a.tar", outside]
    assert read_shard(manifest, 0).images.max() == 7


def test_tars_may_be_given_by_file_url_and_from_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for i in range(2):
        write(tmp_path / f"{i}.tar", ("a.png", png(i)))
    monkeypatch.setenv("HOME", str(tmp_path))
    manifest = index_tars(["~/{0..0}.tar", f"file://{tmp_path}/1.tar"], tmp_path / "set", "x")
    assert [shard.url for shard in manifest.shards] == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar"]


def test_a_tar_that_is_given_twice_is_refused_and_a_copy_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    url = write(tmp_path / "x.tar", ("a.png", png()))
    with pytest.raises(DataError, match=r"x\.tar: given more than once"):
        index_tars([url, f"{tmp_path}/*.tar"], tmp_path / "set", "x")
    shutil.copy(url, tmp_path / "y.tar")
    with caplog.at_level(logging.WARNING):
        index_tars([f"{tmp_path}/*.tar"], tmp_path / "set", "x")
    assert caplog.messages == [f"2 tars are copies of others, such as {url} and {tmp_path}/y.tar"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0..1.tar"], "{0..1.tar: unbalanced braces"),
        (["x.tar", "typo-*.tar"], "typo-*.tar: no such tars"),
        (["x.tar", "--background", "transparentish"], "--background: transparentish is not a colour"),
        (["x.tar", "--background", "#00000080"], "--background: #00000080 is not a colour"),
        (["x.tar", "--size", "32x"], "--size: 32x is not a number of pixels"),
        (["x.tar", "--size", "0x4"], "--size: 0x4 is not a number of pixels"),
        (["."], "cannot be read (Is a directory)"),
        (
            ["two.tar"],
            "[1, 8, 9] instead of [1, 8, 8]; leave it out, or fit all with --size 8 ",
        ),
        (["dots.tar"], "img_0: several images, 5.png, 7.png; the key of a sample ends at the first dot"),
    ],
)
def test_a_mistake_gets_one_line_with_its_remedy(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.tar", ("a.png", png()))
    write(tmp_path / "two.tar", ("a.png", png()), ("b.png", png(size=(9, 8))))
    write(tmp_path / "dots.tar", ("img_0.5.png", png()), ("img_0.7.png", png()))
    assert message in error_line(["tars", *arguments, "--out", "set"], capsys)
    assert not (tmp_path / "set").exists()


def test_size_is_width_and_height(tmp_path: Path):
    url = write(tmp_path / "x.tar", ("a.png", png(size=(40, 40))))
    main(["tars", url, "--out", str(tmp_path / "set"), "--size", "32x24"])
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.image_shape == (3, 24, 32)
    assert read_shard(manifest, 0).images.shape == (1, 3, 24, 32)


def test_the_background_is_part_of_the_manifest(tmp_path: Path):
    url = write(tmp_path / "x.tar", ("a.png", image_bytes(Image.new("LA", (8, 8), (90, 0)), "png")))
    fingerprints = []
    for background, value in ((None, 90), ("white", 255)):
        out = tmp_path / str(background)
        main(["tars", url, "--out", str(out), *(["--background", background] if background else [])])
        manifest = load_manifest(str(out))
        assert read_shard(manifest, 0).images.max() == value
        fingerprints.append(manifest.fingerprint())
    assert fingerprints[0] != fingerprints[1]


def test_animations_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    animation = image_bytes(frames[0], "png", save_all=True, append_images=frames[1:])
    url = write(tmp_path / "x.tar", ("a.png", animation), ("b.png", animation))
    with caplog.at_level(logging.WARNING):
        manifest = index_tars([url], tmp_path / "set", "x")
    assert caplog.messages == ["2 images have several frames; the first of each is used"]
    assert read_shard(manifest, 0).images.max() == 10
