"""Errors that a user can correct, and the exit statuses of the command lines."""

EXIT_STOPPED = (
    75  # EX_TEMPFAIL: a stop was requested, a checkpoint was saved, start the run again to continue
)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells: Ctrl-C was pressed a second time


class UserError(Exception):
    """An error for the user, with a message of the form `WHERE: WHAT; REMEDY` on one line.

    Attributes:
        status: exit status of a command line that ends with this error.
    """

    status = 2


class ConfigError(UserError):
    """The configuration or the command line asks for something impossible."""


class MachineError(ConfigError):
    """A machine cannot do what the configuration or the launcher asks for; the run's others possibly can."""


class DataError(UserError):
    """A shard set, an image, a checkpoint or another file is missing, damaged or cannot be written."""


class TrainingError(UserError):
    """Training diverged, on every process at the same step."""

    status = 3
