"""What the doctor reports of a machine's GPUs, and of options that need one; the GPUs are simulated."""

import pytest
import torch

from infogan_dist.config.load import read_config
from infogan_dist.errors import ConfigError
from infogan_dist.launcher import ProcessPlace
from infogan_dist.preflight import machine, run
from infogan_dist.preflight.examine import Check, run_check
from infogan_dist.preflight.finding import FAIL, OK, WARN, Finding, PreflightContext
from infogan_dist.runtime import device
from tests.runtime.test_device import QUICK, config_with, place_on


@pytest.mark.parametrize(
    ("name", "environment", "is_refused"),
    [
        ("CPU", "", True),
        ("one GPU", "ACCELERATE_USE_CPU=true", True),
        ("one GPU", "WORLD_SIZE=2 RANK=1 LOCAL_RANK=0 MASTER_ADDR=h MASTER_PORT=1", True),
        ("one GPU", "WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 MASTER_ADDR=h MASTER_PORT=1", False),
        ("one GPU", "", False),
    ],
)
def test_a_cuda_graph_needs_a_single_process_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, environment: str, is_refused: bool
):
    place_on(monkeypatch, name, environment)
    config = read_config([QUICK, "train.cuda_graph=true"])
    expected = Finding(OK, "used")
    if is_refused:
        with pytest.raises(ConfigError, match=r"^train\.cuda_graph: only for a single .*; use ") as refusal:
            device.resolve_config(config)
        expected = Finding(FAIL, str(refusal.value))
    else:
        assert device.resolve_config(config).train.cuda_graph
    check = Check("CUDA graph", run.check_cuda_graph, "config")
    context = PreflightContext([], ProcessPlace(0, 1, 0, 1), config=config)
    assert run_check(context, check) == [expected]

    context.config = config_with(None)
    assert not device.resolve_config(context.config).train.cuda_graph
    assert run_check(context, check) == [Finding(OK, "not used (train.cuda_graph)")]


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (None, "start 2 processes"),
        ([], "start 2 processes"),
        (["train.cuda_graph=true"], "select one by CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_no_process_uses_is_reported_with_a_remedy_that_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str] | None, remedy: str
):
    place_on(monkeypatch, "one GPU", "")
    config = None if overrides is None else read_config([QUICK, *overrides])
    context = PreflightContext([], ProcessPlace(0, 1, 0, 1), config=config)
    assert [finding.level for finding in machine.check_devices(context)] == [OK]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    _, warning = machine.check_devices(context)
    assert warning.level == WARN
    assert warning.remedy.startswith(remedy)
