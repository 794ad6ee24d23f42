"""The resolved config as YAML, with the origin of each value: `--print-config`."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import yaml

from infogan_dist.config.load import flatten_tree, read_config, read_trees
from infogan_dist.credentials import redact_text

DEFAULT = "default"


def config_with_origins(arguments: list[str]) -> str:
    """Return the resolved config as a YAML file, in which a comment names the origin of each value.

    Args:
        arguments: as of `read_config`.

    Returns:
        YAML, in which passwords and tokens of URLs are masked.

    Raises:
        ConfigError: as of `read_config`.
    """
    config, origins = dataclasses.asdict(read_config(arguments)), {}
    for origin, tree in read_trees(arguments):
        origins |= dict.fromkeys(flatten_tree(tree), origin)
    return redact_text("\n".join(_lines(config, "", "", origins)))


def _lines(node: dict[str, Any], prefix: str, indent: str, origins: dict[str, str]) -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, f"{prefix}{name}.", indent + "  ", origins)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
            text = text.removesuffix("...\n").strip()
            yield f"{indent}{name}: {text}  # {origins.get(prefix + name, DEFAULT)}"
