"""All that training changes: the networks, and what updates them."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from infogan_dist.config import Config
from infogan_dist.engine import Engine, Part
from infogan_dist.errors import ConfigError
from infogan_dist.networks import (
    Discriminator,
    DiscriminatorPart,
    Generator,
    GeneratorPart,
    RecognitionNetwork,
)


@dataclass
class TrainState:
    """The networks, bare, and the parts that wrap them for gradients; the steps done so far."""

    generator: Generator
    discriminator: Discriminator
    recognition: RecognitionNetwork
    ema: Generator
    d: Part
    g: Part
    step: int = 0

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the name that a checkpoint has for them."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "recognition": self.recognition,
            "generator_ema": self.ema,
        }

    def optimizers(self) -> dict[str, Any]:
        """Adam's and the scalers' state, for a checkpoint."""
        parts = {"d": self.d, "g": self.g}
        return {
            n: {"adam": p.optimizer.state_dict(), "scaler": p.scaler.state_dict()} for n, p in parts.items()
        }

    def load_optimizers(self, state: dict[str, Any]) -> None:
        for name, part in (("d", self.d), ("g", self.g)):
            part.optimizer.load_state_dict(state[name]["adam"])
            if part.scaler.is_enabled() and state[name]["scaler"]:
                part.scaler.load_state_dict(state[name]["scaler"])


def first_state(
    config: Config, engine: Engine, networks: tuple[Generator, Discriminator, RecognitionNetwork]
) -> TrainState:
    """The state before the first step, of freshly built networks, on the engine's device.

    Raises:
        ConfigError: R1 together with a batch norm that cannot be differentiated twice.
    """
    generator, discriminator, recognition = (engine.place(n) for n in networks)
    assert isinstance(generator, Generator)
    assert isinstance(discriminator, Discriminator)
    assert isinstance(recognition, RecognitionNetwork)
    r1 = config.objective.r1 > 0
    if r1 and any(isinstance(m, nn.SyncBatchNorm) for m in discriminator.modules()):
        raise ConfigError(
            "objective.r1: SyncBatchNorm cannot be differentiated twice; take batchnorm out of "
            "networks.discriminator, or set objective.r1=0, or use one process"
        )
    ema = copy.deepcopy(generator).requires_grad_(False)
    if config.train.compile:
        for network in (generator, discriminator, recognition):
            network.compile()
    q_with_d = config.objective.q_step == "discriminator"
    d_part = DiscriminatorPart(discriminator, recognition if q_with_d else None, r1)
    g_part = GeneratorPart(generator, None if q_with_d else recognition)
    return TrainState(
        generator,
        discriminator,
        recognition,
        ema,
        d=engine.part(d_part, config.optim.discriminator),
        g=engine.part(g_part, config.optim.generator),
    )
