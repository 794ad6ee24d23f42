"""The logs of a run folder, with one JSON object per line: metrics, measured times, scores."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from infogan_dist.files import report_unwritable, write_text

METRICS, TIMING, SCORES = "metrics.jsonl", "timing.jsonl", "scores.jsonl"
LOGS = (METRICS, TIMING, SCORES)
RESTART = "make room and start again: the run continues from its newest checkpoint"
TIMING_PREFIX = "timing/"  # of values that differ from one run of a config to the next
SCORE_PREFIX = "score/"


def append(folder: Path, values: dict[str, Any], step: int | None) -> None:
    """Append a line with the values that belong to it to each log; a log without values gets none.

    Args:
        folder: the run folder.
        values: numbers by name; those with `TIMING_PREFIX` and `SCORE_PREFIX` go to their own logs.
        step: the step that they belong to.

    Raises:
        DataError: a log cannot be written.
    """
    lines: dict[str, dict[str, Any]] = {name: {} for name in LOGS}
    for key, value in values.items():
        lines[_log_of(key)][key.removeprefix(TIMING_PREFIX)] = _finite(value)
    for name, line in lines.items():
        if line:
            path = folder / name
            with report_unwritable(path, RESTART), path.open("a") as stream:
                stream.write(json.dumps({"step": step, **line}) + "\n")


def truncate_logs(folder: Path, step: int) -> None:
    """Remove the log lines after a step, when a run continues from its checkpoint. Raises `OSError`."""
    for name in LOGS:
        path = folder / name
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in lines))


def has_step(folder: Path, log: str, step: int) -> bool:
    """Return whether a log has a line for a step."""
    path = folder / log
    return path.is_file() and any(_step_of(line) == step for line in path.read_text().splitlines())


def logged_values(folder: Path, log: str, name: str) -> dict[int, float]:
    """Return the finite values of a metric by step.

    Args:
        folder: the run folder.
        log: name of the log's file.
        name: the metric's.
    """
    values = {}
    if (folder / log).is_file():
        for line in (folder / log).read_text().splitlines():
            with contextlib.suppress(ValueError):  # an incomplete line
                row = json.loads(line)
                if isinstance(row.get(name), (int, float)):
                    values[row["step"]] = row[name]
    return values


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # an incomplete line, from a process that was killed while writing


def _log_of(key: str) -> str:
    """Return the file that a value is logged in."""
    if key.startswith(TIMING_PREFIX):
        return TIMING
    return SCORES if key.startswith(SCORE_PREFIX) else METRICS


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
