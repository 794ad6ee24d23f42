"""An error on one of several processes: one message at once, and the same exit status on all of them soon."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from infogan_dist.config.load import read_config
from infogan_dist.errors import ConfigError, DataError, TrainingError
from infogan_dist.runtime import failure
from infogan_dist.runtime.distributed import Engine
from tests.rigs.failing_train import block_for_ever, leave_sockets_open
from tests.runtime.ranks import RankEnd, ends_of_ranks, on_ranks

CONFIG = "configs/mnist5k.yaml"
MESSAGE_S, END_S = 2, 15  # after the error
ERRORS = {
    "data": DataError("shard: broken\nhere"),
    "config": ConfigError("one process: refuses"),
    "memory": MemoryError("no memory"),
    "interrupt": KeyboardInterrupt(),
    "training": TrainingError("step 3: not finite"),
}


def line_about(rank: int) -> str:
    return f"warning: process {rank} failed, see its message; this process ends\n"


def fail(folder: str, ranks: list[int], kind: str, blocking: bool) -> None:
    """Raise an error on some processes, for which the others wait in a collective operation."""
    dist.destroy_process_group = block_for_ever
    with failure.ends_all_processes():
        engine = Engine(read_config([CONFIG]))
        engine.wait()
        if engine.rank in ranks:
            if blocking:
                leave_sockets_open()
            Path(folder, f"raised_{engine.rank}").write_text(str(time.time()))
            raise ERRORS[kind]
        engine.wait()
    engine.close()


def fail_on(folder: Path, world: int, ranks: list[int], kind: str, blocking: bool = False) -> list[RankEnd]:
    """Return how the processes ended, after checking the times of message and end."""
    ends = ends_of_ranks(world, folder, fail, str(folder), ranks, kind, blocking)
    end = time.time()
    raised = min(float(path.read_text()) for path in folder.glob("raised_*"))
    assert end - raised < END_S
    assert min((folder / f"{rank}.err").stat().st_mtime for rank in ranks) - raised < MESSAGE_S
    return ends


@pytest.mark.parametrize("blocking", [True, False], ids=["collectives block", "collectives fail"])
@pytest.mark.parametrize(
    ("rank", "kind", "status", "message"),
    [
        (0, "data", 2, "error: shard: broken here\n"),
        (2, "config", 2, "error: one process: refuses\n"),
        (2, "memory", 1, "MemoryError: no memory\n"),
        (0, "interrupt", 130, "KeyboardInterrupt\n"),
    ],
)
def test_all_processes_end_with_the_status_of_the_one_that_failed(
    tmp_path: Path, rank: int, kind: str, status: int, message: str, blocking: bool
):
    ends = fail_on(tmp_path, 3, [rank], kind, blocking)
    assert [end.status for end in ends] == [status] * 3, [end.output for end in ends]
    failed = ends.pop(rank)
    assert failed.output.endswith(message)
    assert ("Traceback" in failed.output) == (status != 2)
    assert [end.output for end in ends] == [line_about(rank)] * 2


def test_an_error_of_all_processes_is_printed_once(tmp_path: Path):
    ends = fail_on(tmp_path, 2, [0, 1], "training")
    assert [end.status for end in ends] == [3, 3]
    assert sorted(end.output for end in ends) == ["", "error: step 3: not finite\n"]


def fail_with_trackers(kind: str) -> None:
    failure.TRACKERS_TIMEOUT_S = 1.0
    with failure.ends_all_processes():
        engine = Engine(read_config([CONFIG]))

        def end_trackers(status: int) -> None:
            failure.logger.warning("trackers end with %d", status)
            block_for_ever()

        if engine.is_main:
            failure.end_trackers_by(end_trackers)
            raise ERRORS[kind]
        engine.wait()


def test_trackers_end_after_the_message_with_the_exit_status_and_cannot_block(tmp_path: Path):
    first, second = ends_of_ranks(2, tmp_path, fail_with_trackers, "data")
    assert (first.status, second.status) == (2, 2)
    assert first.output == "error: shard: broken here\nwarning: trackers end with 2\n"


def lose_the_store(folder: str) -> None:
    """End the process that hosts the store, without an error, as `kill -9` does."""
    with failure.ends_all_processes():
        engine = Engine(read_config([CONFIG]))
        engine.wait()
        if engine.is_main:
            failure.os._exit(0)
        block_for_ever()


def test_a_process_ends_when_the_store_is_lost(tmp_path: Path):
    _, second = ends_of_ranks(2, tmp_path, lose_the_store, str(tmp_path))
    assert second.status == 1
    line = "warning: the store of the process group is lost: process 0 or its launcher ended"
    assert second.output.splitlines()[-1] == line  # after messages of torch's own


def end_normally() -> bool:
    """Close the engine on the host of the store earlier than on the other process."""
    failure.POLL_S = 0.05
    engine = Engine(read_config([CONFIG]))
    if not engine.is_main:
        time.sleep(1.0)  # the first process waits
    engine.close()
    time.sleep(0.5)  # several reads of a store that may be gone
    return dist.is_initialized()


def test_processes_that_end_normally_destroy_the_group(tmp_path: Path):
    assert on_ranks(2, end_normally) == [False, False]


def errors_in_turn() -> list[bool]:
    """Return what `fails_alike` returns for an error of both processes, and for one of the first alone."""
    failure.AGREEMENT_S = 1.0
    engine = Engine(read_config([CONFIG]))
    time.sleep(0.3 * engine.rank)
    both = engine.fails_alike("both")
    alone = engine.fails_alike("alone") if engine.is_main else False
    return [both, alone]


def test_processes_agree_on_an_error_that_all_of_them_have():
    assert on_ranks(2, errors_in_turn) == [[True, False], [True, False]]


def timeout_of_the_group() -> tuple[timedelta, list[str]]:
    """Return the group's time-out, and the warnings of tasks below and above half of it, one second."""
    engine = Engine(read_config([CONFIG, "train.collective_timeout_s=60"]))
    group = dist.distributed_c10d._get_default_group()
    messages: list[str] = []
    failure.logging.getLogger("infogan_dist.runtime.distributed").warning = (  # type: ignore[method-assign]
        lambda text, *values: messages.append(str(text) % values)
    )
    engine._timeout_s = 1
    for name, seconds in (("short", 0.2), ("long", 0.7)):
        with engine.timed(name):
            time.sleep(seconds)
    return group._get_backend(torch.device("cpu")).options._timeout, messages


def test_the_time_out_reaches_the_group_and_long_tasks_of_the_main_process_are_reported():
    first, second = on_ranks(2, timeout_of_the_group)
    assert first[0] == second[0] == timedelta(seconds=60)
    assert len(first[1]) == 1
    assert first[1][0].startswith("long took 1 s; after train.collective_timeout_s=1 ")
    assert second[1] == []


def test_one_process_raises_its_errors():
    with pytest.raises(DataError), failure.ends_all_processes():
        raise ERRORS["data"]
