"""Helpers for processes that a rig starts: waiting for them, and the environment of a user's shell."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.conftest import environment


def wait_until(
    condition: Callable[[], bool],
    timeout: float = 240,
    describe: Callable[[], str] = lambda: "took too long",
    processes: Iterable[subprocess.Popen[Any]] = (),
    interval: float = 0.1,
) -> None:
    """Poll until a condition holds; fail the test if it does not in time.

    Args:
        condition: is called again and again.
        timeout: seconds after which the test fails.
        describe: returns the message of that failure.
        processes: if one of them ends before the condition holds, the test fails as well.
        interval: seconds between two calls.
    """
    processes, deadline = list(processes), time.monotonic() + timeout
    while not condition():
        assert all(process.poll() is None for process in processes), "a process ended too early"
        assert time.monotonic() < deadline, describe()
        time.sleep(interval)


def venv_environment() -> dict[str, str]:
    """Return the environment of a user's shell in which this virtual environment is activated."""
    env = environment()
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
