"""Means of metrics over a window of steps and over all processes; the host does not wait in a step."""

import logging
from typing import Any

import torch
from torch import Tensor

from infogan_dist.runtime.distributed import Engine

logger = logging.getLogger(__name__)


class MetricAccumulator:
    """Sums metrics on the device, each process its own, and reduces them once per window.

    All processes must add the same metrics the same number of times.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.names: list[str] = []
        self.flags: list[str] = []
        self.total: Tensor | None = (
            None  # sums of the metrics, of the flags, and the steps that the metrics are of
        )

    def add(self, terms: dict[str, Tensor], flags: dict[str, Tensor]) -> None:
        """Add the metrics of a step.

        Args:
            terms: numbers [] by name.
            flags: 0 or 1, [], by name. Where one is 1, the step's terms are left out of the means.
        """
        if self.total is not None and (self.names, self.flags) != (list(terms), list(flags)):
            # A checkpoint of another version, which logged other metrics: its sums cannot be continued.
            logger.warning(
                "metrics: the window of this checkpoint has other names; its mean covers fewer steps"
            )
            self.total = None
        if self.total is None:
            self.names, self.flags = list(terms), list(flags)
            size = len(terms) + len(flags) + 1
            self.total = torch.zeros(size, dtype=torch.float64, device=self.engine.device)
        values = torch.stack([t.detach().to(self.engine.dtype) for t in terms.values()])
        raised = torch.stack(list(flags.values()))
        valid = (raised == 0).all()
        # Not a product: NaN times 0 is NaN.
        step = [torch.where(valid, values, 0.0), raised, valid[None]]
        self.total += torch.cat([part.to(torch.float64) for part in step])

    def window(self) -> dict[str, float]:
        """Return the metrics' means and the flags' counts since the last call, and start a new window.

        They are the same on all processes. A mean is NaN if every step was left out.
        """
        assert self.total is not None
        total = self.engine.sum(self.total)
        self.total = None
        means, counts = total[: len(self.names)] / total[-1], total[len(self.names) : -1] / self.engine.world
        values: list[float] = torch.cat([means, counts]).tolist()
        return dict(zip([*self.names, *self.flags], values, strict=True))

    def state(self) -> dict[str, Any]:
        """Return the partly filled window for a checkpoint: every process's sums. To be called by all."""
        rows = [] if self.total is None else self.engine.gather(self.total).tolist()
        return {"names": self.names, "flags": self.flags, "rows": rows}

    def load(self, state: dict[str, Any]) -> None:
        """Continue the window that `state` returned, under the same or another number of processes."""
        self.names, self.flags = state["names"], state["flags"]
        if not state["rows"]:
            return
        rows = torch.tensor(state["rows"], dtype=torch.float64, device=self.engine.device)
        if len(rows) == self.engine.world:
            self.total = rows[self.engine.rank]
        else:
            # Each process's sums weigh 1 / world in the mean; the main process takes over all of them.
            total = rows.sum(0) * self.engine.world / len(rows)
            self.total = total if self.engine.is_main else torch.zeros_like(total)
