"""Data sets on the Hugging Face Hub are read with the user's login; its faults are in test_fetch.py."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infogan_dist.data.fetch import Store
from infogan_dist.data.hub import resolve
from infogan_dist.data.shards import load_manifest
from infogan_dist.errors import DataError
from infogan_dist.make_shards import main
from tests.data.test_loader import loaders
from tests.data.web_server import BODY, BODY_SHA256, Fault, HubServer, WebServer

DATA = "hf://datasets/ann/shapes"
LogIn = Callable[[str, str | None], None]


@pytest.fixture
def hub_set(web: WebServer, hub: HubServer, small_set: Path) -> str:
    """`small_set` as a data set on the Hub."""
    web.files = {f"/b/small/{path.name}": path.read_bytes() for path in small_set.iterdir()}
    return f"{DATA}/small"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_set_on_the_hub_gives_the_batches_of_its_local_copy(
    hub_set: str, small_set: Path, workers: int
):
    assert load_manifest(hub_set).fingerprint() == load_manifest(str(small_set)).fingerprint()
    (remote,), (local,) = loaders(hub_set, 1, workers=workers), loaders(small_set, 1)
    for _, ours, expected in zip(range(16), remote.batches(0), local.batches(0), strict=False):
        assert torch.equal(ours.images, expected.images)
        assert torch.equal(ours.labels, expected.labels)


def test_the_token_is_sent_to_the_hub_and_to_no_other_server(web: WebServer, hub: HubServer):
    web.files["/b/manifest.json"] = b"{}"
    assert Store().read(f"{DATA}/x.tar") == BODY
    assert Store().read(f"{DATA}/manifest.json") == b"{}"
    assert len(hub.requests) == 3  # It redirects the second file to itself.
    assert {headers["Authorization"] for _, headers in hub.requests} == {"Bearer hf_secret"}
    assert [path for path, _ in web.requests] == ["/b/x.tar"]
    assert web.requests[0][1]["Authorization"] is None


def test_each_try_asks_the_hub_for_a_new_signed_url(web: WebServer, hub: HubServer, pauses: list[float]):
    web.faults = [Fault(send=30_000), Fault(status=503)]
    assert Store().read(f"{DATA}/x.tar", len(BODY), BODY_SHA256) == BODY
    assert len(hub.requests) == len(web.requests) == 3
    assert web.sent == len(BODY)


def test_a_cached_file_is_not_requested_again(hub: HubServer, tmp_path: Path):
    for _ in range(2):
        Store(tmp_path, 1 << 20).read(f"{DATA}/x.tar", len(BODY), BODY_SHA256)
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("token", "path", "message"),
    [
        (None, "/x.tar", r"/x\.tar: no such data set, or no right to read it \(HTTP 401\); .*hf auth login"),
        ("hf_wrong", "/x.tar", r"no such data set, or no right to read it \(HTTP 401\); .*HF_TOKEN"),
        ("hf_secret", "-2/x.tar", r"shapes-2/x\.tar: no such data set, or no right.* \(HTTP 404\); check"),
        ("hf_secret", "@v2/x.tar", r"shapes@v2/x\.tar: .*no such revision \(HTTP 404\); check .* after @"),
    ],
)
def test_what_the_hub_refuses_is_reported_at_once_with_its_remedy(
    hub: HubServer, log_in: LogIn, token: str | None, path: str, message: str
):
    log_in(hub.url, token)
    with pytest.raises(DataError, match=message) as error:
        Store().read(f"{DATA}{path}")
    assert "hf_" not in str(error.value)
    assert len(hub.requests) == 1


def test_a_login_that_fails_is_reported_with_its_remedy(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_OIDC_RESOURCE", "secret/no_such_kind/of/resource")
    message = r"x\.tar: the login to the Hub cannot be used \(OIDCError\); run `hf auth login` or set"
    with pytest.raises(DataError, match=message):
        Store().read(f"{DATA}/x.tar")


def test_a_gated_data_set_is_reported_with_its_remedy(web: WebServer, hub: HubServer):
    web.faults = [Fault(status=403, headers={"X-Error-Code": "GatedRepo"})]
    with pytest.raises(DataError, match=r"access .* \(HTTP 403\); request it on the data set's page"):
        Store().read(f"{DATA}/x.tar")


def test_a_missing_file_of_a_data_set_is_missing(hub: HubServer):
    with pytest.raises(FileNotFoundError, match=f"{DATA}/none.tar"):
        Store().read(f"{DATA}/none.tar")
    with pytest.raises(DataError, match=f"{DATA}/none: no shard set there"):
        load_manifest(f"{DATA}/none")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (f"{DATA}/a b/x?.tar", "main/a%20b/x%3F.tar"),
        (f"{DATA}@v1/x.tar", "v1/x.tar"),
        (f"{DATA}@refs/pr/1/x.tar", "refs%2Fpr%2F1/x.tar"),
        (f"{DATA}@refs/convert/parquet/x.tar", "refs%2Fconvert%2Fparquet/x.tar"),
    ],
)
def test_a_url_names_data_set_revision_and_path(log_in: LogIn, url: str, path: str):
    log_in("http://hub.example", None)
    assert resolve(url) == (f"http://hub.example/datasets/ann/shapes/resolve/{path}", None)


@pytest.mark.parametrize(
    "url", ["hf://", "hf://ann/shapes/x.tar", DATA, f"{DATA}@v1", "hf://datasets/shapes"]
)
def test_other_urls_of_the_hub_are_refused(url: str):
    with pytest.raises(DataError, match=rf"{re.escape(url)}: not a file .*; write hf://datasets/OWNER/NAME/"):
        Store().read(url)


def test_a_revision_with_a_slash_is_read(web: WebServer, hub: HubServer):
    assert Store().read(f"{DATA}@refs/pr/1/x.tar") == BODY


@pytest.mark.parametrize("damage", ["down", "missing", "refused", "wrong", "broken"])
def test_no_message_contains_the_token_or_the_signed_url(
    web: WebServer, hub: HubServer, log_in: LogIn, damage: str, pauses: list[float]
):
    status = {"missing": 404, "refused": 403, "broken": 500}.get(damage)
    web.faults = [Fault(status=status)] * 5 if status else []
    if damage == "down":
        log_in("http://127.0.0.1:9", hub.token)
    with pytest.raises((DataError, FileNotFoundError)) as error:
        Store().read(f"{DATA}/x.tar", sha256="0" * 64)
    assert all(word not in f"{error.value!r}" for word in ("secret", "sign", web.url))
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_the_usual_variables_are_read_and_a_mistake_is_one_line(
    hub_set: str, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], log_in: LogIn
):
    script = f"from infogan_dist.data.fetch import Store; print(len(Store().read('{hub_set}/000000.tar')))"
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    assert int(done.stdout) == len(hub.storage.files["/b/small/000000.tar"])
    log_in(hub.url, None)
    with pytest.raises(SystemExit) as stop:
        main(["tars", f"{hub_set}/000000.tar", "--out", str(tmp_path / "out"), "--quiet"])
    assert stop.value.code == 2
    assert re.fullmatch(r"error: hf://.*HF_TOKEN\n", capsys.readouterr().err)


def test_existing_tars_on_the_hub_are_indexed(hub_set: str, tmp_path: Path, hub: HubServer):
    main(["tars", f"{hub_set}/00000{{0..1}}.tar", "--out", str(tmp_path), "--quiet"])
    manifest = load_manifest(str(tmp_path))
    content = hub.storage.files["/b/small/000001.tar"]
    assert manifest.shards[1].url == f"{hub_set}/000001.tar"
    assert manifest.shards[1].sha256 == hashlib.sha256(content).hexdigest()
