"""A table of the scores of several models or settings: a row per score, a column per run."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infogan_dist.errors import DataError
from infogan_dist.scores.output import SCORES_FILE
from infogan_dist.scores.page import MEASURED_ENTRIES, MISSING, markdown_table
from infogan_dist.scores.score import format_protocol


@dataclass(frozen=True)
class Column:
    """The scores of one run, of one seed, or the means of a scorecard.

    Attributes:
        name: heading of the column.
        values: the numbers by name.
        deviations: the standard deviation over seeds of the same scores; empty for a single run.
        protocol: how each number was computed.
    """

    name: str
    values: dict[str, float]
    deviations: dict[str, float]
    protocol: dict[str, dict[str, Any]]


def read_columns(paths: list[Path]) -> list[Column]:
    """Read the files to compare.

    Args:
        paths: score files, run folders with a score file, records of seeds, or scorecards.

    Raises:
        DataError: a file is missing, or contains no scores.
    """
    names = [_short_name(path) for path in paths]
    # Where short names would be ambiguous, the paths distinguish the columns.
    headings = names if len(set(names)) == len(names) else [str(path) for path in paths]
    return [_read_column(path, heading) for path, heading in zip(paths, headings, strict=True)]


def _short_name(path: Path) -> str:
    full = path.resolve()
    return full.parent.name if path.name == SCORES_FILE else full.name.removesuffix(".json")


def _read_column(path: Path, name: str) -> Column:
    file = path / SCORES_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
        scores, protocol = dict(content["scores"]), dict(content["protocol"])
        is_card = any(isinstance(score, dict) for score in scores.values())
        values = {n: float(s["mean"] if is_card else s) for n, s in scores.items()}
        deviations = {n: float(s["std"]) for n, s in scores.items() if is_card and s["std"] is not None}
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); name a score file, a run folder that was scored, or "
            "a scorecard"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: contains no scores ({error!r}); name a score file or a scorecard") from None
    return Column(name, values, deviations, protocol)


def format_markdown_table(columns: list[Column]) -> str:
    """Return the table in Markdown; means of scorecards with their standard deviation."""

    def cell(column: Column, score: str) -> str:
        deviation = f" ± {column.deviations[score]:.4f}" if score in column.deviations else ""
        return f"{column.values[score]:.4f}{deviation}"

    return "".join(f"{line}\n" for line in markdown_table(*_table(columns, cell)))


def format_csv_table(columns: list[Column]) -> str:
    """Return the table as comma-separated values, with all digits and without standard deviations."""
    header, rows = _table(columns, lambda column, score: repr(column.values[score]))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _table(columns: list[Column], cell: Callable[[Column, str], str]) -> tuple[list[str], list[list[str]]]:
    names = dict.fromkeys(name for column in columns for name in column.values)
    rows = [[name, *(cell(c, name) if name in c.values else MISSING for c in columns)] for name in names]
    return ["score", *(column.name for column in columns)], rows


def protocol_warnings(columns: list[Column]) -> list[str]:
    """Return warnings of rows whose numbers were not computed in the same way; equal ones are joined."""
    rows_by_difference: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for column in columns for name in column.values):
        protocols = [_description(c.protocol.get(name, {})) for c in columns if name in c.values]
        entries = dict.fromkeys(entry for protocol in protocols for entry in protocol)
        for entry in entries:
            values = list(dict.fromkeys(protocol.get(entry, "not stated") for protocol in protocols))
            if len(values) > 1:
                difference = f"{entry.replace('_', ' ')} differs ({'; '.join(values)})"
                rows_by_difference.setdefault(difference, []).append(name)
    return [f"{', '.join(names)}: {text}" for text, names in rows_by_difference.items()]


def _description(protocol: dict[str, Any]) -> dict[str, str]:
    """Return the entries of a protocol that describe how a number was computed, as text."""
    entries = {k: v for k, v in protocol.items() if k not in MEASURED_ENTRIES and not isinstance(v, dict)}
    return {key: format_protocol({key: value}).partition(": ")[2] for key, value in entries.items()}
