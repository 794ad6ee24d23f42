"""Comparisons of runs by the script that checks GPUs."""

import sys
from typing import Any

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is started by its path
import gpu_check
from gpu import bench


def row(norm: float = 1.0, **overflow: float) -> dict[str, float]:
    """Return a step's metrics; an overflow of `d` or `g` makes its gradient norm 0, as training logs it."""
    norms = {f"grad_norm/{name}": 0.0 if overflow.get(name) else norm for name in ("d", "g")}
    return {"d/loss": 1.4, "g/loss": 0.7, **norms, **{f"overflow/{k}": v for k, v in overflow.items()}}


@pytest.mark.parametrize("overflow", [{"d": 1.0, "g": 0.0}, {"d": 0.0, "g": 1.0}, {"d": 0.5, "g": 0.0}])
def test_steps_whose_gradients_overflow_are_not_compared(overflow: dict[str, float]):
    full = [row(), row(), row()]
    half = [row(**overflow), row(1.01, d=0.0, g=0.0), row(**overflow)]
    for a, b in ((full, half), (half, full)):
        assert len(gpu_check.comparable_steps(a, b)) == 1
        assert gpu_check.largest_difference(a, b) == pytest.approx(0.01, rel=0.02)


def test_runs_without_a_comparable_step_fail():
    with pytest.raises(gpu_check.CheckError, match="overflowed in each of 2 steps"):
        gpu_check.largest_difference([row(), row()], [row(d=1.0, g=0.0), row(d=0.0, g=1.0)])


@pytest.mark.parametrize("name", bench.COMPARED)
def test_the_largest_difference_is_that_of_any_metric_in_any_step(name: str):
    other = [row(), row() | {name: row()[name] * 1.5}]
    assert gpu_check.largest_difference([row(), row()], other) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [(2e-2, None), (1.5e-1, "more than 1.4e-01"), (float("nan"), "more than"), (1e-5, "not in effect")],
)
def test_a_reduced_precision_has_an_upper_and_a_lower_limit(value: float, message: str | None):
    limits = (gpu_check.ROUNDINGS * gpu_check.ROUNDING["bf16"], gpu_check.FP32_LIMIT)
    if message is None:
        assert gpu_check.check_limit(value, *limits) == "differ by 2.0e-02 (limit 1.4e-01)"
    else:
        with pytest.raises(gpu_check.CheckError, match=message):
            gpu_check.check_limit(value, *limits)


def test_an_fp16_run_continues_until_a_step_is_comparable(monkeypatch: pytest.MonkeyPatch):
    """The scale is halved by each overflow, here until the sixth step."""
    trained: list[tuple[str, ...]] = []

    class Bench:
        long_steps = 20

        def train(self, *overrides: str, **options: Any) -> str:
            trained.append(overrides)
            return " ".join(overrides)

        def train_long(self, *overrides: str) -> str:
            return "long"

    def read_metrics(run: str) -> list[dict[str, float]]:
        steps, fp16 = int(trained[-1][0].removeprefix("train.steps=")), "fp16" in run
        return [row(1.001, d=float(i < 5), g=0.0) if fp16 else row() for i in range(steps)]

    monkeypatch.setattr(gpu_check, "read_metrics", read_metrics)
    assert "differ by 1.0e-03" in gpu_check.check_reduced_precision(Bench(), "fp16")  # type: ignore[arg-type]
    assert [words[0] for words in trained] == ["train.steps=3", "train.steps=6", "train.steps=6"]
