"""The doctor reports planted faults, each in one line with a remedy, and no fault of a sound run."""

import fcntl
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infogan_dist import doctor
from infogan_dist.data import fetch
from infogan_dist.preflight.examine import checks
from infogan_dist.preflight.finding import FAIL, OK, SKIPPED, WARN
from infogan_dist.runtime.run_folder import RunFolder
from tests.conftest import ROOT, Done, Runner, Started, environment, free_port


def lines_of(text: str, level: str) -> dict[str, str]:
    """Return the report's lines of a level, by the check's name."""
    lines = [line for line in text.splitlines() if line.startswith(f"{level:4} ")]
    return {line[5:18].strip(): line[19:] for line in lines}


def failures(done: Done) -> dict[str, str]:
    assert "Traceback" not in done.stderr
    return lines_of(done.stdout, FAIL)


@pytest.fixture
def single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test process as if no launcher had started it, without a W&B login."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def copied_set(small_set: Path, tmp_path: Path) -> Path:
    """A shard set to be damaged."""
    return Path(shutil.copytree(small_set, tmp_path / "set"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sound_run_has_no_failures_and_leaves_no_files(
    run_module: Runner, tiny: Path, tmp_path: Path, processes: int
):
    done = run_module("doctor", tiny, f"train.processes={processes}", processes=processes)
    assert not failures(done)
    assert not lines_of(done.stdout, WARN)
    names = [line[5:18].strip() for line in done.stdout.splitlines()]
    assert names == [check.name for check in checks(with_run=True)]
    assert f"32 is {processes} process(es) x 1 micro-batch(es) x {32 // processes} images" in done.stdout
    assert not (tmp_path / "run").exists()


def test_without_a_config_only_the_machine_is_checked(run_module: Runner):
    done = run_module("doctor")
    names = {"launcher", "communication", "versions", "devices", "signals"}
    assert set(lines_of(done.stdout, OK)) == names
    assert len(done.stdout.splitlines()) == len(names)


@pytest.mark.parametrize(
    ("overrides", "name", "message"),
    [
        (["train.steeps=3"], "config", "did you mean train.steps"),
        (["data.shards=nowhere"], "manifest", "no shard set there.* create one with"),
        (["train.processes=2"], "processes", "2 asked for, 1 came up.* start them by"),
        (["train.precision=fp16"], "precision", "fp16 needs a GPU; on a CPU use"),
        (["train.cuda_graph=true"], "CUDA graph", "only for a single process with a GPU; use train"),
        (["tracking.trackers=[comet]"], "trackers", "comet is unknown.* `pip install comet`"),
        (["train.init_from=nowhere"], "checkpoints", "no complete checkpoint there"),
        (
            ["networks.generator=[{kind: dense, out: 1, grid: true}, {kind: deconv, stride: 3}]"],
            "networks",
            "8x8 cannot be reached.*; create shards whose sides are multiples of 3",
        ),
    ],
)
def test_what_training_refuses_is_a_failure(
    run_module: Runner, tiny: Path, overrides: list[str], name: str, message: str
):
    reported = failures(run_module("doctor", tiny, *overrides, status=2))
    assert set(reported) == {name}
    assert re.search(message, reported[name])


def test_checks_that_need_a_valid_config_are_skipped_without_one(run_module: Runner, tiny: Path):
    done = run_module("doctor", tiny, "train.steeps=3", status=2)
    skipped = lines_of(done.stdout, SKIPPED)
    assert set(skipped) == {check.name for check in checks(with_run=True) if check.requires is not None}
    assert skipped["precision"] == "not checked, see config"


def test_a_quiet_doctor_prints_warnings_and_failures_only(run_module: Runner, tiny: Path):
    done = run_module("doctor", "--quiet", tiny, "data.lanes=16", "train.precision=fp16", status=2)
    assert [line[:4] for line in done.stdout.splitlines()] == [FAIL, WARN]
    assert set(failures(done)) == {"precision"}
    assert set(lines_of(done.stdout, WARN)) == {"lanes"}
    assert run_module("doctor", tiny, "--quiet").stdout == ""


def test_lanes_that_two_processes_cannot_share_fail_once(run_module: Runner, tiny: Path):
    done = run_module("doctor", tiny, "data.lanes=3", "train.batch_size=48", processes=2, status=2)
    assert failures(done)["processes"] == (
        "data.lanes: 3 lanes cannot be divided among 2 processes; use data.lanes=2 or 4"
    )
    assert done.stdout.count("data.lanes: 3") == 1
    assert "FAIL" not in done.stderr


def test_every_broken_shard_is_reported_whichever_process_reads_it(
    run_module: Runner, tiny: Path, copied_set: Path
):
    """One shard is too short, one missing, one has a changed byte, and one's first image is not readable."""
    short, missing, changed, garbled = (copied_set / f"{i:06d}.tar" for i in (2, 3, 4, 7))
    short.write_bytes(short.read_bytes()[:-1024])
    missing.unlink()
    content = bytearray(changed.read_bytes())
    content[1000] ^= 1
    changed.write_bytes(content)
    content = garbled.read_bytes().replace(b"\x89PNG", b"\x89GNP", 1)
    garbled.write_bytes(content)
    manifest = json.loads((copied_set / "manifest.json").read_text())
    manifest["shards"][7]["sha256"] = hashlib.sha256(content).hexdigest()
    (copied_set / "manifest.json").write_text(json.dumps(manifest))
    done = run_module("doctor", tiny, f"data.shards={copied_set}", processes=2, status=2)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAIL shards")]
    assert len(lines) == 4
    for shard, message in (
        (short, "bytes instead of the manifest's .*; restore the shard"),
        (missing, "the shard is missing; restore it"),
        (changed, "SHA-256 differs.*; restore the shard"),
        (garbled, "not a readable image"),
    ):
        assert any(re.search(f"{shard.name}.*{message}", line) for line in lines), lines
    done = run_module("doctor", tiny, f"data.shards={copied_set}", "data.on_error=skip", processes=2)
    assert done.stdout.count("WARN shards") == 4


@pytest.mark.parametrize("reader", [0, 1])
def test_all_processes_exit_with_the_same_status_whichever_reads_the_fault(
    tiny: Path, tmp_path: Path, copied_set: Path, reader: int
):
    (copied_set / f"{reader:06d}.tar").unlink()
    running = Started(tmp_path, "doctor", tiny, f"data.shards={copied_set}", processes=2)
    for process in running.processes:
        process.join(60)
    assert [process.exitcode for process in running.processes] == [2, 2]


def test_a_server_that_does_not_exist_fails(
    single_process: None, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(SystemExit) as exit_:
        doctor.main([str(tiny), f"data.shards=http://127.0.0.1:{free_port()}/set"])
    assert exit_.value.code == 2
    reported = lines_of(capsys.readouterr().out, FAIL)
    assert set(reported) == {"manifest"}
    assert "cannot be read over the network" in reported["manifest"]
    assert "start again when it can" in reported["manifest"]


def test_a_blocked_signal_ends_the_doctor_with_status_2(
    single_process: None, capsys: pytest.CaptureFixture[str]
):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with pytest.raises(SystemExit) as exit_:
            doctor.main([])
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert exit_.value.code == 2
    assert "SIGUSR1 is blocked" in lines_of(capsys.readouterr().out, FAIL)["signals"]


def test_a_folder_that_cannot_be_created_fails(run_module: Runner, tiny: Path, tmp_path: Path):
    (tmp_path / "file").write_text("a file where the run's parent folder should be")
    reported = failures(run_module("doctor", tiny, f"run={tmp_path}/file/run", status=2))
    assert set(reported) == {"run folder"}
    assert re.search(r"cannot be written \(.+\); set run=FOLDER", reported["run folder"])


def test_a_folder_of_another_run_fails(run_module: Runner, tiny: Path):
    run_module("train", tiny)
    assert "continues from step 3" in run_module("doctor", tiny).stdout
    reported = failures(run_module("doctor", tiny, "seed=1", processes=2, status=2))
    assert set(reported) == {"checkpoints"}
    assert re.search(r"would differ \(seed: 0 -> 1\); choose another folder", reported["checkpoints"])


def test_a_run_that_is_still_going_fails_and_is_not_disturbed(run_module: Runner, tiny: Path, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with folder.lock_path.open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        reported = failures(run_module("doctor", tiny, status=2))
        assert set(reported) == {"run folder"}
        assert "belongs to a run that is still going; wait for it" in reported["run folder"]
    run_module("doctor", tiny)


def test_damaged_checkpoints_are_warned_of(run_module: Runner, tiny: Path, tmp_path: Path):
    run_module("train", tiny, "checkpoint.every=2")
    newest = tmp_path / "run" / "checkpoints" / "step_00000003"
    (newest / "generator.safetensors").write_bytes(b"")
    done = run_module("doctor", tiny)
    assert "step_00000003; they are ignored" in lines_of(done.stdout, WARN)["checkpoints"]
    assert "continues from step 2" in lines_of(done.stdout, OK)["checkpoints"]


def test_fewer_shards_than_lanes_are_warned_of(run_module: Runner, tiny: Path):
    done = run_module("doctor", tiny, "data.lanes=16")
    assert "8 shards of 30 images on 16 lanes" in lines_of(done.stdout, WARN)["lanes"]


def test_shards_of_unequal_sizes_are_warned_of(run_module: Runner, tiny: Path, copied_set: Path):
    manifest = json.loads((copied_set / "manifest.json").read_text())
    manifest["shards"] = [dict(manifest["shards"][0], samples=count) for count in (10, 50) * 4]
    (copied_set / "manifest.json").write_text(json.dumps(manifest))
    done = run_module("doctor", tiny, f"data.shards={copied_set}")
    line = lines_of(done.stdout, WARN)["lanes"]
    assert re.search(r"shards of 10 to 50 images .*; create the set again with --shards", line)


def test_help_and_a_refused_config_do_not_wait_for_torch(tiny: Path):
    """The help is printed, and a refused config is reported, before torch is imported."""
    program = (
        "import sys\nfrom infogan_dist import doctor\n"
        "def output(line):\n"
        "    if 'FAIL config' in line: print('torch' in sys.modules, line)\n"
        "doctor.main(['--help'])\n"
        "print('torch' in sys.modules)\n"
        "doctor.examine(doctor.PreflightContext(['configs/mnist.yaml', 'trian.steps=3']), output)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *help_lines, after_help, refused = done.stdout.splitlines()
    assert any("infogan_dist.doctor configs/mnist.yaml" in line for line in help_lines)
    assert after_help == "False"
    assert refused.startswith("False FAIL config")
    assert "did you mean train.steps" in refused
