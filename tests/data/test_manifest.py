"""A manifest, which may come from another machine, is checked field by field."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from infogan_dist.creation.write import write_shard_set
from infogan_dist.data import shards
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from tests.conftest import images_source
from tests.data.web_server import WebServer

SHARD = {"url": "a.tar", "samples": 3, "bytes": 2048, "sha256": "0" * 64}
VALID: dict[str, Any] = {
    "name": "x", "image_shape": [1, 8, 8], "label_names": ["a"], "shards": [SHARD], "fit": False,
    "factors": {"size": 3},
}  # fmt: skip
FIELDS = [
    "name", "image_shape", "image_shape.0", "image_shape.2", "label_names", "label_names.0", "shards",
    "shards.0", "shards.0.url", "shards.0.samples", "shards.0.bytes", "shards.0.sha256", "fit", "factors",
    "factors.size",
]  # fmt: skip
VALUES = [None, "text", "", -1, 0, 1.5, True, [], [1], {}, 10**30, 1e300, float("nan"), "x" * 10**5]


def serve_set(web: WebServer, **changes: Any) -> str:
    """Serve a valid manifest with other fields; return the URL of its folder."""
    web.files["/set/manifest.json"] = json.dumps({**VALID, **changes}).encode()
    return f"{web.url}/set"


def serve_shards(web: WebServer, folder: Path, **changes: Any) -> None:
    """Serve a set of 16 images in one shard; the fields of the shard may be changed."""
    write_shard_set(images_source(16), folder, shards=1)
    tree = json.loads((folder / "manifest.json").read_text())
    tree["shards"][0].update(changes)
    web.files["/set/manifest.json"] = json.dumps(tree).encode()
    web.files["/set/000000.tar"] = (folder / "000000.tar").read_bytes()


def changed(tree: Any, path: str, value: Any) -> Any:
    """Return a copy of a manifest with one field changed."""
    copy = node = json.loads(json.dumps(tree))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        node = node[part]
    node[last] = value
    return copy


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_wrong_type_or_range_is_named_in_one_line(tmp_path: Path, field: str):
    path, valid = tmp_path / "manifest.json", 0
    for value in VALUES:
        path.write_text(json.dumps(changed(VALID, field, value)))
        try:
            load_manifest(str(tmp_path))
            valid += 1
        except DataError as error:
            message = str(error)
            name = field.replace("shape.0", "shape").replace(".0", "[0]").replace(".2", "[2]")
            expected = rf"not a manifest of shards \({re.escape(name)}.*; create the set again"
            assert re.search(expected, message)
            assert len(message) < 300 + len(str(tmp_path))
            assert "\n" not in message
    assert valid <= 3  # Some of the values are valid for some fields.


@pytest.mark.parametrize("field", ["name", "image_shape", "label_names", "shards", "shards.0.sha256"])
def test_a_missing_field_is_named(tmp_path: Path, field: str):
    tree = json.loads(json.dumps(VALID))
    del (tree["shards"][0] if "." in field else tree)[field.split(".")[-1]]
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=rf"\(shards\[0\]\.sha256|\({field}"):
        load_manifest(str(tmp_path))


def test_a_manifest_that_is_nested_too_deeply_is_one_line(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("[" * 10**5)
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest of shards \(it is nested"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "url",
    ["/etc/passwd", "~/x", "file:///etc/passwd", "local:///x", "memory://x", "generic://file:///x", "pipe:x"],
)
def test_a_remote_manifest_cannot_name_files_of_this_machine(web: WebServer, url: str):
    location = serve_set(web, shards=[SHARD, {**SHARD, "url": url}])
    with pytest.raises(
        DataError, match=r"manifest\.json: .* is refused: .*names URLs and relative names only"
    ):
        load_manifest(location)


def test_a_remote_manifest_may_name_other_servers(web: WebServer):
    urls = ["a.tar", "train/a.tar", "https://host/a.tar", "s3://bucket/a.tar", "gs://bucket/a.tar"]
    manifest = load_manifest(serve_set(web, shards=[{**SHARD, "url": url} for url in urls]))
    resolved = [shards.resolve(manifest, shard) for shard in manifest.shards]
    assert resolved == [f"{web.url}/set/a.tar", f"{web.url}/set/train/a.tar", *urls[2:]]


@pytest.mark.parametrize("sha256", [None, "", "0" * 63])
def test_a_checksum_is_required(web: WebServer, sha256: str | None):
    with pytest.raises(DataError, match=r"shards\[0\]\.sha256 must"):
        load_manifest(serve_set(web, shards=[{**SHARD, "sha256": sha256}]))


def test_a_manifest_is_not_read_beyond_its_limit(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    location = serve_set(web)
    (tmp_path / "manifest.json").write_bytes(web.files["/set/manifest.json"])
    monkeypatch.setattr(shards, "MAX_MANIFEST_BYTES", len(web.files["/set/manifest.json"]))
    assert load_manifest(location) == load_manifest(str(tmp_path))
    monkeypatch.setattr(shards, "MAX_MANIFEST_BYTES", 100)
    for place in (location, str(tmp_path)):
        with pytest.raises(DataError, match=r"manifest\.json: more than 100 bytes"):
            load_manifest(place)


@pytest.mark.parametrize("form", ["{}?token=secret", "{}/?token=secret", "{}/manifest.json?token=secret#x"])
def test_a_token_is_sent_for_the_manifest_and_its_shards_and_is_not_printed(
    web: WebServer, tmp_path: Path, form: str
):
    serve_shards(web, tmp_path)
    manifest = load_manifest(form.format(f"{web.url}/set"))
    assert len(read_shard(manifest, 0).images) == 16
    assert web.queries == ["token=secret"] * 2
    del web.files["/set/000000.tar"]
    with pytest.raises(DataError, match=r"/set/000000\.tar: the shard is missing") as error:
        read_shard(manifest, 0)
    assert "secret" not in str(error.value)
    with pytest.raises(DataError, match="no shard set there") as error:
        load_manifest(form.format(f"{web.url}/none"))
    assert "secret" not in str(error.value)


def test_a_shard_with_a_signature_of_its_own_does_not_get_that_of_the_manifest(
    web: WebServer, tmp_path: Path
):
    serve_shards(web, tmp_path, url="000000.tar?sign=own")
    read_shard(load_manifest(f"{web.url}/set?token=secret"), 0)
    serve_shards(web, tmp_path / "other", url=f"{web.url}/set/000000.tar")
    read_shard(load_manifest(f"{web.url}/set?token=secret"), 0)
    assert web.queries == ["token=secret", "sign=own", "token=secret", ""]


def test_home_folders_and_file_urls_are_local_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "a set"
    expected = write_shard_set(images_source(16), folder, shards=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    for location in (
        "~/a set",
        f"file://{tmp_path}/a%20set",
        f"file://localhost{tmp_path}/a%20set/manifest.json",
    ):
        manifest = load_manifest(location)
        assert manifest == expected
        assert len(read_shard(manifest, 0).images) == 16
    with pytest.raises(DataError, match="not a file of this machine"):
        load_manifest("file://elsewhere/set")


def test_a_folder_whose_name_looks_like_a_pattern_is_read(tmp_path: Path):
    expected = write_shard_set(images_source(16), tmp_path / "what?[1]", shards=1)
    assert load_manifest(str(tmp_path / "what?[1]")) == expected


@pytest.mark.parametrize("pattern", ["*.tar", "00000?.tar", "[0-9].tar", "{0000..0099}.tar"])
def test_patterns_are_refused_with_the_command_that_expands_them(
    web: WebServer, tmp_path: Path, pattern: str
):
    for folder in (str(tmp_path), f"{web.url}/set"):
        if folder.startswith("http") and "?" in pattern:
            continue  # the query of a URL
        with pytest.raises(DataError, match=r"without patterns: .*make_shards tars"):
            load_manifest(f"{folder}/{pattern}")


def test_a_missing_remote_set_is_not_to_be_created_by_a_local_command(web: WebServer):
    with pytest.raises(DataError, match="check the URL") as error:
        load_manifest(f"{web.url}/none")
    assert "make_shards" not in str(error.value)
