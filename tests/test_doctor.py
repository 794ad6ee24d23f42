"""The doctor finds planted faults, each in one line with a remedy, and nothing where nothing is wrong."""

import fcntl
import hashlib
import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from infogan_dist import doctor
from infogan_dist.data import fetch
from infogan_dist.preflight.machine import FAIL, OK, UNSEEN, WARN, Case, Finding
from infogan_dist.training.run import LOCK
from tests.conftest import Done, Runner, Started, free_port


def told(text: str, level: str) -> dict[str, str]:
    """The lines of a level by what was looked at."""
    lines = [line for line in text.splitlines() if line.startswith(f"{level:4} ")]
    return {line[5:18].strip(): line[19:] for line in lines}


def failures(done: Done) -> dict[str, str]:
    assert "Traceback" not in done.stderr
    return told(done.stdout, FAIL)


@pytest.fixture
def serial_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that no launcher started and nobody is logged in from, as `environment()` has it."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def copied(small_set: Path, tmp_path: Path) -> Path:
    """A shard set to be damaged."""
    return Path(shutil.copytree(small_set, tmp_path / "set"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sound_run_fails_nothing_and_leaves_no_trace(
    run_module: Runner, tiny: Path, tmp_path: Path, processes: int
):
    done = run_module("doctor", tiny, f"train.processes={processes}", processes=processes)
    assert not failures(done)
    assert not told(done.stdout, WARN)
    assert [line[5:18].strip() for line in done.stdout.splitlines()] == [
        name for name, *_ in doctor.MACHINE + doctor.RUN
    ]
    assert f"32 is {processes} process(es) x 1 micro-batch(es) x {32 // processes} images" in done.stdout
    assert not (tmp_path / "run").exists()


def test_without_a_config_the_machine_alone_is_looked_at(run_module: Runner):
    done = run_module("doctor")
    assert set(told(done.stdout, OK)) == {"communication", "versions", "devices", "signals"}
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("overrides", "name", "says"),
    [
        (["train.steeps=3"], "config", "did you mean train.steps"),
        (["data.shards=nowhere"], "manifest", "no shard set there.* make one with"),
        (["train.processes=2"], "processes", "2 asked for, 1 came up.* start them by"),
        (["train.precision=fp16"], "precision", "fp16 needs a GPU; on a CPU use"),
        (["tracking.trackers=[comet]"], "trackers", "comet is unknown.* `pip install comet`"),
        (["train.init_from=nowhere"], "checkpoints", "no whole checkpoint there"),
        (
            ["networks.generator=[{kind: dense, out: 1, grid: true}, {kind: deconv, stride: 3}]"],
            "networks",
            "8x8 cannot be reached.*; make shards whose sides are multiples of 3",
        ),
    ],
)
def test_what_training_would_refuse_fails(
    run_module: Runner, tiny: Path, overrides: list[str], name: str, says: str
):
    found = failures(run_module("doctor", tiny, *overrides, status=2))
    assert set(found) == {name}
    assert re.search(says, found[name])


def test_what_cannot_be_known_without_a_config_is_not_looked_at(run_module: Runner, tiny: Path):
    done = run_module("doctor", tiny, "train.steeps=3", status=2)
    seen = told(done.stdout, UNSEEN)
    assert set(seen) == {name for name, _, need in doctor.RUN if need is not None}
    assert seen["precision"] == "not looked at: see config"


def test_lanes_that_two_processes_cannot_share_fail_once(run_module: Runner, tiny: Path):
    done = run_module("doctor", tiny, "data.lanes=3", "train.batch_size=48", processes=2, status=2)
    assert failures(done)["processes"] == (
        "data.lanes: 3 lanes cannot be dealt to 2 processes; use data.lanes=2 or 4"
    )
    assert done.stdout.count("data.lanes: 3") == 1
    assert "FAIL" not in done.stderr


def test_every_broken_shard_is_named_whichever_process_reads_it(run_module: Runner, tiny: Path, copied: Path):
    """One cut short, one missing, one with a byte altered, one whose first image is none."""
    cut, missing, altered, garbled = (copied / f"{i:06d}.tar" for i in (2, 3, 4, 7))
    cut.write_bytes(cut.read_bytes()[:-1024])
    missing.unlink()
    content = bytearray(altered.read_bytes())
    content[1000] ^= 1
    altered.write_bytes(content)
    content = garbled.read_bytes().replace(b"\x89PNG", b"\x89GNP", 1)
    garbled.write_bytes(content)
    tree = json.loads((copied / "manifest.json").read_text())
    tree["shards"][7]["sha256"] = hashlib.sha256(content).hexdigest()
    (copied / "manifest.json").write_text(json.dumps(tree))
    done = run_module("doctor", tiny, f"data.shards={copied}", processes=2, status=2)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAIL shards")]
    assert len(lines) == 4
    for shard, says in (
        (cut, "bytes where the manifest says .*; restore the shard"),
        (missing, "the shard is missing; restore it"),
        (altered, "SHA-256 differs.*; restore the shard"),
        (garbled, "not a readable image"),
    ):
        assert any(re.search(f"{shard.name}.*{says}", line) for line in lines), lines
    done = run_module("doctor", tiny, f"data.shards={copied}", "data.on_error=skip", processes=2)
    assert done.stdout.count("WARN shards") == 4


@pytest.mark.parametrize("reader", [0, 1])
def test_all_processes_end_alike_whichever_finds_the_fault(
    tiny: Path, tmp_path: Path, copied: Path, reader: int
):
    (copied / f"{reader:06d}.tar").unlink()
    running = Started(tmp_path, "doctor", tiny, f"data.shards={copied}", processes=2)
    for process in running.processes:
        process.join(60)
    assert [process.exitcode for process in running.processes] == [2, 2]


def test_many_findings_are_counted():
    broken = [Finding(FAIL, f"shard {i}", "restore it", shared=True) for i in range(100)]
    lines = doctor.report("shards", [broken[:50], broken[50:]])
    assert len(lines) == doctor.FEW + 1
    assert lines[0] == "FAIL shards        shard 0; restore it"
    assert lines[-1] == "FAIL shards        100 in all, 95 more like these"


def test_other_processes_findings_say_whose_they_are():
    ours, theirs = Finding(OK, "torch 3", alike=True), Finding(OK, "torch 2", alike=True)
    full, free = Finding(FAIL, "no room", "make room"), Finding(OK, "5 GiB free")
    lines = doctor.report(
        "x", [[ours, Finding(OK, "6 GiB free")], [ours, free], [theirs, full], [ours, full]]
    )
    assert lines == [
        "ok   x             torch 3",
        "ok   x             6 GiB free",
        "WARN x             unlike the first, process 2: torch 2",
        "FAIL x             process 2, 3: no room; make room",
    ]


def test_a_server_that_is_not_there_fails(
    alone: None, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(SystemExit) as ended:
        doctor.main([str(tiny), f"data.shards=http://127.0.0.1:{free_port()}/set"])
    assert ended.value.code == 2
    found = told(capsys.readouterr().out, FAIL)
    assert set(found) == {"manifest"}
    assert "cannot be read over the network" in found["manifest"]
    assert "start again when it can" in found["manifest"]


def test_a_blocked_signal_ends_the_doctor_with_status_2(alone: None, capsys: pytest.CaptureFixture[str]):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with pytest.raises(SystemExit) as ended:
            doctor.main([])
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert ended.value.code == 2
    assert "SIGUSR1 is blocked" in told(capsys.readouterr().out, FAIL)["signals"]


def test_a_folder_that_cannot_be_made_fails(run_module: Runner, tiny: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    found = failures(run_module("doctor", tiny, f"run={tmp_path}/file/run", status=2))
    assert set(found) == {"run folder"}
    assert re.search(r"cannot be written \(.+\); set run=FOLDER", found["run folder"])


def test_a_folder_of_another_run_fails(run_module: Runner, tiny: Path):
    run_module("train", tiny)
    assert "goes on from step 3" in run_module("doctor", tiny).stdout
    found = failures(run_module("doctor", tiny, "seed=1", processes=2, status=2))
    assert set(found) == {"checkpoints"}
    assert re.search(r"would be another \(seed: 0 -> 1\); choose another folder", found["checkpoints"])


def test_a_run_that_is_still_going_fails_and_is_left_alone(run_module: Runner, tiny: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / LOCK).open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        found = failures(run_module("doctor", tiny, status=2))
        assert set(found) == {"run folder"}
        assert "belongs to a run that is still going; wait for it" in found["run folder"]
    run_module("doctor", tiny)


def test_damaged_checkpoints_are_warned_of(run_module: Runner, tiny: Path, tmp_path: Path):
    run_module("train", tiny, "checkpoint.every=2")
    newest = tmp_path / "run" / "checkpoints" / "step_00000003"
    (newest / "generator.safetensors").write_bytes(b"")
    done = run_module("doctor", tiny)
    assert "step_00000003; they are passed over" in told(done.stdout, WARN)["checkpoints"]
    assert "goes on from step 2" in told(done.stdout, OK)["checkpoints"]


def test_shards_that_cannot_be_dealt_evenly_are_warned_of(run_module: Runner, tiny: Path):
    done = run_module("doctor", tiny, "data.lanes=16")
    assert "8 shards for 16 lanes" in told(done.stdout, WARN)["lanes"]


def test_a_check_that_breaks_is_a_finding():
    def breaks(case: Case) -> Iterator[Finding]:
        yield Finding(OK, "before")
        raise RuntimeError("the disk is\non fire")

    before, found = doctor.examined(Case([], 0, 1, 1), breaks, None)
    assert (before.level, found.level) == (OK, FAIL)
    assert "RuntimeError: the disk is on fire" in doctor.report("x", [[found]])[0]


def test_help_needs_nothing(run_module: Runner):
    assert "infogan_dist.doctor configs/mnist.yaml" in run_module("doctor", "--help").stdout
