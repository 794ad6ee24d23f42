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
        self.flags: list[str] = []
        self.total: Tensor | None = None  # the terms' sums, the flags', and the steps that the terms are of

    def add(self, terms: dict[str, Tensor], flags: dict[str, Tensor]) -> None:
        """Adds a step's terms, one number each, unless one of its flags (0 or 1) says that it is void."""
        if self.total is None:
            self.names, self.flags = list(terms), list(flags)
            size = len(terms) + len(flags) + 1
            self.total = torch.zeros(size, dtype=torch.float64, device=self.engine.device)
        values = torch.stack([t.detach().to(self.engine.dtype) for t in terms.values()])
        raised = torch.stack(list(flags.values()))
        valid = (raised == 0).all()
        # Not a product: what is not finite would stay so.
        step = [torch.where(valid, values, 0.0), raised, valid[None]]
        self.total += torch.cat([part.to(torch.float64) for part in step])

    def window(self) -> dict[str, float]:
        """The terms' means (NaN where every step was void) and the flags' counts since the last call.

        The same on all processes.
        """
        assert self.total is not None
        total = self.engine.sum(self.total)
        self.total = None
        means, counts = total[: len(self.names)] / total[-1], total[len(self.names) : -1] / self.engine.world
        values: list[float] = torch.cat([means, counts]).tolist()
        return dict(zip([*self.names, *self.flags], values, strict=True))

    def state(self) -> dict[str, Any]:
        """The half-filled window for a checkpoint: every process's sums. To be called by all."""
        rows = [] if self.total is None else self.engine.gather(self.total).tolist()
        return {"names": self.names, "flags": self.flags, "rows": rows}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over a window: its own sums under the same number of processes, else all on the first."""
        self.names, self.flags = state["names"], state["flags"]
        if not state["rows"]:
            return
        rows = torch.tensor(state["rows"], dtype=torch.float64, device=self.engine.device)
        if len(rows) == self.engine.world:
            self.total = rows[self.engine.rank]
        else:
            # A process's step weighs 1 / world of a step.
            total = rows.sum(0) * self.engine.world / len(rows)
            self.total = total if self.engine.is_main else torch.zeros_like(total)
