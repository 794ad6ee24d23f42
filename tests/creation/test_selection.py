"""Parts of a source: what is taken of an image does not depend on the other images."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infogan_dist.creation.selection import Selection, hold_out, select
from infogan_dist.creation.source import Source
from infogan_dist.data.shards import Manifest, load_manifest, read_shard
from infogan_dist.errors import ConfigError
from infogan_dist.make_shards import main
from tests.creation.test_sources import save_image


def keyed_source(keys: Sequence[int], labelled: bool = True) -> Source:
    """Images that contain their keys, whose last digits are their classes."""

    def read(i: int) -> tuple[np.ndarray, int]:
        return np.full((1, 2, 2), keys[i] % 256, np.uint8), keys[i] % 10 if labelled else -1

    names = [f"class {k}" for k in range(10)] if labelled else []
    return Source("keyed", len(keys), names, read, key_of=lambda i: str(keys[i]))


def keys_of(source: Source) -> list[int]:
    return [int(source.key_of(i)) for i in range(source.count)]


def test_a_held_out_part_is_a_random_part_of_the_images():
    source = keyed_source(range(4000))
    training, held_out = hold_out(source, 0.25)
    assert (training.name, held_out.name) == ("keyed", "keyed-holdout")
    assert sorted(keys_of(training) + keys_of(held_out)) == list(range(4000))
    # Five standard deviations of a binomial count, over all images and in each class of 400.
    assert abs(held_out.count - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    counts = np.bincount([held_out.label(i) for i in range(held_out.count)])
    assert (np.abs(counts - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5).all()
    image, label = held_out.read(0)
    assert (int(image[0, 0, 0]), label) == (keys_of(held_out)[0] % 256, keys_of(held_out)[0] % 10)


def test_an_image_is_held_out_whatever_the_other_images_are():
    everything = set(keys_of(hold_out(keyed_source(range(1000)), 0.2)[1]))
    part = range(999, 0, -7)
    assert set(keys_of(hold_out(keyed_source(part), 0.2)[1])) == everything & set(part)
    assert everything < set(keys_of(hold_out(keyed_source(range(1000)), 0.3)[1]))


def test_a_limit_takes_nested_random_parts_that_hardly_depend_on_other_images():
    source = keyed_source(range(1000))
    parts = [set(keys_of(select(source, Selection(limit=n)))) for n in (10, 100, 2000)]
    assert [len(part) for part in parts] == [10, 100, 1000]
    assert parts[0] < parts[1] < parts[2]
    assert keys_of(select(source, Selection(limit=100))) == sorted(parts[1])  # in the order of the source
    without_one = keyed_source([k for k in range(1000) if k != min(parts[1])])
    assert len(parts[1] & set(keys_of(select(without_one, Selection(limit=100))))) == 99
    # As many images of a limited part are held out as of any other part, within five deviations.
    held_out = set(keys_of(hold_out(source, 0.5)[1]))
    assert abs(len(parts[1] & held_out) - 50) < 5 * (100 * 0.5 * 0.5) ** 0.5


def test_each_class_is_limited():
    part = select(keyed_source(range(57)), Selection(per_class=4))
    assert np.bincount([part.label(i) for i in range(part.count)]).tolist() == [4] * 10
    everything = select(keyed_source(range(57)), Selection(per_class=6))
    assert everything.count == 57


def test_classes_are_numbered_in_the_given_order():
    part = select(keyed_source(range(100)), Selection(classes=["class 7", "class 2"]))
    assert part.label_names == ["class 7", "class 2"]
    assert {(key % 10, part.read(i)[1], part.label(i)) for i, key in enumerate(keys_of(part))} == {
        (7, 0, 0),
        (2, 1, 1),
    }
    assert part.count == 20


def test_labels_are_left_out_after_the_classes_are_chosen():
    part = select(
        keyed_source(range(100)), Selection(classes=["class 7"], per_class=5, limit=3, labels=False)
    )
    assert (part.count, part.label_names, part.label(0), part.read(0)[1]) == (3, [], -1, -1)
    assert {key % 10 for key in keys_of(part)} == {7}


def test_files_remain_those_of_the_image():
    source = replace(keyed_source(range(50)), file_of=lambda i: str(i).encode())
    part = select(source, Selection(limit=9))
    assert part.file_of is not None
    assert [int(part.file_of(i)) for i in range(9)] == keys_of(part)


def test_factors_remain_those_of_the_image():
    source = Source(
        "factors", 50, [], lambda i: (np.zeros((1, 2, 2), np.uint8), -1), {"a": 50}, lambda i: [i]
    )
    part = select(source, Selection(limit=9))
    assert [part.factors_of(i) for i in range(9)] == [[key] for key in keys_of(part)]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(classes=["class 3", "cat"]), "cat is no class of keyed; its classes are class 0, class 1"),
        (Selection(classes=[]), "nothing is no class"),
        (Selection(classes=["class 3", "class 3"]), "contains a class twice"),
        (Selection(limit=0), "--limit: 0 is not a number of images"),
        (Selection(per_class=-1), "--per-class: -1 is not"),
    ],
)
def test_an_impossible_selection_is_refused(selection: Selection, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        select(keyed_source(range(100)), selection)


def test_classes_of_images_without_labels_are_refused():
    source = keyed_source(range(100), labelled=False)
    with pytest.raises(ConfigError, match="keyed have no classes; use --limit"):
        select(source, Selection(per_class=3))
    with pytest.raises(ConfigError, match="its classes are none"):
        select(source, Selection(classes=["class 3"]))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan"), 1e-9])
def test_an_impossible_share_is_refused(share: float):
    with pytest.raises(ConfigError, match="--holdout"):
        hold_out(keyed_source(range(100)), share)


def save_folders(path: Path, count: int) -> None:
    """Save images whose red and green values are their class and number."""
    for name in ("class 2", "class 10", "class 1"):
        for i in range(count):
            save_image(path / name / f"{i}.png", (8, 8), colour=(int(name.split()[1]), i, 0))


def contents(manifest: Manifest) -> list[tuple[int, int, int]]:
    """Class folder, number and label of each image."""
    shards = [read_shard(manifest, i) for i in range(len(manifest.shards))]
    return sorted(
        (int(image[0, 0, 0]), int(image[1, 0, 0]), int(label))
        for shard in shards
        for image, label in zip(shard.images, shard.labels, strict=True)
    )


def test_class_folders_are_in_natural_order(tmp_path: Path):
    save_folders(tmp_path / "in", 1)
    main(["folder", "--from", str(tmp_path / "in"), "--shards", "1", "--out", str(tmp_path / "set")])
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.label_names == ["class 1", "class 2", "class 10"]
    assert contents(manifest) == [(1, 0, 0), (2, 0, 1), (10, 0, 2)]


@pytest.mark.parametrize("flag", ["--classes", "--classes-file"])
def test_the_command_line_writes_a_part_and_a_held_out_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
):
    monkeypatch.chdir(tmp_path)
    save_folders(Path("in"), 40)
    Path("names.txt").write_text("class 10\n\nclass 1\n")
    classes = "class 10,class 1" if flag == "--classes" else "names.txt"
    options = [flag, classes, "--per-class", "30", "--limit", "50", "--holdout", "0.3", "--shards", "2"]
    main(["folder", "--from", "in", *options])
    training, held_out = load_manifest("shards/folder"), load_manifest("shards/folder-holdout")
    assert training.samples + held_out.samples == 50
    assert (training.name, held_out.name) == ("in", "in-holdout")
    assert training.label_names == held_out.label_names == ["class 10", "class 1"]
    everything = contents(training) + contents(held_out)
    assert len(set(everything)) == 50
    assert {(folder, label) for folder, _, label in everything} == {(10, 0), (1, 1)}
    assert len(capsys.readouterr().out.splitlines()) == 2
    main(["folder", "--from", "in", *options])
    output = capsys.readouterr().out
    assert [line.split(":")[0] for line in output.splitlines()] == ["shards/folder", "shards/folder-holdout"]
    assert output.count("already a shard set") == 2


def test_nothing_is_written_if_a_part_has_fewer_images_than_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_folders(tmp_path / "in", 12)
    options = ["--holdout", "0.2", "--shards", "15", "--out", str(tmp_path / "set")]
    with pytest.raises(SystemExit):
        main(["folder", "--from", str(tmp_path / "in"), *options])
    assert "in-holdout: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_labels_are_not_written(tmp_path: Path):
    save_folders(tmp_path / "in", 3)
    out = tmp_path / "set"
    main(["folder", "--from", str(tmp_path / "in"), "--no-labels", "--shards", "1", "--out", str(out)])
    manifest = load_manifest(str(out))
    assert manifest.label_names == []
    assert {label for _, _, label in contents(manifest)} == {-1}
