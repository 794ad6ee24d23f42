"""Measured times of a window of steps, and warnings of failing runs."""

from types import SimpleNamespace
from typing import Any

import pytest

from infogan_dist.training import monitor
from infogan_dist.training.monitor import FailureMonitor, StepTimer


def test_a_window_has_the_speed_and_the_waiting_share_of_its_own_steps(monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    timer = StepTimer()

    def slow_batches():
        while True:
            clock.now += 0.5
            yield "batch"

    batches: Any = slow_batches()
    for steps, step_seconds, elapsed in ((4, 2.0, 10.0), (2, 3.5, 18.0)):
        for _ in range(steps):
            assert timer.next_batch(batches) == "batch"
            clock.now += step_seconds
            timer.count(32)
        seconds = steps * (0.5 + step_seconds)
        assert timer.window() == {
            "timing/images_per_second": pytest.approx(steps * 32 / seconds),
            "timing/data_wait_share": pytest.approx(steps * 0.5 / seconds),
            "timing/seconds": pytest.approx(elapsed),
        }


def warnings_of(checks: list[tuple[float, float]], caplog: pytest.LogCaptureFixture) -> list[str]:
    """Check windows of (D's adversarial loss, whether a code is dead); return the warnings after each."""
    failures = FailureMonitor(["digit", "style"], winning_threshold=0.05)
    messages = []
    for step, (loss, dead) in enumerate(checks, start=1):
        caplog.clear()
        metrics = {"d/adversarial": loss, "dead/digit": 0.0, "dead/style": dead, "gain/style": 0.01}
        failures.check(metrics, step)
        messages.append(" | ".join(r.getMessage() for r in caplog.records))
    return messages


def test_a_dead_code_is_reported_once(caplog: pytest.LogCaptureFixture):
    first, *others = warnings_of([(1.0, 1.0), (1.0, 1.0), (1.0, 0.0), (1.0, 1.0)], caplog)
    assert first.startswith("codes.style: ")
    assert "step 1, gain 0.010 nats" in first
    assert others == [""] * 3


def test_a_winning_discriminator_is_reported_after_three_low_windows_in_a_row(
    caplog: pytest.LogCaptureFixture,
):
    low, high = (0.049, 0.0), (0.05, 0.0)
    messages = warnings_of([low, low, high, low, low, low, low, high, low, low, low], caplog)
    assert [bool(m) for m in messages] == [False] * 5 + [True] + [False] * 5
    assert "below 0.05 (step 6)" in messages[5]
