"""Means of metrics over a window of steps and over all processes; the host does not wait in a step."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infogan_dist.runtime.distributed import Engine

logger = logging.getLogger(__name__)


class Terms:
    """Numbers of a step by name, on the device, in as few tensors as they were computed in.

    Args:
        scalars: numbers [] by name to start with.
        parts: number of micro-batches that a step's numbers are means over; what is added is divided by it.
    """

    def __init__(self, scalars: Mapping[str, Tensor] | None = None, parts: int = 1):
        self._vectors: dict[tuple[str, ...], Tensor] = {}
        self._parts = parts
        if scalars:
            self.add(scalars)

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Add numbers [] by name; see `add_vector`."""
        self.add_vector(tuple(scalars), torch.stack(list(scalars.values())))

    def add_variables(self, name: str, values: Tensor) -> None:
        """Add the sum over a code's variables [V], and where there are several, each as `name.0`, ..."""
        if len(values) == 1:
            self.add_vector((name,), values)
        else:
            names = (name, *(f"{name}.{i}" for i in range(len(values))))
            self.add_vector(names, torch.cat([values.sum()[None], values]))

    def add_vector(self, names: tuple[str, ...], values: Tensor) -> None:
        """Add numbers [k] with their names, to those of other micro-batches under the same names."""
        values = values.detach()
        if self._parts > 1:
            values = values / self._parts
        self._vectors[names] = self._vectors[names] + values if names in self._vectors else values

    def update(self, other: "Terms") -> None:
        """Add the numbers of `other`, whose names are different ones."""
        self._vectors.update(other._vectors)

    @property
    def names(self) -> list[str]:
        """The names, in the order of the values."""
        return [name for names in self._vectors for name in names]

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return all numbers in one tensor [M]."""
        return torch.cat([vector.to(dtype) for vector in self._vectors.values()])

    def by_name(self) -> dict[str, Tensor]:
        """Return the numbers [] by name."""
        vectors = self._vectors.items()
        return {name: value for names, vector in vectors for name, value in zip(names, vector, strict=True)}


class MetricAccumulator:
    """Sums metrics on the device, each process its own, and reduces them once per window.

    All processes must add the same metrics the same number of times.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.names: list[str] = []
        self.flags: list[str] = []
        # Sums of the metrics, of the flags, and the number of steps that the metrics are of.
        self.total: Tensor | None = None

    def add(self, terms: Terms, flags: Terms) -> None:
        """Add the metrics of a step.

        Args:
            terms: numbers to average.
            flags: numbers 0 or 1. Where one is 1, the step's terms are left out of the means.
        """
        names, flag_names = terms.names, flags.names
        if self.total is not None and (self.names, self.flags) != (names, flag_names):
            # A checkpoint of another version, which logged other metrics: its sums cannot be continued.
            logger.warning(
                "metrics: the window of this checkpoint has other names; its mean covers fewer steps"
            )
            self.total = None
        if self.total is None:
            self.names, self.flags = names, flag_names
            size = len(names) + len(flag_names) + 1
            self.total = torch.zeros(size, dtype=torch.float64, device=self.engine.device)
        values, raised = terms.values(self.engine.dtype), flags.values(self.engine.dtype)
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
