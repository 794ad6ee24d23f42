"""Descriptions of the config's keys: the list of `--help`, and the message for an unknown key."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from typing import Any

from infogan_dist.config.schema import MISSING, Config


def help_text() -> str:
    """Return every key with its meaning, type and default, one per line."""
    rows = list(_describe(Config, ""))
    width = max(len(key) for key, *_ in rows)
    return "\n".join(
        f"  {key:{width}}  {meaning} [{kind}; {default}]" for key, kind, default, meaning in rows
    )


def unknown_key_message(key: str) -> str:
    """Return the message that refuses an unknown key and names the nearest known one."""
    known = [spec.name for spec in dataclasses.fields(Config)] + [row[0] for row in _describe(Config, "")]
    parts = key.split(".")
    if parts[0] == "codes" and len(parts) > 2:
        known = [k.replace("NAME", parts[1]) for k in known if k.startswith("codes.NAME.")]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
        k for k in known if k.split(".")[-1] == parts[-1]
    ]
    return f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else "see --help for all keys")


def _describe(schema: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (key, type, default, meaning) of every field; NAME and [] stand for items of a collection."""
    hints = typing.get_type_hints(schema)
    for spec in dataclasses.fields(schema):
        hint, key = hints[spec.name], prefix + spec.name
        arguments = [a for a in typing.get_args(hint) if a is not type(None)]
        if dataclasses.is_dataclass(hint):
            yield from _describe(hint, key + ".")
            continue
        yield key, _type_name(hint, spec.metadata["choices"]), _default(spec), spec.metadata["meaning"]
        for item in arguments:
            inner = [a for a in typing.get_args(item) if dataclasses.is_dataclass(a)] or [item]
            if dataclasses.is_dataclass(inner[0]):
                yield from _describe(inner[0], key + (".NAME." if item is not inner[0] else "[]."))


def _type_name(hint: Any, choices: tuple[str, ...] | None) -> str:
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return _type_name(next(a for a in arguments if a is not type(None)), choices) + " or null"
    if typing.get_origin(hint) is list:
        return "list of " + _type_name(arguments[0], choices)
    if typing.get_origin(hint) is dict:
        return "mapping"
    if dataclasses.is_dataclass(hint):
        return "entries"
    return "|".join(choices) if choices else hint.__name__


def _default(spec: Any) -> str:
    value = spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()
    return "must be given" if value == MISSING else f"default {'null' if value is None else value}"
