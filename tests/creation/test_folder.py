"""Folders of images: what becomes an image and a class, and what is reported."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.creation.folder import FORMATS
from infogan_dist.creation.sources import folder
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from infogan_dist.make_shards import main
from tests.creation.test_index import error_line


def save(path: Path, value: int = 7, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_links_are_followed_and_a_loop_is_refused(tmp_path: Path):
    save(tmp_path / "elsewhere" / "cats" / "a.png", 1)
    save(tmp_path / "in" / "dogs" / "b.png", 2)
    (tmp_path / "in" / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "in" / "dogs" / "c.png").symlink_to(tmp_path / "elsewhere" / "cats" / "a.png")
    source = folder(tmp_path / "in", None)
    assert source.label_names == ["cats", "dogs"]
    assert [(int(source.read(i)[0].max()), source.read(i)[1]) for i in range(source.count)] == [
        (1, 0),
        (2, 1),
        (1, 1),
    ]
    (tmp_path / "in" / "cats" / "up").symlink_to(tmp_path / "in")
    with pytest.raises(DataError, match="cats/up: a link to a folder that contains it; remove the link"):
        folder(tmp_path / "in", None)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path):
    for name in ("a.png", "._a.png", ".thumb.png", ".old/c.png", "../.ipynb_checkpoints/b.png"):
        save(tmp_path / "cats" / name)
    source = folder(tmp_path, None)
    assert (source.count, source.label_names) == (1, ["cats"])


@pytest.mark.parametrize(
    ("names", "recommended"),
    [(["train", "val"], "train"), (["Test", "Valid"], "Valid"), (["train", "cats"], None)],
)
def test_parts_of_a_data_set_that_become_classes_are_reported(
    names: list[str], recommended: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name in names:
        save(tmp_path / name / "cats" / "a.png")
    with caplog.at_level(logging.WARNING):
        assert folder(tmp_path, None).count == 2
    assert [message.endswith(f"use --from {tmp_path}/{recommended}") for message in caplog.messages] == (
        [True] if recommended else []
    )


def test_all_bad_images_are_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for i in range(14):
        save(tmp_path / "in" / f"{i:02d}.png", i)
    for i in range(11):
        (tmp_path / "in" / f"bad{i:02d}.png").write_bytes(b"no png")
    save(tmp_path / "in" / "wide.png", size=(9, 8))
    (tmp_path / "in" / "z.png").symlink_to("gone")
    arguments = ["folder", "--from", str(tmp_path / "in"), "--out", str(tmp_path / "set"), "--shards", "2"]
    line = error_line(arguments, capsys)
    assert f"{tmp_path}/in: 13 of 27 images cannot be used: " in line
    assert line.count("/bad") == 10
    assert line.endswith("and 3 more; correct them, or leave them out with --skip-broken")
    assert not (tmp_path / "set").exists()
    main([*arguments, "--skip-broken"])
    assert "warning: " in capsys.readouterr().err
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.shard_sizes == [7, 7]
    values = np.concatenate([read_shard(manifest, i).images[:, 0, 0, 0] for i in range(2)])
    assert sorted(values.tolist()) == list(range(14))


def test_a_folder_without_a_usable_image_is_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no png")
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        folder(tmp_path, None, skip_broken=True)


def test_a_folder_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "a" / "a.png")

    def scandir(path: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        folder(tmp_path, None)


def test_the_first_page_is_read_and_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pages = [Image.new("L", (8, 8), value) for value in (10, 200)]
    for name in ("a.tif", "b.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with caplog.at_level(logging.WARNING):
        source = folder(tmp_path, (1, 8, 8))
    assert caplog.messages == [
        f"{tmp_path}: 2 images have several frames or pages; the first of each is used"
    ]
    assert [int(source.read(i)[0].max()) for i in range(2)] == [10, 10]


def test_the_formats_are_those_of_the_endings():
    endings = Image.registered_extensions()
    from infogan_dist.creation.folder import IMAGE_ENDINGS

    assert {endings[ending] for ending in IMAGE_ENDINGS} == set(FORMATS)
