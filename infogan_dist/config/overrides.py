"""`key=value` overrides, and values of YAML that are read as their field's type."""

import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from infogan_dist.config.fields import schema_keys
from infogan_dist.config.schema import Config
from infogan_dist.credentials import redact_argument, redact_url
from infogan_dist.errors import ConfigError

NULLS = ("null", "None", "~", "")  # YAML's words, and that of W&B's agent
POWER_OF_TEN = re.compile(r"\d+(\.\d*)?[eE]\+?\d+")


def parse_override(text: str) -> Any:
    """Return an override as a tree of one key.

    A text field takes its text as typed: `tracking.notes=fix #3` has no comment, and `tracking.group=007` no
    number. Every other value is read as YAML.

    Raises:
        ConfigError: no key, or a value that is not readable.
    """
    key, _, value = text.partition("=")
    key = key.removeprefix("--").strip()  # W&B passes --key=value where a sweep uses ${args}
    if not key or any(not part for part in key.split(".")):
        raise ConfigError(f"{redact_argument(text)}: an override is key=value, such as train.steps=20000")
    kinds = field_types().get(key, ())
    if str in kinds:
        tree: Any = None if value in NULLS and type(None) in kinds else value
        for part in reversed(key.split(".")):
            tree = {part: tree}
        return tree
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = redacted(yaml_problem(error), value)
        raise ConfigError(f"{redact_argument(text)}: value not readable as YAML: {problem}") from None
    return normalised(tree)


def normalised(node: Any, prefix: str = "") -> Any:
    """Return a tree of YAML with null for None, and with whole numbers for numbers such as 2e4.

    YAML takes 2e4 for a fraction or, in files, for a text.
    """
    if isinstance(node, dict):
        return {key: normalised(value, f"{prefix}{key}.") for key, value in node.items()}
    if isinstance(node, list):
        return [normalised(value) for value in node]
    kinds = field_types().get(prefix.removesuffix("."), ())
    is_number = isinstance(node, float) or (isinstance(node, str) and POWER_OF_TEN.fullmatch(node))
    if int in kinds and is_number and float(node).is_integer():
        return int(float(node))
    return None if node == "None" else node


@cache
def field_types() -> Mapping[str, tuple[type, ...]]:
    """Return the types that each key of the schema may have, such as `train.epochs`: (float, NoneType)."""
    unions = (typing.Union, types.UnionType)
    return {
        key: typing.get_args(hint) if typing.get_origin(hint) in unions else (hint,)
        for key, hint, _ in schema_keys(Config)
    }


def yaml_problem(error: Exception) -> str:
    """Return what is wrong, and where, without the excerpt, which may contain part of a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).splitlines()[0]
    mark = error.problem_mark
    return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"


def redacted(message: str, node: Any) -> str:
    """Return a message, which may quote values of a tree, without the credentials in their URLs."""
    if isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            message = redacted(message, child)
        return message
    return message.replace(node, redact_url(node)) if isinstance(node, str) and node else message
