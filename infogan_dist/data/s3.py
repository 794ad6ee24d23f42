"""Presigned URLs of S3 objects: S3 is then read by the same HTTP requests as any other server.

boto3 determines credentials, region and endpoint, from the usual AWS environment variables and files.
"""

import errno
import importlib.util
import os
import re
from functools import lru_cache
from typing import Any

from infogan_dist.credentials import redact_url
from infogan_dist.errors import ConfigError, DataError

EXPIRY_S = 900  # Every request signs a new URL. S3 tolerates clocks that differ by as much.
AWS_ENDPOINT = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com")
_bucket_regions: dict[str, str] = {}  # where a server reported another region than the configured one


def presigned_url(url: str) -> str:
    """Return an http(s) URL that permits reading an object for `EXPIRY_S` seconds. It must not be printed.

    Args:
        url: `s3://BUCKET/KEY`.

    Raises:
        ConfigError: boto3 is not installed.
        DataError: the URL is not valid, or there are no credentials.
        OSError: credentials could not be fetched over the network at the moment.
    """
    if importlib.util.find_spec("boto3") is None:
        raise ConfigError(f"{redact_url(url)}: boto3 is not installed; run `pip install infogan_dist[s3]`")
    from botocore import exceptions  # pyright: ignore[reportMissingImports]

    bucket, _, key = url.removeprefix("s3://").partition("/")
    try:
        return _client(os.getpid(), _bucket_regions.get(bucket)).generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=EXPIRY_S
        )
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise DataError(f"{redact_url(url)}: no credentials for S3; {remedy}") from None
    except (exceptions.HTTPClientError, exceptions.ConnectionError):
        raise OSError(errno.EHOSTUNREACH, "S3 credentials cannot be fetched") from None
    except (exceptions.BotoCoreError, exceptions.ClientError, ValueError) as error:
        reason = f"boto3 cannot sign the request ({type(error).__name__})"
        raise DataError(f"{redact_url(url)}: {reason}; check the URL and the AWS_... variables") from None


def set_bucket_region(url: str, region: str) -> bool:
    """Sign later URLs of a bucket for the region that a server reported; return whether that is a change."""
    bucket = url.removeprefix("s3://").partition("/")[0]
    current = _bucket_regions.get(bucket) or _client(os.getpid(), None).meta.region_name
    _bucket_regions[bucket] = region
    return region != current


@lru_cache(maxsize=8)
def _client(process: int, region: str | None) -> Any:
    """Return boto3's client; each process has its own, because clients are not safe to share over a fork."""
    from boto3.session import Session  # pyright: ignore[reportMissingImports]
    from botocore.config import Config  # pyright: ignore[reportMissingImports]

    def create(**options: str) -> Any:
        config = Config(signature_version="s3v4", s3=options or None)
        return Session().client("s3", region_name=region, config=config)

    client = create()
    if AWS_ENDPOINT.fullmatch(client.meta.endpoint_url):
        # By default boto3 signs for the global endpoint, which redirects requests for new buckets elsewhere.
        return create(addressing_style="virtual")
    return client
