"""Findings of the checks, and the context that the checks examine.

A check is a function that takes a `PreflightContext` and yields a `Finding` for each result. A `UserError`
that a check raises becomes a finding as well, so what training refuses is reported with the same message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infogan_dist.launcher import ProcessPlace, process_place

if TYPE_CHECKING:  # importing torch takes seconds, and the config is checked before that
    from torch.distributed import Store

    from infogan_dist.config.schema import Config
    from infogan_dist.data.shards import Manifest

OK, SKIPPED, WARN, FAIL = "ok", "skip", "WARN", "FAIL"
UNITS = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: `OK`, `WARN`, `FAIL`, or `SKIPPED` where nothing was checked.
        message: the result, with the file, key or device that it concerns.
        remedy: how to correct it; empty where nothing is wrong or the message includes the remedy.
        shared: whether it concerns something that all processes share; the report then omits which of them
            reported it.
        uniform: whether all processes should report the same.
    """

    level: str
    message: str
    remedy: str = ""
    shared: bool = False
    uniform: bool = False


Findings = Iterator[Finding]


@dataclass
class PreflightContext:
    """The machine and the run that are examined, with the results that later checks need.

    Attributes:
        arguments: config files and overrides, as for training; empty: only the machine is examined.
        place: the place of this process among those that the launcher started.
        store: key-value store that the processes share; None before they have connected, or if they cannot.
        config, manifest: the run's; None before they are checked, or if they are invalid.
        checkpoint_bytes: size of a checkpoint; None before the networks are checked, or if they are invalid.
    """

    arguments: list[str]
    place: ProcessPlace = field(default_factory=process_place)
    store: Store | None = None
    config: Config | None = None
    manifest: Manifest | None = None
    checkpoint_bytes: int | None = None


def format_bytes(count: float) -> str:
    """Return a number of bytes in its largest fitting unit, such as `1.5 GiB`."""
    unit = next((unit for unit, size in UNITS.items() if count >= size), "KiB")
    return f"{count / UNITS[unit]:,.1f} {unit}"
