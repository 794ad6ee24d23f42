"""Passwords and tokens in URLs: how they are removed from messages, logs and records."""

import re
from urllib.parse import urlsplit

URL = re.compile(r"\b[a-zA-Z][\w+.-]*://\S+")
CLOSING = re.compile(r"[)\]}>,;:'\"`]*$")  # what ends the sentence or the quotation that a URL is in


def redact_url(location: str) -> str:
    """Return a location for messages: a URL without user, password, query and fragment; a path unchanged.

    The query may contain a signature or a token, and a `pipe:` command may contain a password.
    """
    if location.startswith("pipe:"):
        return "pipe:..."
    scheme, separator, rest = location.partition("://")
    if not separator:
        return location
    try:
        parts = urlsplit(f"//{rest}")
        _ = parts.port
    except ValueError:  # The end of the password is unknown then.
        return f"{scheme}://..."
    if "://" in parts.path:  # A URL within the path may have a password of its own.
        return f"{scheme}://..."
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def redact_text(text: str) -> str:
    """Return a text with each URL in it as by `redact_url`."""

    def redacted(match: re.Match[str]) -> str:
        url = match[0]
        closing = CLOSING.search(url)
        end = closing[0] if closing else ""
        return redact_url(url.removesuffix(end)) + end

    return URL.sub(redacted, text)


def redact_argument(word: str) -> str:
    """Return a word of a command line, `LOCATION` or `KEY=LOCATION`, without the credentials in it."""
    key, equals, value = word.partition("=")
    if equals and "://" not in key:
        return f"{key}={redact_url(value)}"
    return redact_url(word)
