"""Names of classes in the samples of foreign tars: as a text file or as a value of a JSON file."""

import json
import re

from infogan_dist.errors import ConfigError, DataError

LABEL_FILE = re.compile(r"(?P<ending>[^:/\s]+)(?::(?P<key>.+))?")


def check_label_file(label: str) -> str:
    """Return the value of `--label`. Raises `ConfigError` if it is not of the form ENDING or json:KEY."""
    match = LABEL_FILE.fullmatch(label)
    if match is None or (match["key"] is None) == match["ending"].endswith("json"):
        raise ConfigError(
            f"--label: {label} is no file of class names; use cls, txt or another ending of text files, or "
            "json:KEY with a key of a JSON object"
        )
    return label


def class_name(files: dict[str, bytes], where: str, label: str) -> str | None:
    """Return the name of a sample's class, or None if it has none.

    Args:
        files: of the sample, by ending.
        where: name of the sample in error messages.
        label: ending of the text file that contains the name, or ENDING:KEY for a value of a JSON object.

    Raises:
        DataError: the file is not text, or the value is neither a string nor an integer.
    """
    ending, _, key = label.partition(":")
    if ending not in files:
        return None
    try:
        text = files[ending].decode()
        if key:
            text = _value(json.loads(text), key)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}.{ending}: not the name of a class ({error}); correct it") from None
    return text.strip() or None


def _value(tree: object, key: str) -> str:
    """Return a value of a JSON object as text, empty if there is none. Raises `ValueError`."""
    if not isinstance(tree, dict):
        raise ValueError("it is no JSON object")
    value = tree.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{key} is neither a string nor an integer")
    return str(value)
