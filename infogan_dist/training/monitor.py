"""What is observed during training: measured times, and signs of a failing run."""

import logging
import time
from collections.abc import Iterator

from infogan_dist.data.loader import Batch
from infogan_dist.runtime.run_logs import TIMING_PREFIX

WINNING_WINDOWS = 3  # windows in a row in which D's loss is below its threshold before the user is warned
logger = logging.getLogger(__name__)


class StepTimer:
    """Measures speed and waiting times between two log lines."""

    def __init__(self) -> None:
        self.start = self.window_start = time.perf_counter()
        self.images, self.waiting = 0, 0.0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch, and add the time that it takes to the waiting time."""
        before = time.perf_counter()
        batch = next(batches)
        self.waiting += time.perf_counter() - before
        return batch

    def count(self, images: int) -> None:
        """Count the images of a step, over all processes."""
        self.images += images

    def window(self) -> dict[str, float]:
        """Return images/s, the share of time spent waiting for data, and seconds since the start; reset."""
        now = time.perf_counter()
        seconds = now - self.window_start
        times = {
            "images_per_second": self.images / seconds,
            "data_wait_share": self.waiting / seconds,
            "seconds": now - self.start,
        }
        self.window_start, self.images, self.waiting = now, 0, 0.0
        return {TIMING_PREFIX + name: value for name, value in times.items()}


class FailureMonitor:
    """Warns, once each, of dead codes and of a discriminator that has won.

    Args:
        codes: names of the codes.
        winning_threshold: value of `d/adversarial` below which G learns next to nothing.
    """

    def __init__(self, codes: list[str], winning_threshold: float):
        self.codes, self.winning_threshold = codes, winning_threshold
        self.low_windows = 0
        self.warned: set[str] = set()

    def check(self, metrics: dict[str, float], step: int) -> None:
        """Check the metrics of a window; see `WINNING_WINDOWS`."""
        for name in self.codes:
            if metrics[f"dead/{name}"]:
                self._warn_once(
                    name,
                    f"codes.{name}: the images show next to nothing of this code (step {step}, gain "
                    f"{metrics[f'gain/{name}']:.3f} nats); a larger codes.{name}.weight may help",
                )
        self.low_windows = self.low_windows + 1 if metrics["d/adversarial"] < self.winning_threshold else 0
        if self.low_windows == WINNING_WINDOWS:
            self._warn_once(
                "discriminator",
                f"the discriminator's loss stays below {self.winning_threshold} (step {step}), the sign "
                "of a failed run; a lower optim.discriminator.lr, objective.r1=1 or another seed may help",
            )

    def _warn_once(self, subject: str, message: str) -> None:
        if subject not in self.warned:
            self.warned.add(subject)
            logger.warning(message)
