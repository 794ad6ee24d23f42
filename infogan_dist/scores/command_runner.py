"""Running the package's commands one after the other, as subprocesses that can be asked to stop."""

import signal
import subprocess
from typing import Any

import torch

from infogan_dist.errors import EXIT_STOPPED
from infogan_dist.launcher import STOP_SIGNALS, launch_command


class CommandFailedError(Exception):
    """A command has failed or was stopped; it has printed its own message.

    Attributes:
        status: exit status to end with.
    """

    def __init__(self, status: int):
        super().__init__(f"exit status {status}")
        self.status = status


class CommandRunner:
    """Runs the package's commands one after the other, and forwards a request to stop to the running one.

    Args:
        quiet: run them with `--quiet`.

    Attributes:
        is_stopped: whether a stop was requested.
    """

    def __init__(self, quiet: bool = False):
        self.options = ["--quiet"] if quiet else []
        self.is_stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def listen_for_stop(self) -> None:
        """Handle stop signals from here on."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)

    def run(self, command: str, *arguments: str) -> None:
        """Run a command on all GPUs of this machine, or on the CPU, and wait for its end.

        Args:
            command: its module, such as `train`.
            arguments: of the command.

        Raises:
            CommandFailedError: a stop was requested, or its exit status is not 0.
        """
        if self.is_stopped:
            raise CommandFailedError(EXIT_STOPPED)
        target = ["-m", f"infogan_dist.{command}", *arguments, *self.options]
        # In a session of its own the command does not receive Ctrl-C directly, but once, from this process.
        self._process = subprocess.Popen(
            launch_command(*target, processes=torch.cuda.device_count()), start_new_session=True
        )
        if self.is_stopped:  # by a signal that arrived while the command was started
            self._terminate()
        status = self._process.wait()
        if self.is_stopped:
            raise CommandFailedError(EXIT_STOPPED)
        if status:
            raise CommandFailedError(status)

    def _stop(self, number: int, frame: Any) -> None:
        self.is_stopped = True
        self._terminate()

    def _terminate(self) -> None:
        # torchrun forwards SIGTERM to its processes, but not every stop signal.
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
