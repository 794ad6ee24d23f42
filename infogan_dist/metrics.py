"""Means of a step's terms over a window of steps and over all processes, without a wait in the step."""

from typing import Any

import torch
from torch import Tensor

from infogan_dist.engine import Engine


class Meter:
    """Adds up terms on the device, each process its own; reduces them once a window.

    All processes must add the same terms the same number of times.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.names: list[str] = []
        self.total: Tensor | None = None
        self.count = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Adds a step's terms, tensors of one number each."""
        if self.total is None:
            self.names = list(terms)
            self.total = torch.zeros(len(terms), dtype=torch.float64, device=self.engine.device)
        self.total += torch.stack([t.detach().to(self.engine.dtype) for t in terms.values()])
        self.count += 1

    def mean(self) -> dict[str, float]:
        """The means since the last call, the same on all processes."""
        assert self.total is not None
        mean = self.engine.sum(self.total) / (self.count * self.engine.world)
        self.total, self.count = None, 0
        return dict(zip(self.names, mean.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """The half-filled window for a checkpoint: every process's sums. To be called by all."""
        rows = [] if self.total is None else self.engine.gather(self.total).tolist()
        return {"names": self.names, "rows": rows, "count": self.count}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over a window: its own sums under the same number of processes, else their total on one."""
        self.names, self.count = state["names"], state["count"]
        if not state["rows"]:
            return
        rows = torch.tensor(state["rows"], dtype=torch.float64, device=self.engine.device)
        if len(rows) == self.engine.world:
            self.total = rows[self.engine.rank]
        else:
            # A mean is over count * world, so another number of processes weighs the sums anew.
            total = rows.sum(0) * self.engine.world / len(rows)
            self.total = total if self.engine.is_main else torch.zeros_like(total)
