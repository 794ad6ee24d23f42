"""Files of data sets on the Hugging Face Hub: they are then read by the same HTTP requests as any other file.

huggingface_hub determines the Hub's address (HF_ENDPOINT) and the token (HF_TOKEN, or `hf auth login`).
"""

import re

from infogan_dist.credentials import redact_url
from infogan_dist.errors import DataError

# A revision is a branch, a tag or a commit; only those of pull requests and conversions contain a slash.
URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/pr/\d+|refs/convert/[^/]+|[^/]+))?/(.+)")
LOGIN = "run `hf auth login` or set HF_TOKEN"
# By the error code that the Hub sends in the header X-Error-Code: what is wrong, and the remedy.
PROBLEMS = {
    "RepoNotFound": ("no such data set, or no right to read it", f"check the name, {LOGIN}"),
    "RevisionNotFound": ("the data set has no such revision", "check the part after @"),
    "GatedRepo": ("access has to be granted first", f"request it on the data set's page, {LOGIN}"),
}


def resolve(url: str) -> tuple[str, str | None]:
    """Return the http(s) URL of a file and the Authorization header; None without a login.

    Args:
        url: `hf://datasets/OWNER/NAME[@REVISION]/PATH`.

    Raises:
        DataError: the URL is not valid, or the login cannot be used.
        OSError: the login cannot be renewed over the network at the moment.
    """
    # Imported only now because it takes a second, and most runs do not need it.
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    parts = URL.fullmatch(url)
    if parts is None:
        expected = "hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH"
        raise DataError(f"{redact_url(url)}: not a file of a data set on the Hub; write {expected}")
    repository, revision, path = parts.groups()
    location = hf_hub_url(repository, path, repo_type="dataset", revision=revision)
    try:
        return location, build_hf_headers().get("authorization")
    except OSError:
        raise
    except Exception as error:  # The ways to log in, and their errors, differ between versions.
        reason = f"the login to the Hub cannot be used ({type(error).__name__})"
        raise DataError(f"{redact_url(url)}: {reason}; {LOGIN}") from None


def refusal(url: str, status: int, code: str | None) -> DataError | None:
    """Return the error for a request that the Hub refuses; None if the cause is not known.

    Args:
        url: of the request, hf://.
        status: HTTP status.
        code: the Hub's error code.
    """
    # Without a login the Hub does not reveal whether a data set exists.
    if status == 401:
        code = "RepoNotFound"
    if code not in PROBLEMS:
        return None
    reason, remedy = PROBLEMS[code]
    return DataError(f"{redact_url(url)}: {reason} (HTTP {status}); {remedy}")
