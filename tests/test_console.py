"""Messages and progress of the command lines."""

import logging
import sys

import pytest

from infogan_dist import console
from infogan_dist.errors import ConfigError, TrainingError

logger = logging.getLogger("infogan_dist.test")


def test_messages_go_to_stderr_with_one_prefix_for_warnings(capsys: pytest.CaptureFixture[str]):
    console.set_up_logging()
    logger.info("loading %s", "x")
    logger.warning("slow")
    output = capsys.readouterr()
    assert output.err == "loading x\nwarning: slow\n"
    assert output.out == ""


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]):
    console.set_up_logging(quiet=True)
    logger.info("loading")
    logger.warning("slow")
    with console.progress(10, "step") as bar:
        bar.update(10)
    assert capsys.readouterr().err == "warning: slow\n"


@pytest.mark.parametrize(("rank", "expected"), [("0", "hello\nwarning: slow\n"), ("1", "warning: slow\n")])
def test_messages_appear_once_for_all_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, expected: str
):
    monkeypatch.setenv("RANK", rank)
    console.set_up_logging()
    logger.info("hello")
    logger.warning("slow")
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(("error", "status"), [(ConfigError("a:\n b"), 2), (TrainingError("c"), 3)])
def test_a_user_error_is_one_line_and_its_status(
    capsys: pytest.CaptureFixture[str], error: Exception, status: int
):
    console.set_up_logging()
    with pytest.raises(SystemExit) as stop, console.exit_on_user_error():
        raise error
    assert stop.value.code == status
    assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


def test_progress_is_one_line_per_interval_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: clock)
    console.set_up_logging()
    with console.progress(100, "step", initial=20) as bar:
        for _ in range(80):  # a step per second
            clock += 1.0
            bar.set_postfix_str("D=1.00")
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 80 // int(console.PROGRESS_INTERVAL_S) + 1  # and one at the end
    assert lines[0].startswith("50%, 50/100 [00:30<00:50,")
    assert lines[-1].startswith("100%, 100/100")
    assert all("\r" not in line and "D=1.00" in line for line in lines)


def test_a_message_does_not_break_the_progress_bar_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console.set_up_logging()
    with console.progress(3, "step") as bar:
        bar.update()
        logger.warning("in between")
        bar.update(2)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "warning: in between" in [line.strip() for line in lines]  # on a line of its own


def test_nothing_is_shown_to_users_of_the_library(capsys: pytest.CaptureFixture[str]):
    """Without a command line, which sets up logging, there is no progress."""
    console.PACKAGE_LOGGER.handlers = []
    console.PACKAGE_LOGGER.setLevel(logging.NOTSET)
    with console.progress(10, "step") as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_no_message_contains_the_credentials_of_a_url(capsys: pytest.CaptureFixture[str]):
    console.set_up_logging()
    logger.warning("reading '%s', again", "https://ann:secret@host/set?token=secret")
    console.report_error(ConfigError("s3://ann:secret@bucket/x: broken"))
    sys.excepthook(ValueError, ValueError("https://host/a.tar?signature=secret"), None)
    output = capsys.readouterr().err
    assert "secret" not in output
    assert "warning: reading 'https://host/set', again\nerror: s3://bucket/x: broken\n" in output
    assert output.endswith("ValueError: https://host/a.tar\n")
