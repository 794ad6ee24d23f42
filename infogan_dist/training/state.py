"""All that training changes: the networks, and what updates them."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infogan_dist.config.schema import AdamConfig, Config
from infogan_dist.errors import ConfigError
from infogan_dist.model.networks import (
    Classifier,
    Discriminator,
    DiscriminatorPart,
    Generator,
    GeneratorPart,
    RecognitionNetwork,
)
from infogan_dist.runtime.distributed import Engine, TrainablePart

CLASSIFIER_BETA1 = 0.9  # Adam's default; the paper's 0.5 is for the two players of a GAN


class NeighbourGraphs(nn.Module):
    """The neighbours of each real image, as buffers, so that they are part of a checkpoint.

    Attributes:
        pixels, features: int32 [N, k], images that are nearest by pixels and by the classifier's features.
            The latter are -1 until they are computed.
    """

    pixels: Tensor
    features: Tensor

    def __init__(self, samples: int, neighbours: int):
        super().__init__()
        for name in ("pixels", "features"):
            self.register_buffer(name, torch.full((samples, neighbours), -1, dtype=torch.int32))


@dataclass
class ClusteringState:
    """What the clustering steps train.

    Attributes:
        classifier: the network that is trained.
        average: exponential moving average of the classifier. Its batch norm is that of one process, since
            each process uses it by itself.
        graphs: the neighbours of the real images.
        part: wraps the classifier for gradients.
        steps: number of steps of the stage.
    """

    classifier: Classifier
    average: Classifier
    graphs: NeighbourGraphs
    part: TrainablePart
    steps: int


@dataclass
class TrainState:
    """The networks, and the parts that wrap them for gradients.

    Attributes:
        generator, discriminator, recognition: G, D and Q, unwrapped.
        ema: exponential moving average of the generator.
        d: what the discriminator's step updates: trunk and logit, and Q under `q_step=discriminator`.
        g: what the generator's step updates: G, and Q under `q_step=generator`.
        clustering: of the first stage; None for a run without one.
        step: number of finished steps.
    """

    generator: Generator
    discriminator: Discriminator
    recognition: RecognitionNetwork
    ema: Generator
    d: TrainablePart
    g: TrainablePart
    clustering: ClusteringState | None = None
    step: int = 0

    def trained_networks(self) -> tuple[Generator, Discriminator, RecognitionNetwork]:
        """Return the networks that receive gradients."""
        return self.generator, self.discriminator, self.recognition

    def networks(self) -> dict[str, nn.Module]:
        """Return all networks by their name in a checkpoint."""
        networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "recognition": self.recognition,
            "generator_ema": self.ema,
        }
        if self.clustering is not None:
            networks |= {
                "classifier": self.clustering.classifier,
                "classifier_ema": self.clustering.average,
                "neighbours": self.clustering.graphs,
            }
        return networks

    def parts(self) -> dict[str, TrainablePart]:
        """Return the trained parts by their name in logs and checkpoints."""
        parts = {"d": self.d, "g": self.g}
        return parts if self.clustering is None else parts | {"classifier": self.clustering.part}

    def optimizers(self) -> dict[str, Any]:
        """Return the state of Adam and of the scalers, for a checkpoint."""
        parts = self.parts()
        return {
            n: {"adam": p.optimizer.state_dict(), "scaler": p.scaler.state_dict()} for n, p in parts.items()
        }

    def load_optimizers(self, state: dict[str, Any]) -> None:
        """Restore what `optimizers` returned."""
        for name, part in self.parts().items():
            rates = [group["lr"] for group in part.optimizer.param_groups]
            part.optimizer.load_state_dict(state[name]["adam"])
            for group, rate in zip(part.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # the config's, and where a CUDA graph reads it, on the device
            if part.scaler.is_enabled() and state[name]["scaler"]:
                part.scaler.load_state_dict(state[name]["scaler"])

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates of the last step, by the names `lr/d`, `lr/g` or `lr/classifier`."""
        trained = {"d": self.d, "g": self.g}
        if self.clustering is not None and self.step <= self.clustering.steps:
            trained = {"classifier": self.clustering.part}
        return {f"lr/{n}": float(p.optimizer.param_groups[0]["lr"]) for n, p in trained.items()}


def initial_state(
    config: Config,
    engine: Engine,
    networks: tuple[Generator, Discriminator, RecognitionNetwork],
    clustering: ClusteringState | None = None,
) -> TrainState:
    """Return the state before the first step, on the engine's device.

    Args:
        config: the run's.
        engine: device, precision and processes.
        networks: G, D and Q with their initial weights.
        clustering: of the first stage, if the run has one.
    """
    # Its batch norm is that of one process, since it is not trained.
    ema = copy.deepcopy(networks[0]).requires_grad_(False).to(engine.device, engine.dtype).eval()
    generator, discriminator, recognition = (engine.place(n) for n in networks)
    assert isinstance(generator, Generator)
    assert isinstance(discriminator, Discriminator)
    assert isinstance(recognition, RecognitionNetwork)
    if config.train.compile:
        for network in (generator, discriminator, recognition):
            # The compiler would convert convolutions to channels last, which failed on a GPU for images of
            # one channel: it expected strides that the results did not have.
            network.compile(options={"layout_optimization": False})
    q_with_d = config.objective.q_with_discriminator
    penalised = config.objective.r1 > 0 or config.objective.r2 > 0
    d_part = DiscriminatorPart(discriminator, recognition if q_with_d else None, penalised)
    g_part = GeneratorPart(generator, None if q_with_d else recognition)
    return TrainState(
        generator,
        discriminator,
        recognition,
        ema,
        d=engine.trainable_part(d_part, config.optim.discriminator),
        g=engine.trainable_part(g_part, config.optim.generator),
        clustering=clustering,
    )


def initial_clustering(
    config: Config, engine: Engine, classifier: Classifier, samples: int
) -> ClusteringState:
    """Return the first stage's state before the first step; arguments as of `initial_state`.

    Args:
        config, engine: as of `initial_state`.
        classifier: with its initial weights.
        samples: number of real images.

    Raises:
        ConfigError: there are too few images.
    """
    neighbours = config.clustering.neighbours
    if samples <= max(neighbours, engine.world):
        raise ConfigError(
            f"clustering.neighbours: {samples} images are too few for {neighbours} neighbours each on "
            f"{engine.world} process(es); use more images, or clustering.steps=0"
        )
    average = copy.deepcopy(classifier).requires_grad_(False).to(engine.device, engine.dtype).eval()
    placed = engine.place(classifier)
    assert isinstance(placed, Classifier)
    adam = AdamConfig(lr=config.clustering.lr, beta1=CLASSIFIER_BETA1)
    part = engine.trainable_part(placed, adam)
    graphs = NeighbourGraphs(samples, neighbours)
    return ClusteringState(placed, average, graphs, part, config.clustering.steps)


def set_learning_rate(part: TrainablePart, rate: float) -> None:
    """Set the learning rate of a part, where a CUDA graph reads it on the device."""
    for group in part.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
