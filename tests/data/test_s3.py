"""S3 is read through presigned URLs, with credentials that never appear in a message."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from infogan_dist.data import s3
from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.data.transport import RestartError, open_url
from infogan_dist.errors import ConfigError, DataError
from tests.data.web_server import BODY, BODY_SHA256, Fault, WebServer

SetEndpoint = Callable[[str | None], None]


def requires(*modules: str) -> pytest.MarkDecorator:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def signed_region(query: str) -> str:
    """The region for which a URL is signed."""
    return parse_qs(query)["X-Amz-Credential"][0].split("/")[2]


def test_without_boto3_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError, match=r"pip install infogan_dist\[s3\]"):
        Store().read("s3://b/x.tar")


@requires("boto3")
@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "both"])
def test_missing_credentials_are_reported_at_once(
    web: WebServer, aws: SetEndpoint, monkeypatch: pytest.MonkeyPatch, missing: str
):
    aws(web.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if missing == "both" else (missing,):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=r"s3://b/x\.tar: no credentials for S3; set AWS_"):
        Store().read("s3://b/x.tar")
    assert web.requests == []


@requires("boto3")
@pytest.mark.parametrize("url", ["s3://", "s3://b", "s3://b/", "s3://no_such bucket/x"])
def test_a_url_without_bucket_or_key_is_refused(web: WebServer, aws: SetEndpoint, url: str):
    aws(web.url)
    with pytest.raises(DataError, match="check the URL"):
        Store().read(url)


@requires("boto3", "moto", "flask", "flask_cors")
def test_objects_are_read_from_a_real_s3_server(moto: str, aws: SetEndpoint, tmp_path: Path):
    aws(moto)
    client = s3._client(os.getpid(), None)
    client.create_bucket(Bucket="data")
    client.put_object(Bucket="data", Key="a set/x?.tar", Body=BODY)
    assert Store(tmp_path, 1 << 20).read("s3://data/a set/x?.tar", len(BODY), BODY_SHA256) == BODY
    for url in ("s3://data/none.tar", "s3://nowhere/x.tar"):
        with pytest.raises(FileNotFoundError, match=url):
            Store().read(url)
    with open_url("s3://data/a set/x?.tar") as response:
        etag = response.etag
    with open_url("s3://data/a set/x?.tar", 99_990, etag) as response:
        assert (response.start, response.total, response.read(99)) == (99_990, len(BODY), BODY[99_990:])
    for start, tag in ((99_990, '"another"'), (100_000, etag)):
        with pytest.raises(RestartError), open_url("s3://data/a set/x?.tar", start, tag):
            pass


@requires("boto3")
def test_every_try_signs_a_new_url_that_expires_soon(
    web: WebServer, aws: SetEndpoint, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    aws(web.url)
    signed, sign = [], s3.presigned_url

    def recorded_sign(url: str) -> str:
        signed.append(sign(url))
        return signed[-1]

    monkeypatch.setattr(s3, "presigned_url", recorded_sign)
    web.faults = [Fault(status=503)] * 2
    assert Store().read("s3://b/x.tar") == BODY
    assert len(signed) == len(web.requests) == 3
    for query in web.queries:
        assert int(parse_qs(query)["X-Amz-Expires"][0]) <= 900
        assert parse_qs(query)["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]


@requires("boto3")
@pytest.mark.parametrize("damage", ["down", "missing", "refused", "wrong", "broken", "region"])
def test_no_message_contains_credentials_or_a_signature(
    web: WebServer, aws: SetEndpoint, damage: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    aws("http://127.0.0.1:9" if damage == "down" else web.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, f"secret{name}")
    status = {"missing": 404, "refused": 403, "broken": 500, "region": 301}.get(damage)
    web.faults = [Fault(status=status, headers={"x-amz-bucket-region": "secret/?"})] * 5 if status else []
    with pytest.raises((DataError, FileNotFoundError)) as error:
        Store().read("s3://b/x.tar", sha256="0" * 64)
    assert all(word not in f"{error.value!r}" for word in ("secret", "X-Amz", "Signature"))
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


@requires("boto3")
def test_the_error_code_of_s3_is_part_of_the_message(web: WebServer, aws: SetEndpoint):
    aws(web.url)
    web.faults = [Fault(status=403, error=b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")]
    with pytest.raises(DataError, match=r"s3://b/x\.tar: .*\(HTTP 403 AccessDenied\); check the URL"):
        Store().read("s3://b/x.tar")
    web.faults = [Fault(status=404, error=b"<Error><Code>NoSuchKey</Code></Error>")]
    with pytest.raises(FileNotFoundError, match=r"s3://b/x\.tar"):
        Store().read("s3://b/x.tar")


@requires("boto3")
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=301, headers={"x-amz-bucket-region": "eu-west-1"}),
        Fault(
            status=307, headers={"x-amz-bucket-region": "eu-west-1", "Location": "http://127.0.0.1:9/x.tar"}
        ),
        Fault(
            status=400, error=b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>"
        ),
    ],
)
def test_a_bucket_in_another_region_is_requested_again_for_that_region(
    web: WebServer, aws: SetEndpoint, fault: Fault, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    aws(web.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    web.faults = [fault]
    for _ in range(2):
        assert Store().read("s3://b/x.tar") == BODY
    assert list(map(signed_region, web.queries)) == ["us-west-2", "eu-west-1", "eu-west-1"]


@requires("boto3")
def test_a_region_that_does_not_help_is_tried_once(web: WebServer, aws: SetEndpoint, pauses: list[float]):
    aws(web.url)
    web.faults = [Fault(status=403, headers={"x-amz-bucket-region": "eu-west-1"})] * 5
    with pytest.raises(DataError, match="HTTP 403") as error:
        Store().read("s3://b/x.tar")
    assert not isinstance(error.value, NetworkError)
    assert len(web.requests) == 2


@requires("boto3")
def test_a_presigned_url_is_not_sent_to_another_server(web: WebServer, aws: SetEndpoint):
    aws(web.url)
    web.files["/b/y.tar"] = BODY
    web.faults = [Fault(status=307, headers={"Location": f"{web.url}/b/y.tar"})]
    with pytest.raises(DataError, match="HTTP 307"):
        Store().read("s3://b/x.tar")
    assert len(web.requests) == 1


@requires("boto3")
@pytest.mark.parametrize(
    ("endpoint", "region", "bucket", "expected"),
    [
        (None, "us-east-1", "data", "https://data.s3.amazonaws.com/a/x%3F.tar"),
        (None, "us-west-2", "data", "https://data.s3.us-west-2.amazonaws.com/a/x%3F.tar"),
        (None, "us-west-2", "my.data", "https://s3.us-west-2.amazonaws.com/my.data/a/x%3F.tar"),
        (None, "cn-north-1", "data", "https://data.s3.cn-north-1.amazonaws.com.cn/a/x%3F.tar"),
        ("https://minio.example", "us-west-2", "data", "https://minio.example/data/a/x%3F.tar"),
    ],
)
def test_the_url_is_that_of_the_region_or_of_the_endpoint(
    aws: SetEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str | None,
    region: str,
    bucket: str,
    expected: str,
):
    aws(endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    url = s3.presigned_url(f"s3://{bucket}/a/x?.tar")
    query = parse_qs(urlsplit(url).query)
    assert url.partition("?")[0] == expected
    assert signed_region(urlsplit(url).query) == region
    assert query["X-Amz-SignedHeaders"] == ["host"]  # Range and If-Match may then be added.


@requires("boto3")
def test_certificates_of_an_endpoint_come_from_the_aws_variable_too(
    https_web: WebServer, certificate: Path, aws: SetEndpoint, monkeypatch: pytest.MonkeyPatch
):
    aws(https_web.url)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    assert Store().read("s3://b/x.tar", len(BODY), BODY_SHA256) == BODY
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.with_name("none.pem")))
    with pytest.raises(DataError, match=r"AWS_CA_BUNDLE: .*none\.pem cannot be read"):
        Store().read("s3://b/x.tar")
