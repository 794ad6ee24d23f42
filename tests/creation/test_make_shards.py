"""The command line of `make_shards`: its subcommands, its messages, and what it imports."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infogan_dist import make_shards
from infogan_dist.creation import sources
from infogan_dist.creation.existing import source_differences
from infogan_dist.creation.selection import SELECTION_OPTIONS
from infogan_dist.creation.sources import BACKGROUND_OPTION, IMAGE_OPTIONS, SOURCES, Source, SourceEntry
from infogan_dist.creation.tar_index import TarOptions
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data.shards import load_manifest
from infogan_dist.make_shards import build_parser, main
from tests.conftest import images_source
from tests.creation.test_sources import save_image


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The subcommands' parsers by name."""
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def test_the_command_line_offers_the_sources_of_the_table_and_tars():
    parsers = subcommands()
    assert list(parsers) == [*SOURCES, "tars"]
    common = {"-h", "--help", "--out", "--quiet"}
    for name, entry in SOURCES.items():
        assert flags_of(parsers[name]) == {
            *common,
            "--shards",
            "--seed",
            *SELECTION_OPTIONS,
            *entry.options,
        }
    assert flags_of(parsers["tars"]) == {
        *common,
        "--skip-broken",
        "--image",
        "--label",
        "--classes-file",
        "--name",
        "--reshard",
        "--shards",
        "--seed",
        *IMAGE_OPTIONS,
        *BACKGROUND_OPTION,
    }


def test_a_new_source_needs_only_an_entry_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def create(options: argparse.Namespace) -> Source:
        return images_source(options.count)

    entry = SourceEntry(
        "random images", create, {"--count": {"type": int, "default": 20}}, lambda o: f"-{o.count}"
    )
    monkeypatch.setitem(sources.SOURCES, "random", entry)
    monkeypatch.chdir(tmp_path)
    main(["random", "--count", "24", "--shards", "4"])
    assert capsys.readouterr().out == "shards/random-24: 24 images of 1x8x8 in 4 shards, 2 classes\n"
    assert load_manifest("shards/random-24").samples == 24


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mnist5k"], "mnist5k"),
        (["mnist"], "mnist"),
        (["mnist", "--split", "train"], "mnist"),
        (["mnist", "--split", "test"], "mnist-test"),
        (["sprites"], "sprites"),
        (["folder", "--from", "x"], "folder"),
        (["tars", "x.tar"], "tars"),
    ],
)
def test_the_default_folder_has_the_name_of_the_source(arguments: list[str], expected: str):
    options = build_parser().parse_args(arguments)
    assert options.out is None
    assert options.folder_name(options) == expected


def test_every_option_has_its_default_and_reaches_the_writer(monkeypatch: pytest.MonkeyPatch):
    parse = build_parser().parse_args
    assert (
        vars(parse(["mnist"])).items()
        >= {"source": None, "split": "train", "shards": None, "seed": 0}.items()
    )
    options = parse(
        [
            "folder",
            "--from",
            "x",
            "--size",
            "16",
            "--mode",
            "grey",
            "--background",
            "white",
            "--skip-broken",
            "--keep-encoding",
            "--shards",
            "3",
            "--seed",
            "5",
        ]
    )
    calls = []
    source = images_source(16)

    def record(*arguments: object) -> tuple[None, bool]:
        calls.append(arguments)
        return None, True

    monkeypatch.setattr(sources, "folder", lambda *arguments: calls.append(arguments) or source)
    monkeypatch.setattr(make_shards, "create_source_set", record)
    options.create(options, Path("out"))
    assert calls == [(Path("x"), (1, 16, 16), "#ffffff", True, True), (source, Path("out"), 3, 5)]
    options = parse(
        [
            "tars",
            "a",
            "b",
            "--name",
            "n",
            "--skip-broken",
            "--size",
            "32x24",
            "--image",
            ".JPG",
            "--background",
            "#010203",
        ]
    )
    monkeypatch.setattr(make_shards, "create_index", record)
    options.create(options, Path("out"))
    assert calls[2] == (
        ["a", "b"],
        Path("out"),
        "n",
        TarOptions((3, 24, 32), "#010203", "jpg", skip_broken=True),
    )


def test_a_second_call_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for i in range(8):
        save_image(tmp_path / "in" / f"{i}.png", (8, 8))
    out = tmp_path / "set"
    main(["folder", "--from", str(tmp_path / "in"), "--out", str(out)])
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    main(["folder", "--from", str(tmp_path / "in"), "--out", str(out)])
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    assert "already a shard set of 8 images" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["image_shape"] == [3, 8, 8]


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ([], None),
        (["--from", "other"], "source: mine -> other"),
        (["--from", "more/mine"], "images: 6 -> 7"),
        (["--from", "others/mine"], "pixels or labels"),
        (["--size", "9"], r"shape: \[3, 8, 8\] -> \[3, 9, 9\]"),
        (["--mode", "grey"], r"shape: \[3, 8, 8\] -> \[1, 8, 8\]"),
        (["--shards", "3"], "shards: 2 -> 3"),
        (["--seed", "1"], "seed: 0 -> 1"),
        (["--seed", "1", "--shards", "1"], "shards: 2 -> 1; seed: 0 -> 1"),
    ],
)
def test_an_existing_set_is_accepted_only_if_it_would_be_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    difference: str | None,
):
    monkeypatch.chdir(tmp_path)
    for folder, count, colour in (
        ("mine", 6, 0),
        ("other", 6, 0),
        ("more/mine", 7, 0),
        ("others/mine", 6, 9),
    ):
        for i in range(count):
            save_image(Path(folder) / f"{i}.png", (8, 8), colour=(colour, i, 0))
    command = ["folder", "--from", "mine", "--size", "8", "--shards", "2", "--out", "set"]
    main(command)
    before = {p.name: p.read_bytes() for p in Path("set").iterdir()}
    capsys.readouterr()
    if difference is None:
        main(command)
        assert "set: already a shard set of 6 images" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit) as stop:
            main([*command, *arguments])
        assert stop.value.code == 2
        message = rf"set: already another shard set \({difference}\); choose another folder with --out"
        assert re.search(message, capsys.readouterr().err)
    assert {p.name: p.read_bytes() for p in Path("set").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["a.tar"], None),
        (["a.tar", "--name", "other"], "name: tars -> other"),
        (["a.tar", "--size", "9"], r"shape: not fitted -> fitted to \[3, 9, 9\]"),
        (["b.tar"], "tars: .*a.tar, .*b.tar"),
        (["a.tar", "b.tar"], "tars: [^,]*b.tar"),
    ],
)
def test_an_existing_index_is_accepted_only_if_it_would_be_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    difference: str | None,
):
    monkeypatch.chdir(tmp_path)
    manifest = write_shard_set(images_source(8), tmp_path / "images", shards=1)
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes((tmp_path / "images" / manifest.shards[0].url).read_bytes())
    main(["tars", "a.tar", "--out", "set"])
    if difference is None:
        main(["tars", *arguments, "--out", "set"])
        assert "set: already a shard set of 8 images" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit):
            main(["tars", *arguments, "--out", "set"])
        assert re.search(rf"set: already another shard set \({difference}\);", capsys.readouterr().err)


def test_a_set_of_an_earlier_version_is_compared_without_its_seed(tmp_path: Path):
    source = images_source(8)
    manifest = replace(write_shard_set(source, tmp_path, shards=1), origin={})
    assert source_differences(manifest, source, 1, seed=3) == []
    assert source_differences(manifest, source, 2, seed=3) == ["shards: 1 -> 2"]


def test_of_many_different_classes_the_first_is_named(tmp_path: Path):
    names = [f"class {i}" for i in range(100)]
    source = replace(images_source(8), label_names=names)
    manifest = write_shard_set(source, tmp_path, shards=1)
    other = replace(source, label_names=[*names[:50], "cat", *names[51:]])
    assert source_differences(manifest, other, 1, seed=0) == ["classes: class 50 -> cat"]
    fewer = replace(source, label_names=names[:99])
    assert source_differences(manifest, fewer, 1, seed=0) == ["classes: 100 -> 99"]


def test_quiet_leaves_only_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for i in range(4):
        save_image(tmp_path / "in" / f"{i}.png", (8, 8))
    main(["folder", "--from", str(tmp_path / "in"), "--shards", "2", "--out", str(tmp_path / "a")])
    assert "4/4" in capsys.readouterr().err
    main(["folder", "--from", str(tmp_path / "in"), "--shards", "2", "--out", str(tmp_path / "b"), "--quiet"])
    main(["tars", f"{tmp_path}/b/*.tar", "--out", str(tmp_path / "c"), "--quiet"])
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.splitlines() == [
        f"{tmp_path}/b: 4 images of 3x8x8 in 2 shards, 0 classes",
        f"{tmp_path}/c: 4 images of 3x8x8 in 2 shards, 0 classes",
    ]


def test_a_folder_and_its_indexed_tars_contain_the_same_images(tmp_path: Path):
    for i in range(6):
        path = tmp_path / "in" / "ab"[i % 2] / f"{i}.png"
        save_image(path, (8 + i, 9))
    main(
        [
            "folder",
            "--from",
            str(tmp_path / "in"),
            "--size",
            "8",
            "--shards",
            "2",
            "--out",
            str(tmp_path / "a"),
        ]
    )
    main(["tars", f"{tmp_path}/a/{{000000,000001}}.tar", "--name", "mine", "--out", str(tmp_path / "b")])
    a, b = load_manifest(str(tmp_path / "a")), load_manifest(str(tmp_path / "b"))
    assert (a.image_shape, b.image_shape, b.name) == ((3, 8, 8), (3, 8, 8), "mine")
    assert [s.sha256 for s in a.shards] == [s.sha256 for s in b.shards]
    assert np.sum(a.shard_sizes) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "--from", "nowhere"], "nowhere: no such folder"),
        (["folder", "--from", "."], "no images"),
        (["folder", "--from", "mixed"], "move these into one"),
        (["folder", "--from", "one"], "use --shards 1"),
        (["folder", "--from", "text"], r"a\.png: not a readable image"),
        (["folder", "--from", "one", "--mode", "grey"], "needs --size"),
        (["folder", "--from", "one", "--size", "0"], "not a number of pixels"),
        (["tars", "no-*.tar"], "no such tars"),
        (["tars", "gone.tar"], "no such tar"),
        (["mnist", "--from", "one"], "train-images"),
    ],
)
def test_mistakes_get_one_line_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "empty").mkdir()
    save_image(tmp_path / "mixed" / "a.png", (8, 8))
    save_image(tmp_path / "mixed" / "cats" / "a.png", (8, 8))
    save_image(tmp_path / "one" / "a.png", (8, 8))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no image")
    monkeypatch.chdir(tmp_path / "empty" if arguments[-1] == "." else tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", "out"])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert re.search(message, lines[0])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["mnist", "--splt", "test"],
        ["tars", "x.tar", "--size", "0"],
        ["folder", "--from", "nowhere"],
    ],
)
def test_help_and_mistakes_import_no_heavy_library(arguments: list[str], tmp_path: Path):
    command = [sys.executable, "-X", "importtime", "-m", "infogan_dist.make_shards", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "numpy" in modules
    assert not modules & {"torch", "webdataset", "pooch", "scipy", "boto3"}
