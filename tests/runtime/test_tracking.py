"""The run folder is the primary record; W&B and TensorBoard mirror it."""

import json
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from wandb.proto import wandb_internal_pb2 as pb

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import TrackingConfig
from infogan_dist.errors import ConfigError
from infogan_dist.runtime import run_logs, tracking
from tests.conftest import Runner, read_metrics

BLOCK, HEADER = 32768, 7


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run's file: protobuf messages in LevelDB's log format."""
    data, position, message = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        _, size, kind = struct.unpack("<IHB", data[position : position + HEADER])
        if left < HEADER or kind == 0:
            position += left
            continue
        chunk = data[position + HEADER : position + HEADER + size]
        position += HEADER + size
        message = chunk if kind in (1, 2) else message + chunk  # complete or first; middle or last
        if kind in (1, 4):
            record = pb.Record()  # type: ignore[attr-defined]
            record.ParseFromString(message)
            yield record


def read_wandb(run: Path) -> tuple[dict[int, dict[str, Any]], dict[str, Any], set[str]]:
    """Return the last values by step, the config and the ids of all offline runs in a run folder."""
    rows: dict[int, dict[str, Any]] = {}
    config: dict[str, Any] = {}
    ids = set()
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert files
    for record in (r for file in files for r in wandb_records(file)):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
            rows.setdefault(row["step"], {}).update(row)
        elif kind == "config":
            config |= {i.key: json.loads(i.value_json) for i in record.config.update if i.key}
        elif kind == "run":
            ids.add(record.run.run_id)
    return rows, config, ids


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_each_log_has_one_line_per_call_with_values_for_it(tmp_path: Path):
    tracker = tracking.RunFolderTracker(tmp_path)
    tracker.log({"d/loss": 1.0, "timing/seconds": 2.0}, step=5)
    tracker.log({"score/fid": 3.0}, step=5)
    tracker.log({"d/loss": 4.0}, step=6)

    def lines(name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    assert lines("metrics.jsonl") == [{"step": 5, "d/loss": 1.0}, {"step": 6, "d/loss": 4.0}]
    assert lines("timing.jsonl") == [{"step": 5, "seconds": 2.0}]
    assert lines("scores.jsonl") == [{"step": 5, "score/fid": 3.0}]
    run_logs.truncate_logs(tmp_path, 4)
    assert [lines(f"{name}.jsonl") for name in ("metrics", "timing", "scores")] == [[], [], []]


def test_an_offline_wandb_run_contains_the_metrics_the_pictures_and_the_config(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    run_module("train", tiny, "tracking.trackers=[wandb]", "train.steps=4")
    run_module("train", tiny, "tracking.trackers=[wandb]", "train.steps=6")  # resumed, offline again
    rows, config, ids = read_wandb(tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    for line in metrics:
        assert {k: rows[int(line["step"])][k] for k in line} == line
    assert "timing/images_per_second" in rows[3]
    assert {"samples", "traversal/digit", "traversal/style.0"} <= rows[6].keys()
    assert config["train.batch_size"] == 32
    assert len(ids) == 1  # one run, whose id is stored in the folder


def test_tensorboard_mirrors_where_it_is_installed(run_module: Runner, tiny: Path, tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_module("train", tiny, "tracking.trackers=[tensorboard]")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [s.value for s in events.Scalars("d/loss")]
    assert logged == pytest.approx([m["d/loss"] for m in read_metrics(tmp_path / "run")], rel=1e-6)
    assert {"samples", "traversal/digit"} <= set(events.Tags()["images"])


@pytest.mark.parametrize("mode", ["offline", "disabled", "auto"])
def test_wandb_s_mode_is_chosen_without_a_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert tracking.wandb_mode(mode) == ("offline" if mode == "auto" else mode)  # not logged in


def test_a_wandb_that_refuses_never_stops_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    modes: list[str] = []

    def refuse(**options):
        modes.append(options["mode"])
        raise RuntimeError("service unavailable")

    monkeypatch.setattr(tracking.wandb, "init", refuse)
    mirror = tracking.WandbMirror(tmp_path, TrackingConfig(wandb_mode="online"))
    mirror.start()
    mirror.store_init_configuration({"a": 1})
    mirror.log({"x": 1.0}, step=1)
    mirror.log_images({"p": np.zeros((2, 2, 3), np.uint8)}, step=1)
    mirror.finish()
    assert modes == ["online", "offline"]
    assert warnings(caplog) == [
        "W&B does not start (service unavailable); logging offline",
        "W&B fails (service unavailable); continuing without it",
    ]


def test_training_continues_without_a_wandb_that_breaks_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    class Broken:
        calls = 0

        def define_metric(self, *args, **kwargs):
            pass

        def log(self, values):
            self.calls += 1
            raise BrokenPipeError("gone")

    broken = Broken()
    monkeypatch.setattr(tracking.wandb, "init", lambda **options: broken)
    mirror = tracking.WandbMirror(tmp_path, TrackingConfig(wandb_mode="offline"))
    mirror.start()
    for step in range(3):
        mirror.log({"x": 1.0}, step=step)
    mirror.finish()
    assert broken.calls == 1
    assert warnings(caplog) == ["W&B fails (gone); continuing without it"]


def test_training_does_not_wait_for_a_wandb_that_hangs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    hanging = threading.Event()
    monkeypatch.setattr(tracking.wandb, "init", lambda **options: hanging.wait())
    monkeypatch.setattr(tracking, "WANDB_FINISH_TIMEOUT_S", 0.3)
    mirror = tracking.WandbMirror(tmp_path, TrackingConfig(wandb_mode="online"))
    start = time.monotonic()
    mirror.start()
    for step in range(100):
        mirror.log({"x": 1.0}, step=step)
    assert time.monotonic() - start < 0.2  # nothing waited
    mirror.finish()
    assert time.monotonic() - start < 2
    assert "has not finished within" in caplog.text
    hanging.set()


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path):
    tracking.RunFolderTracker(tmp_path).log({"a": float("nan"), "timing/b": float("inf")}, step=3)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "a": None}
    assert json.loads((tmp_path / "timing.jsonl").read_text()) == {"step": 3, "b": None}


def test_unknown_trackers_are_refused():
    config = read_config(["configs/mnist5k.yaml", "tracking.trackers=[mlfloww]"])
    with pytest.raises(ConfigError, match=r"mlfloww.*wandb"):
        tracking.check_trackers(config)


def test_a_checkpoint_with_a_password_in_its_config_is_not_uploaded():
    words = ["configs/mnist5k.yaml", "tracking.artifacts=true"]
    tracking.check_trackers(read_config([*words, "data.shards=s3://bucket/set"]))
    with pytest.raises(ConfigError, match=r"tracking\.artifacts.*remove it from the URL"):
        tracking.check_trackers(read_config([*words, "data.test=https://me:secret@host/set"]))


def test_checkpoints_become_versions_of_an_artifact_on_request(
    run_module: Runner, tiny: Path, tmp_path: Path
):
    words = [tiny, "tracking.trackers=[wandb]", "train.steps=4", "checkpoint.every=2"]
    run_module("train", *words, "tracking.artifacts=true")
    artifacts = [
        record.request.log_artifact.artifact
        if record.WhichOneof("record_type") == "request"
        else record.artifact
        for file in (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
        for record in wandb_records(file)
        if record.WhichOneof("record_type") in ("artifact", "request")
    ]
    logged = [a for a in artifacts if a.type == "model"]
    assert [{"step-2", "step-4"} & set(a.aliases) for a in logged] == [{"step-2"}, {"step-4"}]
    names = {entry.path for a in logged for entry in a.manifest.contents}
    assert {"generator_ema.safetensors", "config.yaml", "files.json"} <= names


def test_group_tags_and_notes_reach_w_and_b(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    options_of_init: dict[str, Any] = {}

    class Run:
        def define_metric(self, *args, **kwargs):
            pass

        def finish(self, exit_code: int):
            pass

    monkeypatch.setattr(tracking.wandb, "init", lambda **options: options_of_init.update(options) or Run())
    monkeypatch.setenv("WANDB_RUN_ID", "of-a-sweep")
    config = TrackingConfig(name="n", group="g", tags=["a", "b"], notes="why", wandb_mode="offline")
    for _ in range(2):
        mirror = tracking.WandbMirror(tmp_path, config)
        mirror.start()
        mirror.finish()
        assert {
            "name": "n",
            "group": "g",
            "tags": ["a", "b"],
            "notes": "why",
        }.items() <= options_of_init.items()
        assert options_of_init["id"] == "of-a-sweep"
        monkeypatch.setenv("WANDB_RUN_ID", "another")  # the folder has an id already


def test_credentials_in_a_url_do_not_reach_w_and_b(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    sent: dict[str, Any] = {}

    class Run:
        config = SimpleNamespace(update=lambda values, **kwargs: sent.update(values))

        def define_metric(self, *args, **kwargs):
            pass

        def finish(self, exit_code: int):
            pass

    monkeypatch.setattr(tracking.wandb, "init", lambda **options: Run())
    config = read_config(["configs/mnist5k.yaml", "data.shards=https://me:secret@host/set?key=secret"])
    accelerator: Any = SimpleNamespace(is_main_process=True)
    accelerator.init_trackers = lambda project, config: start(accelerator.log_with, config)

    def start(trackers: list[Any], config: dict) -> None:
        for tracker in trackers:
            tracker.start()
            tracker.store_init_configuration(config)
            tracker.finish()

    tracking.open_trackers(accelerator, config, tmp_path)
    assert sent["data.shards"] == "https://host/set"
    assert "secret" not in str(sent)


def test_credentials_on_the_command_line_do_not_reach_w_and_b(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    words = ["data.shards=https://me:secret@host/set?key=secret", "train.steps=3"]
    monkeypatch.setattr(sys, "argv", ["train", "configs/mnist5k.yaml", *words])
    mirror = tracking.WandbMirror(tmp_path, TrackingConfig(wandb_mode="offline"))
    accelerator: Any = SimpleNamespace(is_main_process=True, init_trackers=lambda *_, **__: mirror.start())
    tracking.open_trackers(accelerator, read_config(["configs/mnist5k.yaml", *words]), tmp_path)
    mirror.finish()
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process may still write
    while b"https://host/set" not in log.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"secret" in path.read_bytes()] == []
