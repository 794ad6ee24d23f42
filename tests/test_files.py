"""Files are written completely or not at all."""

from pathlib import Path

import pytest

from infogan_dist.errors import DataError
from infogan_dist.files import atomic_write, report_unwritable, write_text


def test_a_file_appears_when_it_is_complete(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_changes_nothing(tmp_path: Path, error: BaseException):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted_write() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        interrupted_write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path):
    path = tmp_path / "missing" / "a.txt"
    with (
        pytest.raises(DataError, match=r"a\.txt: cannot be written \(No such file or directory\); set --out"),
        report_unwritable(path, "set --out to another place"),
    ):
        write_text(path, "x")
