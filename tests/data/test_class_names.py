"""Class names in the samples of foreign tars become labels, in natural order or in that of a file."""

import json
import re
from pathlib import Path

import pytest

from infogan_dist.creation.index import index_tars
from infogan_dist.creation.tar_index import TarOptions
from infogan_dist.data.class_names import check_label_file, class_name
from infogan_dist.data.shards import Manifest, load_manifest, read_shard
from infogan_dist.errors import ConfigError, DataError
from infogan_dist.make_shards import main
from tests.creation.test_index import error_line, png, write

CLASSES = ["b10", "b9", None, "a", "b10"]


def write_tars(folder: Path, ending: str) -> list[str]:
    """Write two tars whose images have the grey values 0 to 4 and the classes `CLASSES`."""
    files: list[tuple[str, bytes]] = []
    for i, name in enumerate(CLASSES):
        files.append((f"{i}.png", png(i)))
        if ending == "json":
            files.append((f"{i}.json", json.dumps({"id": i, "kind": name}).encode()))
        elif name is not None:
            files.append((f"{i}.{ending}", f"{name}\n".encode()))
    cut = [name for name, _ in files].index("3.png")
    return [write(folder / "a.tar", *files[:cut]), write(folder / "b.tar", *files[cut:])]


def labels_of(manifest: Manifest) -> dict[int, int]:
    """The label of each grey value."""
    shards = [read_shard(manifest, i) for i in range(len(manifest.shards))]
    return {
        int(image[0, 0, 0]): int(label)
        for shard in shards
        for image, label in zip(shard.images, shard.labels, strict=True)
    }


@pytest.mark.parametrize(("ending", "label"), [("cls", "cls"), ("txt", "txt"), ("json", "json:kind")])
@pytest.mark.parametrize("reshard", [False, True])
def test_names_become_labels_in_natural_order(tmp_path: Path, ending: str, label: str, reshard: bool):
    command = ["tars", *write_tars(tmp_path, ending), "--label", label, "--out", str(tmp_path / "set")]
    main([*command, *(["--reshard", "--shards", "2"] if reshard else [])])
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.label_names == ["a", "b9", "b10"]
    assert labels_of(manifest) == {0: 2, 1: 1, 2: -1, 3: 0, 4: 2}


def test_numbers_in_json_are_labels(tmp_path: Path):
    files = [(f"{i}.{kind}", content) for i in range(12) for kind, content in numbered_files(i)]
    url = write(tmp_path / "a.tar", *files)
    manifest = index_tars([url], tmp_path / "set", "x", TarOptions(label="json:y"))
    assert manifest.label_names == [str(i) for i in range(12)]
    assert labels_of(manifest) == {i: i for i in range(12)}


def numbered_files(i: int) -> list[tuple[str, bytes]]:
    return [("json", json.dumps({"y": i}).encode()), ("png", png(i))]


def test_a_file_gives_the_order_and_names_of_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = tmp_path / "names.txt"
    names.write_text("b9\nb10\nunused\na\n")
    options = ["--classes-file", str(names)]
    urls = write_tars(tmp_path, "txt")
    main(["tars", *urls, "--label", "txt", *options, "--out", str(tmp_path / "set")])
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.label_names == ["b9", "b10", "unused", "a"]
    assert labels_of(manifest) == {0: 1, 1: 0, 2: -1, 3: 3, 4: 1}
    names.write_text("a\nb9\n")
    capsys.readouterr()
    line = error_line(["tars", *urls, "--label", "txt", *options, "--out", str(tmp_path / "b")], capsys)
    assert "0: its class b10 is not among the 2 known ones" in line
    numbered = write(tmp_path / "c.tar", ("0.png", png()), ("0.cls", b"1"))
    main(["tars", numbered, *options, "--out", str(tmp_path / "c")])
    assert load_manifest(str(tmp_path / "c")).label_names == ["a", "b9"]
    numbered = write(tmp_path / "d.tar", ("0.png", png()), ("0.cls", b"2"))
    line = error_line(["tars", numbered, *options, "--out", str(tmp_path / "d")], capsys)
    assert "0.cls: not a class from 0 to 1" in line


def test_an_index_with_other_labels_is_another_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["tars", *write_tars(tmp_path, "txt"), "--out", str(tmp_path / "set")]
    main([*command, "--label", "txt"])
    main([*command, "--label", "txt"])
    assert "already a shard set of 5 images" in capsys.readouterr().out
    assert "label: txt -> None; classes: " in error_line(command, capsys)
    (tmp_path / "names.txt").write_text("b10\na\nb9\n")
    line = error_line([*command, "--label", "txt", "--classes-file", str(tmp_path / "names.txt")], capsys)
    assert "(classes: ['a', 'b9', 'b10'] -> ['b10', 'a', 'b9'])" in line


def test_a_class_that_is_in_no_sample_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    urls = write_tars(tmp_path, "json")
    line = error_line(["tars", *urls, "--label", "json:knd", "--out", str(tmp_path / "set")], capsys)
    assert "no sample has a class in json:knd; choose another --label" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting"),
        (b"[1]", "it is no JSON object"),
        (b'{"kind": [1]}', "kind is neither a string nor an integer"),
        (b'{"kind": true}', "kind is neither"),
        (b'{"kind": 0.5}', "kind is neither"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "recursion|nested"),
    ],
)
def test_a_damaged_file_is_named(content: bytes, message: str):
    with pytest.raises(DataError, match=rf"t, x\.json: not the name of a class \(.*({message}).*\)"):
        class_name({"json": content}, "t, x", "json:kind")


@pytest.mark.parametrize("content", [b"{}", b'{"kind": null}', b'{"kind": " "}'])
def test_a_missing_value_is_no_class(content: bytes):
    assert class_name({"json": content}, "x", "json:kind") is None


@pytest.mark.parametrize("label", ["", "json", "cls:a", "a b", "json:", ":key", "x/json:key"])
def test_another_form_of_the_option_is_refused(label: str):
    with pytest.raises(ConfigError, match=re.escape(f"--label: {label} is no file of class names")):
        check_label_file(label)


def test_a_class_that_the_manifest_does_not_list_is_refused(tmp_path: Path):
    url = write(tmp_path / "a.tar", ("0.png", png()), ("0.cls", b"cat"))
    index_tars([url], tmp_path, "x", TarOptions(label="cls"))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_names": ["dog"]}))
    with pytest.raises(DataError, match=r"a\.tar, 0: its class cat is not among the 1 known ones"):
        read_shard(load_manifest(str(tmp_path)), 0)
