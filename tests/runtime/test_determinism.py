"""Settings that make every sum run in the same order, on a CPU and for a GPU."""

import os
from collections.abc import Iterator

import pytest
import torch

from infogan_dist.runtime import device


@pytest.fixture(autouse=True)
def restored_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    for name in ("CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that the value before is restored, also where there was none
        monkeypatch.delenv(name)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def test_a_gpu_has_a_fixed_workspace_unless_the_user_chose_one(monkeypatch: pytest.MonkeyPatch):
    """The value is one of the two that cuBLAS documents for reproducible results."""
    threads = torch.get_num_threads()
    device.make_deterministic(cuda=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    device.make_deterministic(cuda=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize(
    ("cores", "local_world", "chosen", "threads"),
    [
        (8, None, None, 8),
        (8, "2", None, 4),
        (8, "3", "1", 2),  # launchers set 1
        (2, "4", None, 1),
        (8, "2", "3", 3),  # the user's number
    ],
)
def test_processes_on_a_cpu_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, local_world: str | None, chosen: str | None, threads: int
):
    monkeypatch.setattr(device, "cores", lambda: cores)
    for name, value in (("LOCAL_WORLD_SIZE", local_world), ("OMP_NUM_THREADS", chosen)):
        if value is not None:
            monkeypatch.setenv(name, value)
    device.make_deterministic(cuda=False)
    assert torch.get_num_threads() == threads
    assert os.environ["OMP_NUM_THREADS"] == str(threads)
    assert torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
