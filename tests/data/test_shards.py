"""A shard set loses nothing, reports all damage, and decodes nothing but images, labels and factors."""

import http.server
import io
import json
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.console import set_up_logging
from infogan_dist.creation.index import index_tars
from infogan_dist.creation.source import Source
from infogan_dist.creation.tar_index import TarOptions
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data import fetch
from infogan_dist.data.images import encode_png
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from tests.conftest import images_source, number_of


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar with these files by name."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(shape: tuple[int, int, int] = (1, 8, 8), value: int = 7) -> bytes:
    """A PNG file of one grey value."""
    return encode_png(np.full(shape, value, np.uint8))


def test_no_image_is_lost_and_shard_sizes_differ_by_at_most_one(tmp_path: Path):
    source = images_source(203, (3, 8, 8))
    manifest = write_shard_set(source, tmp_path)
    sizes = [s.samples for s in manifest.shards]
    assert len(sizes) == 8
    assert max(sizes) - min(sizes) <= 1
    samples = {}
    for i in range(8):
        shard = read_shard(load_manifest(str(tmp_path)), i)
        samples |= {
            number_of(image): (image, label) for image, label in zip(shard.images, shard.labels, strict=True)
        }
    assert sorted(samples) == list(range(203))
    for i, (image, label) in samples.items():
        assert np.array_equal(image, source.read(i)[0])
        assert label == i % 2


def test_images_are_shuffled_over_the_shards_and_the_seed_determines_the_bytes(tmp_path: Path):
    a, b, c = (
        write_shard_set(images_source(160), tmp_path / name, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert a == b
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    numbers = [number_of(image) for image in read_shard(a, 0).images]
    assert numbers != sorted(numbers)
    assert max(numbers) - min(numbers) > 80


def test_a_folder_without_a_manifest_is_no_shard_set(tmp_path: Path):
    write_shard_set(images_source(16), tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DataError, match="make_shards"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"name": "x", "image_shape": [1, 2], "label_names": [], "shards": []}']
)
def test_a_broken_manifest_is_reported(tmp_path: Path, content: str):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-512]), "bytes instead of the manifest's"),
        (lambda p: p.write_bytes(p.read_bytes().replace(b"\x89PNG", b"\x89PMG", 1)), "SHA-256"),
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(p.with_name("000001.tar").read_bytes()), "SHA-256"),
    ],
)
def test_a_damaged_shard_is_reported(tmp_path: Path, damage, message: str):
    manifest = write_shard_set(images_source(80), tmp_path)
    damage(tmp_path / "000000.tar")
    with pytest.raises(DataError, match=message) as error:
        read_shard(manifest, 0)
    assert "000000.tar" in str(error.value)


class Bomb:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return (Path("/nonexistent-if-pickle-is-never-read").touch, ())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"no png"}, r"a\.png: not a readable image"),
        ({"a.cls": b"3"}, "a: no image"),
        ({"a.pyd": pickle.dumps(Bomb()), "a.pkl": pickle.dumps(Bomb())}, "no image"),
        ({"a.png": png(), "a.cls": b"cat"}, r"a\.cls: not an integer"),
        ({"a.png": png(), "b.png": png((1, 9, 9))}, r"b\.png: .*\[1, 9, 9\] instead of \[1, 8, 8\]"),
        ({"a.png": png(), "b.png": png((3, 8, 8))}, r"b\.png: .*\[3, 8, 8\]"),
        ({}, "no samples"),
    ],
)
def test_existing_tars_are_refused_with_the_name_of_the_wrong_member(
    tmp_path: Path, members: dict[str, bytes], message: str
):
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=message):
        index_tars([str(path)], tmp_path / "set", "x")
    assert not (tmp_path / "set").exists()


def test_existing_tars_are_indexed_without_a_copy(tmp_path: Path):
    for i in range(3):
        members = {
            f"s{j}.{end}": c for j in range(i + 2) for end, c in (("png", png(value=j)), ("cls", b"%d" % j))
        }
        write_tar(tmp_path / f"part-{i}.tar", {"s0.json": b"{}", **members})
    index_tars([f"{tmp_path}/part-{{0..1}}.tar", f"{tmp_path}/*-2.tar"], tmp_path / "set", "mine")
    manifest = load_manifest(str(tmp_path / "set"))
    assert [s.samples for s in manifest.shards] == [2, 3, 4]
    assert manifest.label_names == ["0", "1", "2", "3"]
    assert read_shard(manifest, 2).labels.tolist() == [0, 1, 2, 3]


def test_images_of_any_size_and_type_are_fitted_on_request(tmp_path: Path):
    def encoded(size: tuple[int, int], mode: str, kind: str) -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, size, 255 if mode == "L" else (255, 255, 255)).save(buffer, kind)
        return buffer.getvalue()

    members = {"a.jpg": encoded((40, 30), "RGB", "jpeg"), "b.webp": encoded((9, 50), "RGB", "webp")}
    path = write_tar(tmp_path / "x.tar", {**members, "c.png": encoded((16, 16), "L", "png")})
    index_tars([str(path)], tmp_path / "set", "x", TarOptions((1, 16, 16)))
    shard = read_shard(load_manifest(str(tmp_path / "set")), 0)
    assert shard.images.shape == (3, 1, 16, 16)
    assert shard.images.min() >= 250
    assert shard.labels.tolist() == [-1, -1, -1]


@pytest.fixture
def folder_web(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server for tmp_path."""

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_set_is_read_over_http_and_its_gaps_are_reported(tmp_path: Path, folder_web: str):
    write_shard_set(images_source(80), tmp_path / "set")
    local, remote = load_manifest(str(tmp_path / "set")), load_manifest(f"{folder_web}/set")
    assert remote == local
    assert np.array_equal(read_shard(remote, 5).images, read_shard(local, 5).images)
    (tmp_path / "set" / "000005.tar").unlink()
    with pytest.raises(DataError, match=r"http://.*/set/000005\.tar: the shard is missing"):
        read_shard(remote, 5)
    with pytest.raises(DataError, match="no shard set there"):
        load_manifest(f"{folder_web}/nothing")


def test_credentials_of_a_url_are_never_written_to_a_manifest(tmp_path: Path):
    for url in ("http://me:secret@127.0.0.1:9/a.tar", "http://127.0.0.1:9/a.tar?signature=secret"):
        with pytest.raises(DataError, match="its password or query would be readable") as error:
            index_tars([url], tmp_path / "set", "x")
        assert "secret" not in str(error.value)


def test_broken_samples_are_indexed_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_tar(tmp_path / "x.tar", {"a.png": png(), "b.png": b"no png", "c.png": png(value=9)})
    set_up_logging()
    index_tars([str(path)], tmp_path / "set", "x", TarOptions(skip_broken=True))
    output = capsys.readouterr()
    assert "warning: 1 samples cannot be decoded; train with data.on_error=skip" in output.err
    assert "1/1" in output.err  # tars, as progress
    assert output.out == ""
    manifest = load_manifest(str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"b\.png"):
        read_shard(manifest, 0)
    shard = read_shard(manifest, 0, skip=True)
    assert shard.substituted.tolist() == [False, True, False]
    assert shard.images[:, 0, 0, 0].tolist() == [7, 9, 9]  # those of the next sample


def factor_set(out: Path) -> Source:
    """Twelve images with two known factors, in two shards."""
    pixels = images_source(12).read
    source = Source("factors", 12, [], pixels, {"a": 3, "b": 4}, lambda i: [i % 3, i // 3])
    write_shard_set(source, out, shards=2)
    return source


def test_known_factors_are_read_with_their_images(tmp_path: Path):
    source = factor_set(tmp_path)
    manifest = load_manifest(str(tmp_path))
    assert manifest.factors == {"a": 3, "b": 4}
    for shard in (read_shard(manifest, 0), read_shard(manifest, 1)):
        expected = [source.factors_of(number_of(image)) for image in shard.images]
        assert shard.factors.tolist() == expected
    plain = write_shard_set(images_source(8), tmp_path / "plain", shards=1)
    assert read_shard(plain, 0).factors.shape == (8, 0)


def test_a_manifest_without_factors_is_read(tmp_path: Path):
    write_shard_set(images_source(8), tmp_path, shards=1)
    path = tmp_path / "manifest.json"
    tree = json.loads(path.read_text())
    assert tree.pop("factors") == {}
    path.write_text(json.dumps(tree))
    assert load_manifest(str(tmp_path)).factors == {}


@pytest.mark.parametrize("content", [None, b"[0]", b"[0, 4]", b"[-1, 0]", b'{"a": 0}', b"[0, 1", b'["x", 0]'])
def test_invalid_factors_are_reported(tmp_path: Path, content: bytes | None):
    members = {"x.png": png()} | ({} if content is None else {"x.factors.json": content})
    write_tar(tmp_path / "0.tar", members)
    index_tars([str(tmp_path / "0.tar")], tmp_path, "broken")
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"factors": {"a": 3, "b": 4}}))
    with pytest.raises(DataError, match=r"0\.tar, x\.factors\.json: not the values of a, b"):
        read_shard(load_manifest(str(tmp_path)), 0)


def test_a_message_does_not_contain_the_credentials_of_a_url(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.0)
    with pytest.raises(DataError) as error:
        load_manifest("http://me:secret@127.0.0.1:9/set?key=secret")
    assert "secret" not in str(error.value)
