"""The fields of a manifest file, which may come from another machine: each is checked before it is used."""

import re
from typing import Any

MAX_SAMPLES, MAX_BYTES = 2**40, 2**50  # of a shard; sums over all shards fit in 64 bits
MAX_SIDE, MAX_VALUES = 2**15, 2**31  # of an image, of a factor
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
KINDS = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}


def read_fields(tree: Any) -> dict[str, Any]:
    """Return the fields of a manifest, by name.

    Args:
        tree: the parsed JSON file.

    Returns:
        The fields of `Manifest` but its location, with `shards` as a list of dicts. Unknown fields are
        omitted.

    Raises:
        ValueError: a field is missing or not valid; the message names it.
    """
    manifest = _of_type(tree, dict, "the file")
    shards = _of_type(manifest.get("shards"), list, "shards")
    if not shards:
        raise ValueError("shards must not be empty")
    factors = _of_type(manifest.get("factors", {}), dict, "factors")
    return {
        "name": _of_type(manifest.get("name"), str, "name"),
        "image_shape": _image_shape(manifest.get("image_shape")),
        "label_names": [
            _of_type(name, str, f"label_names[{i}]")
            for i, name in enumerate(_of_type(manifest.get("label_names"), list, "label_names"))
        ],
        "shards": [_shard(shard, f"shards[{i}]") for i, shard in enumerate(shards)],
        "fit": _of_type(manifest.get("fit", False), bool, "fit"),
        "factors": {name: _integer(size, f"factors.{name}", MAX_VALUES) for name, size in factors.items()},
        "origin": _of_type(manifest.get("origin", {}), dict, "origin"),
        **{
            field: None if manifest.get(field) is None else _of_type(manifest[field], str, field)
            for field in ("background", "image", "label")
        },
    }


def _image_shape(value: Any) -> tuple[int, int, int]:
    sides = _of_type(value, list, "image_shape")
    if len(sides) != 3 or sides[0] not in (1, 3):
        raise ValueError("image_shape must be [channels, height, width] with 1 or 3 channels")
    channels, height, width = (_integer(side, f"image_shape[{i}]", MAX_SIDE) for i, side in enumerate(sides))
    return channels, height, width


def _shard(value: Any, field: str) -> dict[str, Any]:
    shard = _of_type(value, dict, field)
    url = _of_type(shard.get("url"), str, f"{field}.url")
    if not url.strip() or not url.isprintable():
        raise ValueError(f"{field}.url must be a URL or a path")
    sha256 = _of_type(shard.get("sha256"), str, f"{field}.sha256")
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"{field}.sha256 must have 64 hexadecimal digits")
    return {
        "url": url,
        "samples": _integer(shard.get("samples"), f"{field}.samples", MAX_SAMPLES),
        "bytes": _integer(shard.get("bytes"), f"{field}.bytes", MAX_BYTES),
        "sha256": sha256.lower(),
    }


def _of_type(value: Any, kind: type, field: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{field} must be {KINDS[kind]}, not {KINDS.get(type(value), 'a number')}")
    return value


def _integer(value: Any, field: str, largest: int) -> int:
    if type(value) is not int or not 1 <= value <= largest:
        kind = KINDS.get(type(value), f"{value!r:.30}" if isinstance(value, float) else "another number")
        raise ValueError(f"{field} must be an integer from 1 to {largest:,}, not {kind}")
    return value
