"""All that training changes: the networks, and what updates them."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from infogan_dist.config.schema import Config
from infogan_dist.model.networks import (
    Discriminator,
    DiscriminatorPart,
    Generator,
    GeneratorPart,
    RecognitionNetwork,
)
from infogan_dist.runtime.distributed import Engine, TrainablePart


@dataclass
class TrainState:
    """The networks, and the two parts that wrap them for gradients.

    Attributes:
        generator, discriminator, recognition: G, D and Q, unwrapped.
        ema: exponential moving average of the generator.
        d: what the discriminator's step updates: trunk and logit, and Q under `q_step=discriminator`.
        g: what the generator's step updates: G, and Q under `q_step=generator`.
        step: number of finished steps.
    """

    generator: Generator
    discriminator: Discriminator
    recognition: RecognitionNetwork
    ema: Generator
    d: TrainablePart
    g: TrainablePart
    step: int = 0

    def trained_networks(self) -> tuple[Generator, Discriminator, RecognitionNetwork]:
        """Return the networks that receive gradients."""
        return self.generator, self.discriminator, self.recognition

    def networks(self) -> dict[str, nn.Module]:
        """Return all networks by their name in a checkpoint."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "recognition": self.recognition,
            "generator_ema": self.ema,
        }

    def optimizers(self) -> dict[str, Any]:
        """Return the state of Adam and of the scalers, for a checkpoint."""
        parts = {"d": self.d, "g": self.g}
        return {
            n: {"adam": p.optimizer.state_dict(), "scaler": p.scaler.state_dict()} for n, p in parts.items()
        }

    def load_optimizers(self, state: dict[str, Any]) -> None:
        """Restore what `optimizers` returned."""
        for name, part in (("d", self.d), ("g", self.g)):
            rates = [group["lr"] for group in part.optimizer.param_groups]
            part.optimizer.load_state_dict(state[name]["adam"])
            for group, rate in zip(part.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # the config's, and where a CUDA graph reads it, on the device
            if part.scaler.is_enabled() and state[name]["scaler"]:
                part.scaler.load_state_dict(state[name]["scaler"])

    def learning_rates(self) -> dict[str, float]:
        """Return the current learning rates, as `lr/d` and `lr/g`."""
        parts = {"d": self.d, "g": self.g}
        return {f"lr/{n}": float(p.optimizer.param_groups[0]["lr"]) for n, p in parts.items()}


def initial_state(
    config: Config, engine: Engine, networks: tuple[Generator, Discriminator, RecognitionNetwork]
) -> TrainState:
    """Return the state before the first step, on the engine's device.

    Args:
        config: the run's.
        engine: device, precision and processes.
        networks: G, D and Q with their initial weights.
    """
    generator, discriminator, recognition = (engine.place(n) for n in networks)
    assert isinstance(generator, Generator)
    assert isinstance(discriminator, Discriminator)
    assert isinstance(recognition, RecognitionNetwork)
    ema = copy.deepcopy(generator).requires_grad_(False)
    if config.train.compile:
        for network in (generator, discriminator, recognition):
            # The compiler would convert convolutions to channels last, which failed on a GPU for images of
            # one channel: it expected strides that the results did not have.
            network.compile(options={"layout_optimization": False})
    q_with_d = config.objective.q_with_discriminator
    d_part = DiscriminatorPart(discriminator, recognition if q_with_d else None, config.objective.r1 > 0)
    g_part = GeneratorPart(generator, None if q_with_d else recognition)
    return TrainState(
        generator,
        discriminator,
        recognition,
        ema,
        d=engine.trainable_part(d_part, config.optim.discriminator),
        g=engine.trainable_part(g_part, config.optim.generator),
    )
