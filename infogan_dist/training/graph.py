"""A training step as one CUDA graph, which the host launches as a whole instead of operation by operation."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from infogan_dist.model.latents import Latents
from infogan_dist.training.step import StepResult, TrainStep


class Graph(Protocol):
    """A recording of a function's operations on the device."""

    def record(self, function: Callable[[], StepResult]) -> StepResult:
        """Record a call without executing it; return its result, whose tensors each replay overwrites."""
        ...

    def replay(self) -> None:
        """Execute the recorded operations, on the same tensors."""
        ...


class CudaGraph:
    """A `Graph` on a GPU."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], StepResult]) -> StepResult:
        # Other threads, such as those of trackers, may use the driver meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        self._graph.replay()


class GraphedStep:
    """Does the steps of a `TrainStep` by replaying a recording of one; for one process.

    A replay repeats the same operations on the same tensors. All that changes from step to step is therefore
    copied into tensors on the device: the real images, the latents, and the weight of the average. A Python
    number would be repeated as it was in the recorded step.

    Args:
        train_step: the step to record. Its optimizers must be `capturable`.
        graph: records and replays.
    """

    def __init__(self, train_step: TrainStep, graph: Graph):
        self._train_step, self._graph = train_step, graph
        self._recording: tuple[Tensor, Latents, StepResult] | None = None

    def run(self, real: Tensor, latents: Latents) -> StepResult:
        """Do one step; arguments and result as of `TrainStep.run`. The next step overwrites the result."""
        step = self._train_step
        if self._recording is None:
            self._recording = self._record(real.clone(), latents.map(torch.clone))
        own_real, own_latents, result = self._recording
        own_real.copy_(real)
        own_latents.vector.copy_(latents.vector)
        for name, values in own_latents.codes.items():
            values.copy_(latents.codes[name])
        if own_latents.distortion is not None and latents.distortion is not None:
            own_latents.distortion.copy_(latents.distortion)
        step.prepare()
        self._graph.replay()
        step.state.step += 1
        return result

    def _record(self, real: Tensor, latents: Latents) -> tuple[Tensor, Latents, StepResult]:
        """Record a step on the given tensors; return them and the tensors of the result."""
        self._warm_up(real, latents)
        return real, latents, self._graph.record(lambda: self._train_step.compute(real, latents))

    def _warm_up(self, real: Tensor, latents: Latents) -> None:
        """Do a step that changes nothing, so that libraries and optimizers allocate what they keep.

        The optimizers do not move where `found_inf` is 1, as after an overflow; the scalers would react to
        that, and are restored.
        """
        step = self._train_step
        scalers = [part.scaler for part in (step.state.d, step.state.g)]
        scales = [scaler.state_dict() for scaler in scalers]
        step.suppress.fill_(True)
        step.compute(real, latents)
        step.suppress.fill_(False)
        for scaler, scale in zip(scalers, scales, strict=True):
            if scaler.is_enabled():
                scaler.load_state_dict(scale)
