"""Where scores are written, and the origin that is written with them. This module imports nothing heavy."""

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from infogan_dist.credentials import redact_argument
from infogan_dist.errors import DataError
from infogan_dist.files import report_unwritable, write_text

SCORES_FILE = "scores.json"
REMEDY = "set --out to another place"  # where a file cannot be written
PACKAGE = Path(__file__).parents[1]
GIT_TIMEOUT_S = 10


def prepare_output(path: Path) -> None:
    """Create the folder of a file that is written at the end of a long computation, and try to write there.

    Raises:
        DataError: the file could not be written.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; set --out to a file")
    with report_unwritable(path, REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_output(path: Path, text: str) -> None:
    """Write a text file and the folder that it is in. Raises `DataError`."""
    with report_unwritable(path, REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def command_line(module: str, arguments: list[str]) -> str:
    """Return a command line of the package as text, without passwords in URLs."""
    return shlex.join(["python", "-m", f"infogan_dist.{module}", *map(redact_argument, arguments)])


def code_origin(package: Path = PACKAGE) -> dict[str, Any]:
    """Return the git commit of the package, and whether its files differ from that commit.

    Args:
        package: the folder of the package.

    Returns:
        `commit` and `dirty`; empty where the package does not run from a git checkout of its own.
    """
    # An installed package may lie within the checkout of another project, which does not track it.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {}
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return {} if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command in a folder, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
